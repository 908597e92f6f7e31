"""Pieces of picture files, for files by hand: what no program writes, or only another one does."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    rows: bytes,
    before: bytes = b"",
    bits: int = 8,
    colour: int = 2,
    interlace: int = 0,
) -> bytes:
    """A PNG of these filtered rows, with `before` between its header and its pixels."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    header = chunk(b"IHDR", head)
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


def grey_tiff(
    width: int, height: int, *extra: tuple[int, int, int, int], following: int = 0
) -> bytes:
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


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gif_start(gif: bytes) -> int:
    """Where a GIF's first extension or frame begins."""
    return 13 + (3 << ((gif[10] & 7) + 1) if gif[10] & 0x80 else 0)


def gif_blocks(gif: bytes, extensions: bytes) -> bytes:
    """A GIF with extensions before its first frame."""
    start = gif_start(gif)
    return gif[:start] + extensions + gif[start:]


def sketch(width: int, height: int) -> Image.Image:
    """A picture without details, the same at every run."""
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
