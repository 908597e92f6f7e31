"""A corpus of broken and hostile files, and what must become of each: the same at every run.

    python tests/broken.py FOLDER

Under FOLDER/media are files that are read as they are, under FOLDER/tars tars.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from brokentars import broken_tars
from hostile import hostile_pictures
from outcomes import (
    DAMAGED,
    EMBEDDED,
    EMPTY,
    NO_IMAGE,
    NO_TEXT,
    TOO_LARGE,
    TRUNCATED,
    Broken,
    broken,
)
from pieces import encoded, sketch

try:
    import pillow_heif
except ImportError:  # the `heic` extra: without it there are no HEIC files in the corpus
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()


def corpus() -> Iterator[Broken]:
    """All files under `media`, in the order in which they are written."""
    whole = wholes()
    for files in (
        _cut(whole),
        _flipped(whole),
        _mistaken(whole),
        _served(),
        hostile_pictures(whole),
        _others(),
        _texts(),
        _named(whole["jpg"]),
    ):
        yield from files


def make_corpus(folder: Path) -> list[Path]:
    """Write the corpus under `folder`: about 30 MB."""
    files = [(folder / "media" / file.name, file.data) for file in corpus()]
    files += [(folder / "tars" / tar.name, tar.data) for tar in broken_tars()]
    for path, data in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [path for path, _ in files]


def wholes() -> dict[str, bytes]:
    """A good picture of every kind, by the extension that belongs to it."""
    picture = sketch(120, 90)
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


def _cut(whole: dict[str, bytes]) -> Iterator[Broken]:
    for kind, data in whole.items():
        for tenths in range(1, 10):
            part = data[: len(data) * tenths // 10]
            yield broken(f"cut/{tenths}0-percent.{kind}", part, TRUNCATED)
        yield broken(f"cut/header-only.{kind}", data[:24], *DAMAGED)
        yield broken(f"cut/one-byte.{kind}", data[:1], NO_IMAGE)
        yield broken(f"cut/nothing.{kind}", b"", EMPTY)


def _flipped(whole: dict[str, bytes]) -> Iterator[Broken]:
    """Five bytes changed, not those of the signature."""
    random = np.random.default_rng(11)
    for kind, data in whole.items():
        for number in range(6):
            damaged = bytearray(data)
            for place in random.integers(12, len(data), 5):
                damaged[place] ^= int(random.integers(1, 256))
            outcomes = {EMBEDDED, TOO_LARGE, *DAMAGED}
            yield broken(f"flipped/{number}.{kind}", bytes(damaged), *outcomes)


def _mistaken(whole: dict[str, bytes]) -> Iterator[Broken]:
    kinds = list(whole)
    for kind, following in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        data = whole[kind]
        yield broken(f"mistaken/is-{kind}.{following}", data, EMBEDDED)
        yield broken(f"mistaken/no-magic.{kind}", bytes(12) + data[12:], NO_IMAGE)
        other = whole[following][:12] + data[12:]
        outcomes = {*DAMAGED, TOO_LARGE}
        if following.endswith(kind) or kind.endswith(following):
            outcomes.add(EMBEDDED)
        if following == "bmp":  # its signature is two letters only, and more is asked for
            outcomes.add(NO_IMAGE)
        yield broken(f"mistaken/magic-of-{following}.{kind}", other, *outcomes)


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
        yield broken(f"served/{name}.jpg", body.encode(), NO_IMAGE, EMPTY, EMBEDDED)


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
        yield broken(f"others/{name}.jpg", start, NO_IMAGE, NO_TEXT, EMBEDDED)


def _texts() -> Iterator[Broken]:
    random = np.random.default_rng(3)
    sentence = "Все счастливые семьи похожи друг на друга, каждая несчастлива по-своему.\n" * 4
    taken = {EMBEDDED, NO_IMAGE, NO_TEXT}
    for encoding in ("utf_8", "utf_16", "koi8_r"):
        data = sentence.encode(encoding)
        for tenths in range(1, 10):
            part = data[: len(data) * tenths // 10]
            yield broken(f"texts/{encoding}-{tenths}0-percent.txt", part, *taken)
    for size in (10, 100, 1000, 100_000):
        yield broken(f"texts/random-{size}.txt", random.bytes(size), *taken)
    yield broken("texts/zeros.txt", bytes(1000), NO_IMAGE, NO_TEXT)
    yield broken("texts/spaces.txt", b" \r\n\t" * 20, NO_IMAGE, EMPTY)
    yield broken("texts/nothing.txt", b"", EMPTY)


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
        yield broken(f"names/{name}", jpeg, EMBEDDED)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{len(make_corpus(Path(sys.argv[1])))} files in {sys.argv[1]}")
