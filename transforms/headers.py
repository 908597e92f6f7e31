"""What the first bytes of a picture tell, read before a decoder is trusted with the rest.

The decoders below Pillow are robust against broken bytes and helpless against costly ones: a few
kilobytes can ask for gigabytes of metadata, or for an hour of passes. Here are plain walks over
markers, chunks and blocks that refuse those; `tests/broken.py` makes examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from transforms import exif
from transforms.isofiles import boxes_end, coded_size
from transforms.records import MediaError, Reason

MAX_SEGMENTS = 1_000
"""JPEG segments before the picture: 64 MB of metadata. Ordinary ones have a dozen."""
MAX_SCANS = 100
"""Passes over one JPEG; encoders make about ten, and each costs as much as the picture is large."""
MAX_CHUNKS = 100_000
"""PNG chunks: 400 MB in the smallest that encoders write, of 4 KiB."""
MAX_BLOCKS = 20_000
"""GIF blocks before the first frame: 5 MB of comments and profiles."""

_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

# JPEG markers (ITU T.81, table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_UNKNOWN_FRAMES = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}  # hierarchical; lossless arithmetic
_PROGRESSIVE = (0xC2, 0xCA)
_SCAN, _END, _APP0, _APP1 = 0xDA, 0xD9, 0xE0, 0xE1
_JFIF_BYTES = 14
# Baseline and progressive frames, their tables, and what says nothing about the pixels.
_PLAIN = {0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, _APP0, 0xFE}
_BARE = {0x01, *range(0xD0, 0xDA)}  # without a body
_FILL = re.compile(rb"\xff*")
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")

_EXIF_START = re.compile(rb"II\*\0|MM\0\*")


def kind_of(data: bytes) -> str | None:
    """The kind of picture that these bytes begin as, by Pillow's names; None: no picture."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(exif.SIGNATURES):
        return "TIFF"
    if data.startswith(b"BM") and _is_bmp(data):
        return "BMP"
    if data.startswith(_JPEG_2000):
        return "JPEG2000"
    if data[4:8] == b"ftyp":
        return _iso_kind(data)
    return None


def _is_bmp(data: bytes) -> bool:
    # "BM" begins words too ("BMW"); the size of a bitmap's own header is one of a few numbers.
    if len(data) < 18:
        return b"\0" in data
    return int.from_bytes(data[14:18], "little") in _BMP_HEADERS


def _iso_kind(data: bytes) -> str | None:
    size = int.from_bytes(data[:4], "big")
    major, others = data[8:12], data[16 : min(size, 256)]
    compatible = {others[place : place + 4] for place in range(0, len(others), 4)}
    if major in _AVIF or (major in (b"mif1", b"msf1") and compatible & _AVIF):
        return "AVIF"
    return "HEIF" if major in _HEIF else None


def too_many_pixels(width: int, height: int, max_pixels: int) -> MediaError:
    """The error of a picture that is larger than allowed."""
    message = f"{width} x {height} pixels, more than the {max_pixels} allowed"
    return MediaError(Reason.TOO_MANY_PIXELS, message)


class PlainJpeg(NamedTuple):
    """All that there is to know of a JPEG without EXIF, profile or the like: `L` or `RGB`."""

    mode: str
    size: tuple[int, int]


class Header(NamedTuple):
    """What is known of a picture before it is opened.

    `pixels` are those that a decoder takes memory for if they are more than it will tell, else 0.
    """

    pixels: int = 0
    plain: PlainJpeg | None = None


def check_header(kind: str, data: bytes, max_pixels: int) -> Header:
    """Refuse what no decoder takes, and what would cost one more than a picture can be worth.

    Raises `MediaError`. A header that cannot be understood passes: the decoder will say why.
    """
    match kind:
        case "JPEG":
            return Header(plain=_check_jpeg(data))
        case "PNG":
            _check_png(data)
        case "GIF":
            _check_gif(data)
        case "TIFF":
            exif.check_directories(data)
        case "WEBP":
            _check_webp(data, max_pixels)
        case "AVIF":
            return Header(_check_avif(data, max_pixels))
    return Header()


def _costly(what: str) -> MediaError:
    return MediaError(Reason.UNSUPPORTED_IMAGE, f"{what}: it would take too long to decode")


def _check_jpeg(data: bytes) -> PlainJpeg | None:
    """Walk the markers up to the first scan: precision, process, EXIF, and how many passes."""
    place, frame, details = 2, 0, bytes(6)
    frames, only_plain = 0, True
    metadata: list[bytes] = []
    for _ in range(MAX_SEGMENTS):
        marker, body, following = _segment(data, place)
        if marker is None or marker == _END:
            return None
        if marker in _FRAMES and len(body) > 5:
            _check_frame(marker, body[0])
            frame, details = marker, body
            frames += 1
        if marker == _SCAN:
            in_passes = frame in _PROGRESSIVE or (body and body[0] < details[5])
            if in_passes and _scans(data, following) > MAX_SCANS:
                raise _costly(f"JPEG of more than {MAX_SCANS} scans")
            # Opening one reads its EXIF, which Pillow puts together from several segments.
            if metadata:
                exif.check_directories(b"".join(metadata))
            return _plain(details) if only_plain and frames == 1 else None
        only_plain &= marker in _PLAIN and (marker != _APP0 or len(body) >= _JFIF_BYTES)
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            metadata.append(body[6:])
        place = following
    raise _costly(f"JPEG of more than {MAX_SEGMENTS} segments before the picture")


