"""A corpus of broken and hostile files, and what must become of each: the same at every run.

    python tests/broken.py FOLDER

Every file comes with its outcomes: "embedded", or reasons of `transforms.records.Reason`. Where
there are several, it depends on where the damage lies, or on whether the job takes text.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hostile
import numpy as np
from hostile import chunk, encoded, grey_tiff, png, segment, with_segments
from PIL import Image

try:
    import pillow_heif
except ImportError:  # the `heic` extra: without it there are no HEIC files in the corpus
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

EMBEDDED, EMPTY, NO_IMAGE = "embedded", "empty", "not_an_image"
TRUNCATED, CORRUPT, TOO_LARGE = "truncated_image", "corrupt_image", "too_many_pixels"
UNSUPPORTED, NO_TEXT = "unsupported_image", "not_text"
DAMAGED = frozenset({TRUNCATED, CORRUPT, UNSUPPORTED})

TOO_WIDE = 16_000
"""Both sides of a bomb: twice the pixels that are allowed by default."""


class Broken(NamedTuple):
    """One file: its path within the corpus, its bytes, and what may become of it."""

    name: str
    data: bytes
    outcomes: frozenset[str]


def corpus() -> Iterator[Broken]:
    """All files, in the order in which they are written."""
    whole = wholes()
    for files in (
        _cut(whole),
        _flipped(whole),
        _mistaken(whole),
        _served(),
        _bombs(whole),
        _loops(whole),
        _odd_jpegs(whole["jpg"]),
        _others(),
        _texts(),
        _named(whole["jpg"]),
    ):
        yield from files
    for name, data, outcome in hostile.costly_files(_picture(64, 48)):
        yield _file(f"costly/{name}", data, outcome)


def make_corpus(folder: Path) -> list[Path]:
    """Write the corpus under `folder`: about 20 MB."""
    paths = []
    for file in corpus():
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        paths.append(path)
    return paths


def wholes() -> dict[str, bytes]:
    """A good picture of every kind, by the extension that belongs to it."""
    picture = _picture(120, 90)
    whole = {
        "jpg": encoded(picture, "JPEG"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "png": encoded(picture, "PNG"),
        "webp": encoded(picture, "WEBP"),
        "gif": encoded(picture, "GIF"),
        "tif": encoded(picture, "TIFF"),
        "lzw.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "bmp": encoded(picture, "BMP"),
        "avif": encoded(picture, "AVIF"),
        "jp2": encoded(picture, "JPEG2000"),
    }
    if pillow_heif is not None:
        whole["heic"] = encoded(picture, "HEIF")
    return whole


def _picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _file(name: str, data: bytes, *outcomes: str) -> Broken:
    return Broken(name, data, frozenset(outcomes))


def _cut(whole: dict[str, bytes]) -> Iterator[Broken]:
    for kind, data in whole.items():
        for tenths in range(1, 10):
            part = data[: len(data) * tenths // 10]
            yield _file(f"cut/{tenths}0-percent.{kind}", part, TRUNCATED)
        yield _file(f"cut/header-only.{kind}", data[:24], *DAMAGED)
        yield _file(f"cut/one-byte.{kind}", data[:1], NO_IMAGE)
        yield _file(f"cut/nothing.{kind}", b"", EMPTY)


def _flipped(whole: dict[str, bytes]) -> Iterator[Broken]:
    """Five bytes changed, not those of the signature."""
    random = np.random.default_rng(11)
    for kind, data in whole.items():
        for number in range(6):
            damaged = bytearray(data)
            for place in random.integers(12, len(data), 5):
                damaged[place] ^= int(random.integers(1, 256))
            outcomes = {EMBEDDED, TOO_LARGE, *DAMAGED}
            yield _file(f"flipped/{number}.{kind}", bytes(damaged), *outcomes)


def _mistaken(whole: dict[str, bytes]) -> Iterator[Broken]:
    kinds = list(whole)
    for kind, following in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        data = whole[kind]
        yield _file(f"mistaken/is-{kind}.{following}", data, EMBEDDED)
        yield _file(f"mistaken/no-magic.{kind}", bytes(12) + data[12:], NO_IMAGE)
        other = whole[following][:12] + data[12:]
        outcomes = {*DAMAGED, TOO_LARGE}
        if following.endswith(kind) or kind.endswith(following):
            outcomes.add(EMBEDDED)
        if following == "bmp":  # its signature is two letters only, and more is asked for
            outcomes.add(NO_IMAGE)
        yield _file(f"mistaken/magic-of-{following}.{kind}", other, *outcomes)


def _served() -> Iterator[Broken]:
    """What servers send in the place of a picture."""
    error = "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
    for name, body in {
        "page": "<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "error": error,
        "json": '{"error": {"code": 403, "message": "expired"}}',
        "marked": "\ufeff" + error,
        "lines": "\r\n\r\n" + error,
        "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "plain": "BMW is a maker of cars, and this is a text.",
        "spaces": " " * 1000,
    }.items():
        yield _file(f"served/{name}.jpg", body.encode(), NO_IMAGE, EMPTY, EMBEDDED)


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
    yield _file("bombs/a.jpg", patched("jpg", frame, ">HH", 65_500, 65_500), TOO_LARGE)
    yield _file("bombs/a.png", png(wide, wide, bytes(3 * wide + 1) * 20), TOO_LARGE)
    yield _file("bombs/largest.png", png(2**31 - 1, 2**31 - 1, b""), TOO_LARGE)
    yield _file("bombs/a.gif", _large_gif(whole["gif"]), TOO_LARGE)
    yield _file("bombs/a.bmp", patched("bmp", 18, "<ii", wide, wide), TOO_LARGE)
    yield _file("bombs/a.jp2", patched("jp2", boxes, ">II", wide, wide), TOO_LARGE)
    yield _file("bombs/a.tif", grey_tiff(wide, wide), TOO_LARGE)
    frame_of_webp = encoded(_picture(16, 16), "WEBP")
    for side in (wide, 60_000):
        canvas = hostile.webp_canvas(frame_of_webp, side, side)
        yield _file(f"bombs/{side}.webp", canvas, TOO_LARGE)
    lossless = bytearray(encoded(_picture(16, 16), "WEBP", lossless=True))
    struct.pack_into("<I", lossless, 21, 0x0FFFFFFF)  # 16,384 x 16,384: the most there is
    yield _file("bombs/lossless.webp", bytes(lossless), TOO_LARGE, *DAMAGED)
    for kind in {"avif", "heic"} & set(whole):
        yield _file(f"bombs/a.{kind}", hostile.claims(whole[kind], was, (wide, wide)), TOO_LARGE)
        # Larger than coded, but allowed: some scale what there is.
        larger = hostile.claims(whole[kind], was, (4000, 3000))
        yield _file(f"bombs/claims-more.{kind}", larger, EMBEDDED, *DAMAGED)


def _large_gif(gif: bytes) -> bytes:
    return gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]


def _loops(whole: dict[str, bytes]) -> Iterator[Broken]:
    """Directories that point to themselves, and animations without an end."""
    # The EXIF directory (34665) of a directory is that directory itself.
    loop = hostile.tiff([(34665, 4, 1, 8), (34853, 4, 1, 8)], following=8)
    yield _file("loops/exif.jpg", with_segments(whole["jpg"], _exif(loop)), EMBEDDED)
    rows = bytes(90 * (1 + 3 * 120))
    yield _file("loops/exif.png", png(120, 90, rows, chunk(b"eXIf", loop)), EMBEDDED)
    yield _file("loops/exif.webp", encoded(_picture(60, 40), "WEBP", exif=loop), EMBEDDED)
    yield _file("loops/pages.tif", grey_tiff(60, 40, following=8), EMBEDDED)
    yield _file("loops/below.tif", grey_tiff(60, 40, (34665, 4, 1, 8)), EMBEDDED)
    beyond = grey_tiff(60, 40, (34665, 4, 1, 2**31))
    yield _file("loops/beyond.tif", beyond, EMBEDDED, *DAMAGED)
    yield _file("loops/counts.tif", grey_tiff(60, 40, (40000, 4, 2**32 - 1, 8)), *DAMAGED, EMBEDDED)
    strips = hostile.tiff([(256, 4, 1, 60), (257, 4, 1, 40), (273, 4, 2**32 - 1, 8)])
    yield _file("loops/strips.tif", strips, *DAMAGED)

    frame = encoded(_picture(30, 20), "GIF")
    start = 13 + (3 << ((frame[10] & 7) + 1))
    endless = frame[:start] + frame[start:-1] * 5000
    yield _file("loops/endless.gif", endless, EMBEDDED)
    yield _file("loops/cut-in-a-frame.gif", endless[: len(endless) // 2 + 37], EMBEDDED)
    count = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 120, 90, 0, 0, 1, 10, 0, 0))
    yield _file("loops/counts.png", png(120, 90, rows, count + control), EMBEDDED)
    wrong = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 10**9, 10**9, 0, 0, 1, 10, 0, 0))
    yield _file("loops/frame.png", png(120, 90, rows, count + wrong), *DAMAGED, EMBEDDED)


def _exif(tags: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + tags)


def _odd_jpegs(jpeg: bytes) -> Iterator[Broken]:
    frame = jpeg.find(b"\xff\xc0")
    twelve = jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]
    yield _file("jpeg/twelve-bits.jpg", twelve, UNSUPPORTED)
    yield _file(
        "jpeg/hierarchical.jpg", jpeg[:frame] + b"\xff\xc5" + jpeg[frame + 2 :], UNSUPPORTED
    )
    yield _file(
        "jpeg/arithmetic.jpg", jpeg[:frame] + b"\xff\xc9" + jpeg[frame + 2 :], *DAMAGED, EMBEDDED
    )
    yield _file("jpeg/frames.jpg", with_segments(jpeg, jpeg[frame : frame + 19]), *DAMAGED)
    overfull = segment(0xC4, b"\0" + b"\xff" * 16 + bytes(256))
    yield _file("jpeg/overfull-table.jpg", with_segments(jpeg, overfull), *DAMAGED)
    nested = segment(0xC4, b"\0" + bytes(15) + b"\xff" + overfull)
    yield _file("jpeg/table-in-a-table.jpg", with_segments(jpeg, nested), *DAMAGED)
    short = with_segments(jpeg, b"\xff\xe1\0\0")
    yield _file("jpeg/negative-length.jpg", short, *DAMAGED, EMBEDDED)
    print_ink = _picture(60, 40).convert("CMYK")
    for name, profile in {"random": bytes(range(256)) * 4, "short": b"\0" * 10}.items():
        ink = encoded(print_ink, "JPEG", icc_profile=profile)
        yield _file(f"jpeg/cmyk-{name}-profile.jpg", ink, EMBEDDED)
        yield _file(
            f"jpeg/{name}-profile.jpg",
            encoded(_picture(60, 40), "JPEG", icc_profile=profile),
            EMBEDDED,
        )
    yield _file("jpeg/junk-behind.jpg", jpeg + bytes(range(256)) * 100, EMBEDDED)
    yield _file("jpeg/two.jpg", jpeg + jpeg, EMBEDDED)
    yield _file("jpeg/no-end.jpg", jpeg[:-2], TRUNCATED, EMBEDDED)


def _others() -> Iterator[Broken]:
    """Kinds that are not decoded, under a picture's name."""
    for name, start in {
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "ico": struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 40, 22) + bytes(40),
        "mp4": struct.pack(">I4s4sI", 24, b"ftyp", b"isom", 512) + b"isommp41" + bytes(500),
        "psd": b"8BPS\0\1" + bytes(100),
        "zip": b"PK\3\4" + bytes(100),
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(24),
        "elf": b"\x7fELF\2\1\1" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(30),
        "jxl": b"\xff\x0a" + bytes(range(50)),
        "tar": b"../../etc/passwd".ljust(512, b"\0") + bytes(1024),
    }.items():
        yield _file(f"others/{name}.jpg", start, NO_IMAGE, NO_TEXT, EMBEDDED)


