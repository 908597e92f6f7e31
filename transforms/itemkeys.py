"""Digests that stand for items: of columns, compared in arrays, kept in files aside."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

KEY_BYTES = 16
Keys = npt.NDArray[np.bytes_]
Numbers = npt.NDArray[np.integer[Any]]

NO_KEYS: Keys = np.empty(0, f"S{KEY_BYTES}")

_PARTS = 64
"""How many files a spill has: one of them at a time is in memory."""


def joined(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.Array | pa.ChunkedArray:
    """Text columns made one, a row's values with NULs between them; null is as empty."""
    texts = [pc.fill_null(pc.cast(column, pa.large_string()), "") for column in columns]
    return pc.binary_join_element_wise(*texts, pa.scalar("\0", pa.large_string()))


def keys_of(texts: Iterable[str]) -> Keys:
    """A digest of each text."""
    return _keys(text.encode("utf-8", "surrogateescape") for text in texts)


def keys_of_rows(columns: Sequence[pa.Array | pa.ChunkedArray]) -> Keys:
    """A digest of each row of text columns; the same as `keys_of` of its joined text."""
    return _keys(_bytes_of(joined(columns)))


def keys_of_runs(columns: Sequence[pa.Array]) -> tuple[Keys, Numbers]:
    """A digest of each run of rows that say the same, and how many rows it has."""
    runs = pc.run_end_encode(joined(columns), run_end_type=pa.int64())
    return _keys(_bytes_of(runs.values)), np.diff(runs.run_ends.to_numpy(), prepend=0)


def _bytes_of(texts: pa.Array | pa.ChunkedArray) -> Iterator[memoryview]:
    """Large strings, none of them null, as their bytes."""
    # Not by way of Python's strings: this is a night's time for an archive that has not changed.
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset :][: len(chunk) + 1].tolist()
        content = memoryview(data or b"")
        yield from (content[start:end] for start, end in itertools.pairwise(ends))


def _keys(texts: Iterable[bytes | memoryview]) -> Keys:
    digests = [hashlib.blake2b(text, digest_size=KEY_BYTES).digest() for text in texts]
    return np.frombuffer(b"".join(digests), NO_KEYS.dtype)


def alike(
    records: npt.NDArray[np.void], columns: Sequence[Numbers]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Which records have the key and the columns of another one before them: that, and they.

    The order is that of `file` and `row`.
    """
    ranked = (records["row"], records["file"], *reversed(columns), records["key"])
    order = np.lexsort(ranked)
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in ranked[2:]:
        same &= column[order[1:]] == column[order[:-1]]
    return order[:-1][same], order[1:][same]


def keyed_file(table: str) -> sqlite3.Connection:
    """A table with a primary key in a file of this process's own, gone with it; not thread-safe.

    32 MiB of it are in memory at the most. `table` is SQL: a name and columns.
    """
    file = sqlite3.connect("", check_same_thread=False)
    file.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32768;"
        f"CREATE TABLE {table} WITHOUT ROWID"
    )
    return file


class Spill:
    """Records with a `key`, kept in temporary files: all records of one key are in one part."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        with ExitStack() as stack:
            self._files = [
                stack.enter_context(tempfile.TemporaryFile(prefix="beamtag-"))
                for _ in range(_PARTS)
            ]
            self._stack = stack.pop_all()

    def add(self, keys: Keys, **columns: Numbers | int) -> None:
        """Put records aside: for each key what the columns say. Raises OSError (a full disk)."""
        records: npt.NDArray[np.void] = np.empty(len(keys), self._dtype)
        records["key"] = keys
        for name, values in columns.items():
            records[name] = values
        parts = keys.view(np.uint8)[::KEY_BYTES] % _PARTS
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(_PARTS), side="right").tolist()
        records = records[order]
        for file, start, end in zip(self._files, [0, *ends], ends, strict=False):
            if start < end:
                file.write(records[start:end].tobytes())

    def parts(self) -> Iterator[npt.NDArray[np.void]]:
        """The records, part by part."""
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), self._dtype)

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
