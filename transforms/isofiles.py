"""AVIF's container: how large the pictures in it are coded, whatever it claims that they are.

libavif decodes what is coded and then scales it to what the container claims, so a file of three
kilobytes and 64 x 64 pixels may take half a gigabyte. Sources: ISO/IEC 14496-12 (boxes), 8.11.3
(`iloc`), and the AV1 Bitstream Specification 5.3 (OBUs) and 5.5 (sequence header).
"""

from __future__ import annotations

from collections.abc import Iterator

from transforms.records import MediaError, Reason

_CONTAINERS = (b"meta", b"moov", b"trak", b"mdia", b"minf", b"stbl")

_STEPS = 20_000
"""Boxes, items and OBUs that are looked at: an ordinary picture has thirty."""

_SEQUENCE_HEADER = 1
_HAS_SIZE, _HAS_EXTENSION = 0x02, 0x04


def boxes_end(data: bytes) -> int:
    """Where the last top-level box ends, by what it says: behind the data where that was cut."""
    return max((end for _, _, end in _Walk(data).boxes(0, len(data))), default=0)


def coded_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest AV1 picture that is coded in an AVIF; zeros if none is found.

    Looked at are the items of a still picture, and the first sample of each track. Raises
    `MediaError` where there are too many.
    """
    walk = _Walk(data)
    sizes = (size for place in walk.payloads() for size in walk.sequence_sizes(place))
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


class _Walk:
    """A walk over an ISO file, of a bounded number of steps."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps = 0

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _STEPS:
            message = f"more than {_STEPS} boxes and items: it would take too long to decode"
            raise MediaError(Reason.UNSUPPORTED_IMAGE, message)

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self._data[place : place + size], "big")

    def boxes(self, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The boxes between two places: kind, where the content begins, where the box ends."""
        while place + 8 <= end:
            self._step()
            size, head = self._number(place, 4), 8
            if size == 1:
                size, head = self._number(place + 8, 8), 16
            following = place + max(head, size) if size else end  # 0: up to the end of all
            yield self._data[place + 4 : place + 8], place + head, following
            place = following

    def payloads(self) -> Iterator[int]:
        """Where coded pictures begin."""
        waiting = [(0, len(self._data))]
        locations: list[tuple[int, int]] = []
        stored = 0  # where `idat` is, in which items may lie
        while waiting:
            start, limit = waiting.pop()
            for kind, content, end in self.boxes(start, limit):
                if kind in _CONTAINERS:
                    inside = content + 4 if kind == b"meta" else content
                    waiting.append((inside, min(end, limit)))
                elif kind == b"iloc":
                    locations += self._item_places(content, min(end, limit))
                elif kind == b"idat":
                    stored = content
                elif kind in (b"stco", b"co64"):
                    yield self._number(content + 8, 4 if kind == b"stco" else 8)
        for method, place in locations:
            yield stored + place if method == 1 else place

    def _item_places(self, place: int, end: int) -> Iterator[tuple[int, int]]:
        """How and where each item of an `iloc` box begins: 0 in the file, 1 in `idat`."""

        def number(size: int) -> int:
            nonlocal place
            place += size
            return self._number(place - size, size)

        version = number(4) >> 24
        sizes = number(2)
        of_offset, of_length, of_base = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        of_index = sizes & 15 if version in (1, 2) else 0
        for _ in range(number(4 if version == 2 else 2)):
            if place >= end:
                return
            number(4 if version == 2 else 2)
            method = number(2) & 15 if version in (1, 2) else 0
            number(2)
            base, extents = number(of_base), number(2)
            self._step()
            if extents:
                yield method, base + self._number(place + of_index, of_offset)
            place += extents * (of_index + of_offset + of_length)

    def sequence_sizes(self, place: int) -> Iterator[tuple[int, int]]:
        """The largest frame of each sequence header among the OBUs from `place` on."""
        while place < len(self._data):
            self._step()
            head = self._data[place]
            place += 2 if head & _HAS_EXTENSION else 1
            size = 0
            if head & _HAS_SIZE:
                size, place = _leb128(self._data, place)
            if head >> 3 & 15 == _SEQUENCE_HEADER:
                yield _frame_size(_Bits(self._data[place : place + 64]))
            if not head & _HAS_SIZE:  # then it is the last
                return
            place += size


class _Bits:
    """A reader of bits, the highest of each byte first; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        return (self._value >> self._left if self._left > 0 else self._value) & ((1 << count) - 1)


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for number, byte in enumerate(data[place : place + 8]):
        value |= (byte & 0x7F) << 7 * number
        if not byte & 0x80:
            return value, place + number + 1
    return value, place + 8


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """The largest width and height that a sequence header allows (AV1, 5.5.1)."""
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        _skip_timing_and_points(bits)
    of_width, of_height = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(of_width) + 1, bits.take(of_height) + 1


def _skip_timing_and_points(bits: _Bits) -> None:
    delay = 0
    timing = bits.take(1)
    model = 0
    if timing:
        bits.take(64)
        if bits.take(1):  # equal intervals, whose length is an Exp-Golomb number
            zeros = 0
            while zeros < 32 and not bits.take(1):
                zeros += 1
            bits.take(zeros if zeros < 32 else 0)
        model = bits.take(1)
        if model:
            delay = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    display = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if model and bits.take(1):
            bits.take(2 * delay + 1)
        if display and bits.take(1):
            bits.take(4)
