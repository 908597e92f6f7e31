"""What is listed against what an output holds: items by their version, by id, or as a tar's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.itemkeys import NO_KEYS, Keys, keys_of, keys_of_rows
from transforms.records import InputKind, MediaRef

_REFS_AT_ONCE = 8192


class Lookups(NamedTuple):
    """Which model's items are looked up, and how: by version, and if need be in two more ways.

    `unversioned` is for rows of manifests that do not tell a version, `tars` for whole tars.
    """

    model: str
    unversioned: bool
    tars: bool


def lookup_keys(uri: pa.Array, version: pa.Array, id_: pa.Array, lookups: Lookups) -> Keys:
    """The keys under which rows of `embeddings` and `failures` can be looked up, each once."""
    found = [keys_of_rows([pa.repeat("at", len(uri)), uri, version, id_])]
    if lookups.unversioned:
        found.append(keys_of_rows([pa.repeat("as", len(uri)), uri, id_]))
    if lookups.tars:
        # The name of a tar, and that of a member, may have a # in it.
        rows = zip(uri.to_pylist(), version.to_pylist(), strict=True)
        tars = {(name[:end], seen) for name, seen in rows for end in _marks(name)}
        found.append(keys_of(f"in\0{name}\0{seen}" for name, seen in tars))
    return np.unique(np.concatenate(found))


def _marks(uri: str) -> Iterator[int]:
    end = uri.find("#")
    while end >= 0:
        yield end
        end = uri.find("#", end + 1)


class Known:
    """The keys of all that an output holds of a model: 16 bytes a key, one or two an item."""

    def __init__(self) -> None:
        self._added: list[Keys] = []
        self._sorted = NO_KEYS

    def add(self, keys: Keys) -> None:
        """Take in some rows' keys."""
        self._added.append(keys)

    def missing(self, refs: Iterable[MediaRef], kind: InputKind) -> Iterator[MediaRef]:
        """Those of the listed references that the output does not hold.

        Of a tar it holds something when there is a row of one of its members, or of itself.
        """
        if self._added:
            # In place, as `np.unique` does not: a key that is there twice does no harm.
            self._sorted = np.concatenate([self._sorted, *self._added])
            self._added.clear()
            self._sorted.sort()
        listed = iter(refs)
        while some := list(islice(listed, _REFS_AT_ONCE)):
            held = self._has(keys_of(_told(ref) for ref in some))
            if kind == "tar":
                held |= self._has(keys_of(f"in\0{ref.uri}\0{ref.version}" for ref in some))
            yield from (some[index] for index in np.flatnonzero(~held))

    def _has(self, keys: Keys) -> npt.NDArray[np.bool_]:
        places = np.searchsorted(self._sorted, keys)
        there = places < len(self._sorted)
        there[there] = self._sorted[places[there]] == keys[there]
        return there


def _told(ref: MediaRef) -> str:
    if ref.version_unknown:
        return f"as\0{ref.uri}\0{ref.id or ''}"
    return f"at\0{ref.uri}\0{ref.version}\0{ref.id or ''}"
