"""TIFF directories, which EXIF is made of too: which way is up, and whether they can be read.

Pillow reads every value of a directory, wherever it says that it lies; here only the tags are
walked, so that hostile ones are refused before they take memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from transforms.records import MediaError, Reason

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF begins: byte order and, with a plus sign, BigTIFF."""

MAX_PIECES = 200_000
"""Strips or tiles of a TIFF: Pillow keeps 300 bytes for each, and takes 4 microseconds."""

# Bytes a value, by the type of a tag (TIFF 6.0, section 2; 13 to 18 are later additions).
_UNIT = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_ORIENTATION = 0x0112
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325
_SUB_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability: those that Pillow reads.

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class _Entry(NamedTuple):
    """One tag: `length` values of `unit` bytes at `place` of the data, or in the tag (`inline`)."""

    tag: int
    unit: int
    length: int
    place: int
    inline: bool

    @property
    def size(self) -> int:
        return self.unit * self.length


class _Tiff:
    """The directories of the TIFF that begins at `start` of `data`."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data = data
        self.start = start
        self._order = "<" if data[start : start + 2] == b"II" else ">"
        self.big = b"+" in data[start + 2 : start + 4]
        place, size = (start + 8, 8) if self.big else (start + 4, 4)
        self.first = start + self._whole(place, size)

    def directory(self, place: int) -> Iterator[_Entry]:
        """The tags of the directory at `place`, as far as the bytes go."""
        line = struct.Struct(self._order + ("HHQQ" if self.big else "HHLL"))
        head, most = (8, 8) if self.big else (2, 4)
        count = self._whole(place, head)
        place += head
        count = min(count, max(0, len(self.data) - place) // line.size)
        body = memoryview(self.data)[place : place + count * line.size]
        for number, (tag, kind, values, at) in enumerate(line.iter_unpack(body), 1):
            unit = _UNIT.get(kind, 0)
            inline = unit * values <= most
            field = place + number * line.size - most
            yield _Entry(tag, unit, values, field if inline else self.start + at, inline)

    def directory_end(self, place: int) -> int:
        """Where the tags of the directory at `place` end, by its own count."""
        line, head = (20, 8) if self.big else (12, 2)
        return place + head + line * self._whole(place, head)

    def values(self, entry: _Entry) -> list[int]:
        """The whole numbers of a tag, as far as the bytes go."""
        if entry.unit not in (1, 2, 4, 8):
            return []
        kind = self._order + {1: "B", 2: "H", 4: "L", 8: "Q"}[entry.unit]
        data = self.data[entry.place : entry.place + entry.size]
        return [
            value
            for (value,) in struct.iter_unpack(kind, data[: len(data) // entry.unit * entry.unit])
        ]

    def _whole(self, place: int, size: int) -> int:
        field = self.data[place : place + size]
        return int.from_bytes(field, "little" if self._order == "<" else "big")


def orientation(info: Mapping[str | tuple[int, int], object]) -> int:
    """The EXIF orientation (1 to 8) that an opened picture's metadata asks for; 1 where none does.

    `info` is Pillow's. As Pillow does, XMP is asked where EXIF does not tell.
    """
    told = _told(info)
    return told if 1 <= told <= 8 else 1


def _told(info: Mapping[str | tuple[int, int], object]) -> int:
    exif = info.get("exif")
    if exif is None and isinstance(raw := info.get("Raw profile type exif"), str):
        exif = _from_hex(raw)
    if isinstance(exif, bytes):
        while exif.startswith(b"Exif\0\0"):
            exif = exif[6:]
        if exif.startswith(SIGNATURES):
            tiff = _Tiff(exif)
            found = [entry for entry in tiff.directory(tiff.first) if entry.tag == _ORIENTATION]
            if found and (value := tiff.values(found[-1])):
                return value[0]
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp")
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    if isinstance(xmp, bytes) and (match := _XMP_ORIENTATION.search(xmp)):
        return int(match[1])
    return 1


def _from_hex(raw: str) -> bytes:
    """EXIF as ImageMagick writes it into a PNG's text: three lines of heading, then hex."""
    try:
        return bytes.fromhex("".join(raw.split("\n")[3:]))
    except ValueError:
        return b""


def check_directories(data: bytes, start: int = 0) -> None:
    """Raise `MediaError` where the TIFF at `start` would take more memory than it has bytes.

    65,535 tags may each claim the whole file: their values must not overlap.
    """
    tiff = _Tiff(data, start)
    main = list(tiff.directory(tiff.first))
    claimed = _claimed(main, len(data))
    below = [entry for entry in main if entry.tag in _SUB_DIRECTORIES]
    for entry in below[: len(_SUB_DIRECTORIES)]:
        for place in tiff.values(entry)[:1]:
            claimed += _claimed(tiff.directory(start + place), len(data))
    # Writers do share a value or two.
    if claimed > 2 * len(data) + 4096:
        message = f"its tags claim {claimed} bytes of a file of {len(data)}"
        raise MediaError(Reason.CORRUPT_IMAGE, message)
    if any(entry.length > MAX_PIECES for entry in main if entry.tag in (_STRIPS, _TILES)):
        message = f"TIFF in more than {MAX_PIECES} strips or tiles: it would take too long"
        raise MediaError(Reason.UNSUPPORTED_IMAGE, message)


def _claimed(entries: Iterable[_Entry], end: int) -> int:
    """The bytes that the values of a directory take; what goes beyond the end is not read."""
    return sum(
        entry.size for entry in entries if not entry.inline and entry.place + entry.size <= end
    )


def tiff_ends_early(data: bytes) -> bool:
    """Whether a TIFF points behind its own end: at its directory, or at strips and tiles."""
    tiff = _Tiff(data)
    entries = {entry.tag: entry for entry in tiff.directory(tiff.first)}
    if tiff.directory_end(tiff.first) > len(data):
        return True
    if any(entry.place + entry.size > len(data) for entry in entries.values()):
        return True
    for places, sizes in ((_STRIPS, _STRIP_SIZES), (_TILES, _TILE_SIZES)):
        if places in entries and sizes in entries:
            pieces = zip(tiff.values(entries[places]), tiff.values(entries[sizes]), strict=False)
            if any(place + size > len(data) for place, size in pieces):
                return True
    return False


def sample_bits(data: bytes) -> int:
    """The bits of a sample that a TIFF's first directory states; 0 where it does not."""
    tiff = _Tiff(data)
    found = [entry for entry in tiff.directory(tiff.first) if entry.tag == 258]
    return next(iter(tiff.values(found[-1])), 0) if found else 0
