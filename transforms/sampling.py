"""A few of many references, spread over all of them, and the same ones each time; pure."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from transforms.records import MediaRef


@dataclass(slots=True)
class Sample:
    """The `size` references with the smallest hashes of what names them, of all that are added.

    Which ones does not depend on their order, and barely on what else is added: an archive that
    grows keeps most of its sample. `items` and `bytes` count all of them; `unsized` are those
    whose size no listing tells.
    """

    size: int
    items: int = 0
    bytes: int = 0
    unsized: int = 0
    _kept: list[tuple[int, int, MediaRef]] = field(default_factory=list)

    def add(self, refs: Iterable[MediaRef]) -> None:
        """Look at some more."""
        for ref in refs:
            self.items += 1
            self.bytes += ref.size or 0
            self.unsized += ref.size is None
            # The largest hash of those that are kept comes first: it is the next to go.
            entry = (-_hash(ref), -self.items, ref)
            if len(self._kept) < self.size:
                heapq.heappush(self._kept, entry)
            elif entry > self._kept[0]:
                heapq.heapreplace(self._kept, entry)

    @property
    def refs(self) -> list[MediaRef]:
        """The sample, in the order it was added in."""
        return [ref for _, _, ref in sorted(self._kept, key=lambda entry: -entry[1])]


def _hash(ref: MediaRef) -> int:
    told = f"{ref.uri}\0{ref.id or ''}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest())
