"""Tars that are cut, damaged, hostile or none at all, and what must become of what is in them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from outcomes import EMBEDDED, EMPTY, NO_IMAGE, TOO_LARGE, TRUNCATED
from packing import END, Members, header, pack
from pieces import encoded, png, sketch

OUTSIDE = "beamtag-outside.jpg"
"""What names that lead out of a folder, or begin at the root, lead to."""

# Not one like the other: they would vanish in a gzip.
MEMBERS: Members = [
    (f"{number}.jpg", encoded(sketch(64, 48), "JPEG", quality=60 + 6 * number))
    for number in range(1, 7)
]
PICTURE = MEMBERS[0][1]
WHOLE = pack(MEMBERS)
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as _tar:
    HEADERS = _tar.getmembers()

TOO_MANY_BYTES = 300 * 1024 * 1024
"""The size of a member that is over the default of `--max_bytes`."""


class BrokenTar(NamedTuple):
    """One tar: its name, its bytes, what becomes of each item in it, and whether it has a row too.

    That row is for a tar that is none, or breaks off: its reason is `corrupt_archive`.
    """

    name: str
    data: bytes
    items: Mapping[str, str]
    corrupt: bool


def broken_tars() -> Iterator[BrokenTar]:
    """All tars, in the order in which they are written."""
    yield from _cut()
    yield from _flipped()
    yield from _no_tars()
    yield from _odd_headers()
    yield from _odd_members()
    yield from _odd_content()


def _broken(name: str, data: bytes, readable: int = 0) -> BrokenTar:
    """A tar of which so many of `MEMBERS` can be read."""
    return BrokenTar(name, data, dict.fromkeys(dict(MEMBERS[:readable]), EMBEDDED), corrupt=True)


def _whole(name: str, data: bytes, items: Mapping[str, str]) -> BrokenTar:
    return BrokenTar(name, data, items, corrupt=False)


def _before(place: int) -> int:
    """How many of `MEMBERS` are whole before a place of `WHOLE`."""
    return sum(info.offset_data + info.size <= place for info in HEADERS)


def _cut() -> Iterator[BrokenTar]:
    zipped = gzip.compress(WHOLE, mtime=0)
    for tenths in range(1, 10):
        cut = len(WHOLE) * tenths // 10
        yield _broken(f"cut-{tenths}0-percent.tar", WHOLE[:cut], _before(cut))
        part = zipped[: len(zipped) * tenths // 10]
        unpacked = zlib.decompressobj(wbits=31).decompress(part)
        yield _broken(f"gzip-cut-{tenths}0-percent.tar", part, _before(len(unpacked)))
    for count in (3, len(MEMBERS)):
        yield _broken(f"no-end-{count}.tar", pack(MEMBERS[:count], end=b""), count)


def _flipped() -> Iterator[BrokenTar]:
    """One bit changed in the third header, which its checksum betrays."""
    for field, place in {
        "name": 0, "mode": 100, "size": 130, "time": 136, "checksum": 150, "kind": 156,
        "link": 157, "magic": 257, "prefix": 345,
    }.items():  # fmt: skip
        damaged = bytearray(WHOLE)
        damaged[HEADERS[2].offset + place] ^= 1
        yield _broken(f"flipped-{field}.tar", bytes(damaged), 2)
    checksum = bytearray(gzip.compress(WHOLE, mtime=0))
    checksum[-8] ^= 1
    yield _broken("gzip-flipped-checksum.tar", bytes(checksum), len(MEMBERS))


def _no_tars() -> Iterator[BrokenTar]:
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
    for name, data in {
        "nothing": b"",
        "page": page * 20,
        "short-page": page,
        "picture": PICTURE,
        "random": np.random.default_rng(5).bytes(4000),
        "zip": b"PK\3\4" + bytes(2000),
        "gzip-of-no-tar": gzip.compress(page * 20, mtime=0),
        "gzip-of-nothing": b"\x1f\x8b\x08" + bytes(30),
    }.items():
        yield _broken(f"is-{name}.tar", data)


def _odd_headers() -> Iterator[BrokenTar]:
    """Behind one good member, a header that no tar should have."""
    first = pack(MEMBERS[:1], end=b"")
    rest = pack(MEMBERS[1:])
    text = b"1" * 1_000_000 + bytes(-1_000_000 % 512)
    for name, odd in {
        "huge-pax": header(tarfile.XHDTYPE, 10**10),
        "huge-name": header(tarfile.GNUTYPE_LONGNAME, 10**10),
        "senseless-pax": header(tarfile.XHDTYPE, 1_000_000) + text,
        "negative-size": header(tarfile.REGTYPE, -1024, "2.jpg"),
        "largest-size": header(tarfile.REGTYPE, 2**80, "0.jpg"),
        "garbage": b"garbage!" * 64,
    }.items():
        yield _broken(f"{name}.tar", first + odd + rest, 1)


def _odd_members() -> Iterator[BrokenTar]:
    """Members that are no files, or files of no use, before a good one."""
    last = pack([("last.jpg", PICTURE)])
    good = {"last.jpg": EMBEDDED}
    no_bytes = {"hard.jpg": tarfile.LNKTYPE, "soft.jpg": tarfile.SYMTYPE}
    no_files = {"folder.jpg": tarfile.DIRTYPE, "pipe.jpg": tarfile.FIFOTYPE}
    links = [header(kind, 0, name, "/etc/passwd") for name, kind in (no_bytes | no_files).items()]
    unsupported = dict.fromkeys(no_bytes, "unsupported_uri")
    yield _whole("links.tar", b"".join(links) + last, unsupported | good)
    sparse = header(tarfile.GNUTYPE_SPARSE, 512, "sparse.jpg") + bytes(512)
    yield _whole("sparse.tar", sparse + last, {"sparse.jpg": "unsupported_uri"} | good)
    # Parts that are packed apart are one stream, and this one is small.
    parts = [header(tarfile.REGTYPE, TOO_MANY_BYTES, "huge.jpg"), bytes(2**20), last]
    head, mebibyte, tail = (gzip.compress(part, mtime=0) for part in parts)
    huge = head + mebibyte * (TOO_MANY_BYTES // 2**20) + tail
    yield _whole("huge-member.tar", huge, {"huge.jpg": "too_many_bytes"} | good)
    useless = [
        header(tarfile.REGTYPE, 1, f"{number:05d}.cls") + bytes(512) for number in range(10_000)
    ]
    yield _whole("useless.tar", b"".join(useless) + last, good)
    yield _whole("no-members.tar", END, {})


def _odd_content() -> Iterator[BrokenTar]:
    """Whole tars of files that cannot be used, and of pictures with names that are only names."""
    names = [
        f"../{OUTSIDE}", f"../../{OUTSIDE}", f"a/../../{OUTSIDE}", f"/{OUTSIDE}",
        f"a\\..\\..\\{OUTSIDE}", "C:\\x.jpg", "new\nline.jpg", "été/猫 #?*[a].jpg",
        "n" * 300 + ".jpg",
    ]  # fmt: skip
    for tar, members in {
        "names": [(name, PICTURE, EMBEDDED) for name in names],
        "pictures": [
            ("cut.jpg", PICTURE[: len(PICTURE) // 2], TRUNCATED),
            ("page.jpg", b"<html>404</html>", NO_IMAGE),
            ("empty.png", b"", EMPTY),
            ("bomb.png", png(16_000, 16_000, b""), TOO_LARGE),
            ("good.jpg", PICTURE, EMBEDDED),
            ("text.webp", b"a text", NO_IMAGE),
        ],
        "json": [
            ("open.jpg", PICTURE, EMBEDDED),
            ("open.json", b'{"caption": ', "bad_row"),
            ("bytes.jpg", PICTURE, EMBEDDED),
            ("bytes.json", b"\xff\xfe\xff", "bad_row"),
            ("deep.jpg", PICTURE, EMBEDDED),
            ("deep.json", b"[" * 100_000, "bad_row"),
        ],
    }.items():
        data = pack([(name, content) for name, content, _ in members])
        yield _whole(f"{tar}.tar", data, {name: outcome for name, _, outcome in members})