def _texts() -> Iterator[Broken]:
    random = np.random.default_rng(3)
    sentence = "Все счастливые семьи похожи друг на друга, каждая несчастлива по-своему.\n" * 4
    taken = {EMBEDDED, NO_IMAGE, NO_TEXT}
    for encoding in ("utf_8", "utf_16", "koi8_r"):
        data = sentence.encode(encoding)
        for tenths in range(1, 10):
            part = data[: len(data) * tenths // 10]
            yield _file(f"texts/{encoding}-{tenths}0-percent.txt", part, *taken)
    for size in (10, 100, 1000, 100_000):
        yield _file(f"texts/random-{size}.txt", random.bytes(size), *taken)
    yield _file("texts/zeros.txt", bytes(1000), NO_IMAGE, NO_TEXT)
    yield _file("texts/spaces.txt", b" \r\n\t" * 20, NO_IMAGE, EMPTY)
    yield _file("texts/nothing.txt", b"", EMPTY)


def _named(jpeg: bytes) -> Iterator[Broken]:
    for name in (
        "two words.jpg",
        "-dash.jpg",
        "ümläut-日本語-😀.jpg",
        "e\u0301-in-two.jpg",
        "hash#mark.jpg",
        "question?.jpg",
        "star*.jpg",
        "set[a-z].jpg",
        "per%20cent.jpg",
        "quote'\"back\\slash.jpg",
        "a,comma;and$dollar&and.jpg",
        "..dots..jpg",
        "UPPER.JPG",
        "tab\tin.jpg",
        "x" * 200 + ".jpg",
    ):
        yield _file(f"names/{name}", jpeg, EMBEDDED)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{len(make_corpus(Path(sys.argv[1])))} files in {sys.argv[1]}")
