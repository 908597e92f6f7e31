"""Files that ask a decoder for too much: pieces to build them of, and the costly ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, before: bytes = b"", bits: int = 8, colour: int = 2):
    """A PNG of these filtered rows, with `before` between its header and its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """A JPEG with more segments, put where they come first."""
    return jpeg[:2] + segments + jpeg[2:]


def tiff(tags: list[tuple[int, int, int, int]], more: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF of (tag, type, count, value or offset), and `more` behind that."""
    lines = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + lines + struct.pack("<I", following) + more


def behind(count: int) -> int:
    """Where `more` begins in a TIFF of `count` tags."""
    return 14 + 12 * count


def grey_tiff(width: int, height: int, *extra: tuple[int, int, int, int], following: int = 0):
    """An uncompressed grey TIFF in one strip, with more tags at its end."""
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, behind(9 + len(extra))),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, width * height),
        *extra,
    ]
    pixels = bytes(range(256)) * (min(width * height, 2**20) // 256 + 1)
    return tiff(tags, pixels[: width * height], following)


def overlapping(tags: int, size: int) -> bytes:
    """A TIFF directory whose tags all claim the same bytes: together they are `tags * size`."""
    return tiff([(1000 + tag, 7, size, 8) for tag in range(tags)], bytes(size))


def webp_canvas(frame: bytes, width: int, height: int) -> bytes:
    """An animated WebP of one frame of 16 x 16 (a still WebP's bytes) on a canvas of any size."""

    def part(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body

    def three(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    head = part(b"VP8X", b"\2\0\0\0" + three(width - 1) + three(height - 1))
    placed = bytes(6) + three(15) + three(15) + bytes(4) + frame[12:]
    body = head + part(b"ANIM", bytes(6)) + part(b"ANMF", placed)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def claims(file: bytes, was: tuple[int, int], now: tuple[int, int]) -> bytes:
    """An AVIF or HEIC that claims another size than what is coded in it."""
    tag = b"ispe" + bytes(4)
    return file.replace(tag + struct.pack(">II", *was), tag + struct.pack(">II", *now))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scan_bomb(scans: int, size: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs a pass over it."""
    jpeg = encoded(Image.new("L", (size, size), 128), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xc4")
    return jpeg[:-2] + jpeg[last:-2] * scans + b"\xff\xd9"


def gif_blocks(gif: bytes, extensions: bytes) -> bytes:
    """A GIF with extensions before its first frame."""
    start = 13 + (3 << ((gif[10] & 7) + 1) if gif[10] & 0x80 else 0)
    return gif[:start] + extensions + gif[start:]


def costly_files(picture: Image.Image) -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and outcome of files that are small, and would take minutes or gigabytes."""
    jpeg, gif = encoded(picture, "JPEG"), encoded(picture, "GIF")
    width, height = picture.size
    rows = bytes(height * (1 + 3 * width))
    slow, broken, fine = "unsupported_image", "corrupt_image", "embedded"

    yield "scans.jpg", scan_bomb(5000, 1500), slow
    yield "segments.jpg", with_segments(jpeg, segment(0xE5, b"") * 200_000), slow
    yield "padding.jpg", with_segments(jpeg, b"\xff" * 1_000_000), slow
    yield "tables.jpg", with_segments(jpeg, _tables(jpeg) * 3000), slow
    yield "chunks.png", png(width, height, rows, chunk(b"prVt", b"") * 120_000), slow
    yield "texts.png", png(width, height, rows, chunk(b"tEXt", b"k\0v") * 120_000), slow
    yield "blocks.gif", gif_blocks(gif, b"!\xfe" + b"\1x" * 200_000 + b"\0"), slow
    pieces = 500_000
    offsets = [(324, 4, pieces, behind(10)), (325, 4, pieces, behind(10))]
    tiles = [(256, 4, 1, 1000), (257, 4, 1, 1000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tiles += [(277, 3, 1, 1), (322, 3, 1, 1), (323, 3, 1, 1), *offsets]
    yield "tiles.tif", tiff(tiles, bytes(4 * pieces)), slow

    # A thousand tags of a megabyte each, in a megabyte.
    tags = overlapping(1000, 1_000_000)
    yield "tags.tif", tags, broken
    parts = [tags[place : place + 60_000] for place in range(0, len(tags), 60_000)]
    exif = b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts)
    yield "tags.jpg", with_segments(jpeg, exif), broken
    small = overlapping(4000, 15_000)  # in a single segment
    yield "tags-of-one-segment.jpg", with_segments(jpeg, segment(0xE1, b"Exif\0\0" + small)), broken
    yield "tags.png", png(width, height, rows, chunk(b"eXIf", tags)), fine
    yield "tags.webp", encoded(picture, "WEBP", exif=tags), fine
    honest = Image.Exif()
    honest[1000] = bytes(len(small) - len(honest.tobytes()) - 100)
    space = honest.tobytes()
    avif = encoded(picture, "AVIF", exif=space)
    hidden = space.removeprefix(b"Exif\0\0")
    yield "tags.avif", avif.replace(hidden, small[: len(hidden)].ljust(len(hidden), b"\0")), broken

    # What is compressed expands a thousandfold; only pixels may, up to the size of the picture.
    zeros = zlib.compress(bytes(60_000_000), 9)
    text = b"k\0\1\0\0\0" + zeros
    yield "text.png", png(width, height, rows, chunk(b"iTXt", text)), broken
    yield "ztxt.png", png(width, height, rows, chunk(b"zTXt", b"k\0\0" + zeros)), broken
    yield "profile.png", png(width, height, rows, chunk(b"iCCP", b"p\0\0" + zeros)), broken
    yield "pixels.png", png(width, height, bytes(60_000_000)), fine


def _tables(jpeg: bytes) -> bytes:
    """The first Huffman table of a JPEG, as a segment."""
    start = jpeg.find(b"\xff\xc4")
    return jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")]