def _plain(frame: bytes) -> PlainJpeg | None:
    """What a frame's header (ITU T.81, B.2.2) tells, where it is of grey or of three colours."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    mode = {1: "L", 3: "RGB"}.get(frame[5])
    return PlainJpeg(mode, (width, height)) if mode and width and height else None


def _check_frame(marker: int, precision: int) -> None:
    if precision != 8:
        message = f"{precision}-bit JPEG: only 8 bits a channel are decoded"
        raise MediaError(Reason.UNSUPPORTED_IMAGE, message)
    if marker in _UNKNOWN_FRAMES:
        message = f"JPEG of a process that nothing here decodes (SOF{marker - 0xC0})"
        raise MediaError(Reason.UNSUPPORTED_IMAGE, message)


def _segment(data: bytes, place: int) -> tuple[int | None, bytes, int]:
    """The marker at `place`, its body, and where the next one is; None where there is none."""
    fill = _FILL.match(data, place, place + 4096)
    end = fill.end() if fill else place
    if end == place or end >= len(data):
        return None, b"", end
    marker = data[end]
    if marker == 0xFF:
        raise _costly("JPEG with thousands of bytes of padding between segments")
    if marker in _BARE:
        return marker, b"", end + 1
    length = max(2, int.from_bytes(data[end + 1 : end + 3], "big"))
    return marker, data[end + 3 : end + 1 + length], end + 1 + length


def _scans(data: bytes, place: int) -> int:
    """How many scans a JPEG has, the first one's data at `place`; not counted above the limit."""
    # Counted roughly first, which is quicker and never too low.
    if data.count(b"\xff\xda", place) < MAX_SCANS:
        return 1
    scans, segments = 1, 0
    while scans <= MAX_SCANS and (found := _NEXT_MARKER.search(data, place)):
        marker, _, place = _segment(data, found.start())
        segments += 1
        if marker is None or marker == _END:
            break
        if segments > MAX_SEGMENTS:
            raise _costly(f"JPEG of more than {MAX_SEGMENTS} segments between its scans")
        scans += marker == _SCAN
    return scans


def _check_png(data: bytes) -> None:
    for count, _ in enumerate(_png_chunks(data)):
        if count > MAX_CHUNKS:
            raise _costly(f"PNG of more than {MAX_CHUNKS} chunks")


def _png_chunks(data: bytes) -> Iterator[int]:
    """Where each chunk of a PNG ends, by what it says."""
    place = 8
    while place + 8 <= len(data):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        yield place


def _check_gif(data: bytes) -> None:
    """Walk the extensions before the first frame: Pillow reads them block by block."""
    flags = data[10] if len(data) > 10 else 0
    place, blocks = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0), 0
    while data[place : place + 1] == b"!":
        place += 2
        while place < len(data) and data[place] and blocks <= MAX_BLOCKS:
            place += 1 + data[place]
            blocks += 1
        place += 1
        blocks += 1
        if blocks > MAX_BLOCKS:
            raise _costly(f"GIF of more than {MAX_BLOCKS} blocks before its first frame")


def _check_webp(data: bytes, max_pixels: int) -> None:
    # Opening one allots two canvases, before Pillow can tell how large they are.
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)


def _check_avif(data: bytes, max_pixels: int) -> int:
    width, height = coded_size(data)
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    # Opening one reads its EXIF, which may lie anywhere in it; by chance these bytes are rare.
    starts = [found.start() for found in _EXIF_START.finditer(data)]
    if len(starts) > 100:
        raise MediaError(Reason.CORRUPT_IMAGE, "more than a hundred EXIF headers in one picture")
    for start in starts:
        exif.check_directories(data, start)
    return width * height


def ends_early(kind: str, data: bytes) -> bool:
    """Whether a picture has fewer bytes than it says itself; False for kinds that do not say."""
    match kind:
        case "PNG":
            return max(_png_chunks(data), default=33) > len(data)
        case "WEBP":
            return 8 + int.from_bytes(data[4:8], "little") > len(data)
        case "TIFF":
            return exif.tiff_ends_early(data)
        case "AVIF" | "HEIF":
            return boxes_end(data) > len(data)
        case "JPEG2000":
            return not data.rstrip(b"\0").endswith(b"\xff\xd9")
        case _:
            return False
