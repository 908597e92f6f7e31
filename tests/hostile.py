"""Pictures that ask a decoder for too much: bombs, loops, odd parts, and what is costly to read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from outcomes import CORRUPT, DAMAGED, EMBEDDED, TOO_LARGE, TRUNCATED, UNSUPPORTED, Broken, broken
from pieces import (
    behind,
    chunk,
    claims,
    encoded,
    gif_blocks,
    gif_start,
    grey_tiff,
    png,
    segment,
    sketch,
    tiff,
    webp_canvas,
    with_segments,
)
from PIL import Image

TOO_WIDE = 16_000
"""Both sides of a bomb: twice the pixels that are allowed by default."""


def hostile_pictures(whole: dict[str, bytes]) -> Iterator[Broken]:
    """All of them, made of good pictures of 120 x 90 by their extensions."""
    yield from _bombs(whole)
    yield from _loops(whole)
    yield from _odd_jpegs(whole["jpg"])
    yield from _costly()


def _bombs(whole: dict[str, bytes]) -> Iterator[Broken]:
    """Headers that claim more pixels than are allowed, without them or with pixels that shrink."""
    wide, was = TOO_WIDE, (120, 90)

    def patched(kind: str, place: int, layout: str, *values: int) -> bytes:
        data = bytearray(whole[kind])
        struct.pack_into(layout, data, place, *values)
        return bytes(data)

    jpeg = whole["jpg"]
    frame = jpeg.find(b"\xff\xc0") + 5
    boxes = whole["jp2"].find(b"ihdr") + 4
    yield broken("bombs/a.jpg", patched("jpg", frame, ">HH", 65_500, 65_500), TOO_LARGE)
    yield broken("bombs/a.png", png(wide, wide, bytes(3 * wide + 1) * 20), TOO_LARGE)
    yield broken("bombs/largest.png", png(2**31 - 1, 2**31 - 1, b""), TOO_LARGE)
    yield broken("bombs/a.gif", patched("gif", 6, "<HH", 65_535, 65_535), TOO_LARGE)
    yield broken("bombs/a.bmp", patched("bmp", 18, "<ii", wide, wide), TOO_LARGE)
    yield broken("bombs/a.jp2", patched("jp2", boxes, ">II", wide, wide), TOO_LARGE)
    yield broken("bombs/a.tif", grey_tiff(wide, wide), TOO_LARGE)
    frame_of_webp = encoded(sketch(16, 16), "WEBP")
    for side in (wide, 60_000):
        canvas = webp_canvas(frame_of_webp, side, side)
        yield broken(f"bombs/{side}.webp", canvas, TOO_LARGE)
    lossless = bytearray(encoded(sketch(16, 16), "WEBP", lossless=True))
    struct.pack_into("<I", lossless, 21, 0x0FFFFFFF)  # 16,384 x 16,384: the most there is
    yield broken("bombs/lossless.webp", bytes(lossless), TOO_LARGE, *DAMAGED)
    for kind in {"avif", "heic"} & set(whole):
        yield broken(f"bombs/a.{kind}", claims(whole[kind], was, (wide, wide)), TOO_LARGE)
        # Larger than coded, but allowed: some scale what there is.
        larger = claims(whole[kind], was, (4000, 3000))
        yield broken(f"bombs/claims-more.{kind}", larger, EMBEDDED, *DAMAGED)


def _loops(whole: dict[str, bytes]) -> Iterator[Broken]:
    """Directories that point to themselves, and animations without an end."""
    # The EXIF directory (34665) of a directory is that directory itself.
    loop = tiff([(34665, 4, 1, 8), (34853, 4, 1, 8)], following=8)
    yield broken("loops/exif.jpg", with_segments(whole["jpg"], _exif(loop)), EMBEDDED)
    rows = bytes(90 * (1 + 3 * 120))
    yield broken("loops/exif.png", png(120, 90, rows, chunk(b"eXIf", loop)), EMBEDDED)
    yield broken("loops/exif.webp", encoded(sketch(60, 40), "WEBP", exif=loop), EMBEDDED)
    yield broken("loops/pages.tif", grey_tiff(60, 40, following=8), EMBEDDED)
    yield broken("loops/below.tif", grey_tiff(60, 40, (34665, 4, 1, 8)), EMBEDDED)
    beyond = grey_tiff(60, 40, (34665, 4, 1, 2**31))
    yield broken("loops/beyond.tif", beyond, EMBEDDED, *DAMAGED)
    yield broken(
        "loops/counts.tif", grey_tiff(60, 40, (40000, 4, 2**32 - 1, 8)), *DAMAGED, EMBEDDED
    )
    strips = tiff([(256, 4, 1, 60), (257, 4, 1, 40), (273, 4, 2**32 - 1, 8)])
    yield broken("loops/strips.tif", strips, *DAMAGED)

    frame = encoded(sketch(30, 20), "GIF")
    start = gif_start(frame)
    endless = frame[:start] + frame[start:-1] * 5000
    yield broken("loops/endless.gif", endless, EMBEDDED)
    yield broken("loops/cut-in-a-frame.gif", endless[: len(endless) // 2 + 37], EMBEDDED)
    count = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 120, 90, 0, 0, 1, 10, 0, 0))
    yield broken("loops/counts.png", png(120, 90, rows, count + control), EMBEDDED)
    wrong = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 10**9, 10**9, 0, 0, 1, 10, 0, 0))
    yield broken("loops/frame.png", png(120, 90, rows, count + wrong), *DAMAGED, EMBEDDED)


def _exif(tags: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + tags)


def _odd_jpegs(jpeg: bytes) -> Iterator[Broken]:
    frame = jpeg.find(b"\xff\xc0")
    twelve = jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]
    yield broken("jpeg/twelve-bits.jpg", twelve, UNSUPPORTED)
    start, rest = jpeg[: frame + 1], jpeg[frame + 2 :]
    yield broken("jpeg/hierarchical.jpg", start + b"\xc5" + rest, UNSUPPORTED)
    yield broken("jpeg/arithmetic.jpg", start + b"\xc9" + rest, *DAMAGED, EMBEDDED)
    yield broken("jpeg/frames.jpg", with_segments(jpeg, jpeg[frame : frame + 19]), *DAMAGED)
    overfull = segment(0xC4, b"\0" + b"\xff" * 16 + bytes(256))
    yield broken("jpeg/overfull-table.jpg", with_segments(jpeg, overfull), *DAMAGED)
    nested = segment(0xC4, b"\0" + bytes(15) + b"\xff" + overfull)
    yield broken("jpeg/table-in-a-table.jpg", with_segments(jpeg, nested), *DAMAGED)
    short = with_segments(jpeg, b"\xff\xe1\0\0")
    yield broken("jpeg/negative-length.jpg", short, *DAMAGED, EMBEDDED)
    image = sketch(60, 40)
    for name, profile in {"random": bytes(range(256)) * 4, "short": b"\0" * 10}.items():
        ink = encoded(image.convert("CMYK"), "JPEG", icc_profile=profile)
        yield broken(f"jpeg/cmyk-{name}-profile.jpg", ink, EMBEDDED)
        plain = encoded(image, "JPEG", icc_profile=profile)
        yield broken(f"jpeg/{name}-profile.jpg", plain, EMBEDDED)
    yield broken("jpeg/junk-behind.jpg", jpeg + bytes(range(256)) * 100, EMBEDDED)
    yield broken("jpeg/two.jpg", jpeg + jpeg, EMBEDDED)
    yield broken("jpeg/no-end.jpg", jpeg[:-2], TRUNCATED, EMBEDDED)


def _costly() -> Iterator[Broken]:
    """Files that are small, and would take minutes or gigabytes."""
    picture = sketch(64, 48)
    jpeg, gif = encoded(picture, "JPEG"), encoded(picture, "GIF")
    width, height = picture.size
    rows = bytes(height * (1 + 3 * width))

    yield broken("costly/scans.jpg", _scan_bomb(5000, 1500), UNSUPPORTED)
    yield broken(
        "costly/segments.jpg", with_segments(jpeg, segment(0xE5, b"") * 200_000), UNSUPPORTED
    )
    yield broken("costly/padding.jpg", with_segments(jpeg, b"\xff" * 1_000_000), UNSUPPORTED)
    yield broken("costly/tables.jpg", with_segments(jpeg, _tables(jpeg) * 3000), UNSUPPORTED)
    yield broken(
        "costly/chunks.png", png(width, height, rows, chunk(b"prVt", b"") * 120_000), UNSUPPORTED
    )
    yield broken(
        "costly/texts.png", png(width, height, rows, chunk(b"tEXt", b"k\0v") * 120_000), UNSUPPORTED
    )
    yield broken(
        "costly/blocks.gif", gif_blocks(gif, b"!\xfe" + b"\1x" * 200_000 + b"\0"), UNSUPPORTED
    )
    pieces = 500_000
    offsets = [(324, 4, pieces, behind(10)), (325, 4, pieces, behind(10))]
    tiles = [(256, 4, 1, 1000), (257, 4, 1, 1000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tiles += [(277, 3, 1, 1), (322, 3, 1, 1), (323, 3, 1, 1), *offsets]
    yield broken("costly/tiles.tif", tiff(tiles, bytes(4 * pieces)), UNSUPPORTED)

    # A thousand tags of a megabyte each, in a megabyte.
    tags = _overlapping(1000, 1_000_000)
    yield broken("costly/tags.tif", tags, CORRUPT)
    parts = [tags[place : place + 60_000] for place in range(0, len(tags), 60_000)]
    exif = b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts)
    yield broken("costly/tags.jpg", with_segments(jpeg, exif), CORRUPT)
    small = _overlapping(4000, 15_000)  # in a single segment
    yield broken(
        "costly/tags-of-one-segment.jpg",
        with_segments(jpeg, segment(0xE1, b"Exif\0\0" + small)),
        CORRUPT,
    )
    yield broken("costly/tags.png", png(width, height, rows, chunk(b"eXIf", tags)), EMBEDDED)
    yield broken("costly/tags.webp", encoded(picture, "WEBP", exif=tags), EMBEDDED)
    honest = Image.Exif()
    honest[1000] = bytes(len(small) - len(honest.tobytes()) - 100)
    space = honest.tobytes()
    avif = encoded(picture, "AVIF", exif=space)
    hidden = space.removeprefix(b"Exif\0\0")
    yield broken(
        "costly/tags.avif",
        avif.replace(hidden, small[: len(hidden)].ljust(len(hidden), b"\0")),
        CORRUPT,
    )

    # What is compressed expands a thousandfold; only pixels may, up to the size of the picture.
    zeros = zlib.compress(bytes(60_000_000), 9)
    text = b"k\0\1\0\0\0" + zeros
    yield broken("costly/text.png", png(width, height, rows, chunk(b"iTXt", text)), CORRUPT)
    yield broken(
        "costly/ztxt.png", png(width, height, rows, chunk(b"zTXt", b"k\0\0" + zeros)), CORRUPT
    )
    yield broken(
        "costly/profile.png", png(width, height, rows, chunk(b"iCCP", b"p\0\0" + zeros)), CORRUPT
    )
    yield broken("costly/pixels.png", png(width, height, bytes(60_000_000)), EMBEDDED)


def _tables(jpeg: bytes) -> bytes:
    """The first Huffman table of a JPEG, as a segment."""
    start = jpeg.find(b"\xff\xc4")
    return jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")]


def _overlapping(tags: int, size: int) -> bytes:
    """A TIFF directory whose tags all claim the same bytes: together they are `tags * size`."""
    return tiff([(1000 + tag, 7, size, 8) for tag in range(tags)], bytes(size))


def _scan_bomb(scans: int, size: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs a pass over it."""
    jpeg = encoded(Image.new("L", (size, size), 128), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xc4")
    return jpeg[:-2] + jpeg[last:-2] * scans + b"\xff\xd9"
