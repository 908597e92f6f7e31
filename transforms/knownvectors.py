"""KnownVectors: which bytes have a vector already, and where it is.

What is known is kept on this machine's disk, as digests; the vectors stay in the tables.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable

import pyarrow as pa

from transforms.ahead import in_order
from transforms.itemkeys import keyed_file
from transforms.ledger import FILES_AT_ONCE, LedgerSpec
from transforms.records import ContentKey
from transforms.schemas import ITEM
from transforms.stored import StoredFile, open_held, stored_files

FILES_IN_MEMORY = 8
"""Files whose vectors are kept once one of them was wanted."""

SHARDS_IN_WORK = 64
"""Shards whose rows are kept before they are a file: those of bundles that failed, or that another
worker writes, never are one here."""

_KEY = ("modality", "content_sha256")
_CONTENT = (*_KEY, "width", "height", "text_windows", "bytes", "embedding")
"""What rows of the same bytes have in common."""


class KnownVectors:
    """Vectors by the content that they are of: those of the output, and those of this process.

    Thread-safe. Nothing is read from the output before somebody asks.
    """

    def __init__(self, output: str, model_id: str) -> None:
        self._output = output
        self._model_id = model_id
        self._lock = threading.RLock()
        self._index: sqlite3.Connection | None = None
        self._files: dict[str, int] = {}
        self._urls: list[str] = []
        self._unwritten: dict[bytes, tuple[pa.Table, int]] = {}
        self._shards: dict[str, list[bytes]] = {}
        self._read: OrderedDict[str, pa.Table] = OrderedDict()

    def has(self, content: ContentKey) -> bool:
        """Whether these bytes have a vector."""
        key = _key(*content)
        with self._lock:
            return key in self._unwritten or self._place(key) is not None

    def find(self, contents: Iterable[ContentKey]) -> dict[ContentKey, pa.Table]:
        """The item and the columns `_CONTENT` of a row of each that is known, as one-row tables."""
        found = {}
        places = []
        with self._lock:
            for content in dict.fromkeys(contents):
                key = _key(*content)
                if key in self._unwritten:
                    table, row = self._unwritten[key]
                    found[content] = table.slice(row, 1)
                elif (place := self._place(key)) is not None:
                    places.append((*place, content))
            # File by file: each is read once.
            for number, row, content in sorted(places):
                line = self._table(self._urls[number]).slice(row, 1)
                if _content_of_row(line) == content:
                    found[content] = line
                else:
                    # Another worker has done the shard again, and its rows are in other places.
                    self._opened().execute("DELETE FROM known WHERE content = ?", (_key(*content),))
        return found

    def look_again(self) -> None:
        """Take in what the output has got since it was looked at."""
        with self._lock:
            self._take_in(self._opened())

    def add(self, shard_id: str, embeddings: pa.RecordBatch) -> None:
        """Take in rows that have just been embedded, until `written` says where they are."""
        table = pa.Table.from_batches([embeddings]).select([*ITEM, *_CONTENT])
        with self._lock:
            keys = self._shards.setdefault(shard_id, [])
            for row, key in _keyed(embeddings):
                if key not in self._unwritten:
                    self._unwritten[key] = (table, row)
                    keys.append(key)
            while len(self._shards) > SHARDS_IN_WORK:
                self._forget(next(iter(self._shards)))

    def written(self, shard_id: str, url: str, embeddings: pa.Table) -> None:
        """A shard's rows, in this order, are a file now."""
        with self._lock:
            index = self._opened()
            if url in self._files:
                # Done again: its rows may be others, in other places.
                index.execute("DELETE FROM known WHERE file = ?", (self._files[url],))
                self._read.pop(url, None)
            self._enter(index, url, embeddings)
            self._forget(shard_id)

    def _forget(self, shard_id: str) -> None:
        for key in self._shards.pop(shard_id, ()):
            del self._unwritten[key]

    def _enter(self, index: sqlite3.Connection, url: str, embeddings: pa.Table) -> None:
        number = self._files.setdefault(url, len(self._files))
        if number == len(self._urls):
            self._urls.append(url)
        index.executemany(
            "INSERT OR IGNORE INTO known VALUES (?, ?, ?)",
            ((key, number, row) for row, key in _keyed(embeddings)),
        )

    def _place(self, key: bytes) -> tuple[int, int] | None:
        query = "SELECT file, place FROM known WHERE content = ?"
        place: tuple[int, int] | None = self._opened().execute(query, (key,)).fetchone()
        return place

    def _opened(self) -> sqlite3.Connection:
        if self._index is None:
            index = keyed_file("known (content BLOB PRIMARY KEY, file INT, place INT)")
            self._files, self._urls = {}, []
            self._take_in(index)
            self._index = index
        return self._index

    def _take_in(self, index: sqlite3.Connection) -> None:
        stored = stored_files(self._output, "embeddings", model=self._model_id)
        files = (file for file in stored if file.url not in self._files)
        for file, keys in in_order(_read_keys, files, FILES_AT_ONCE):
            self._enter(index, file.url, keys)

    def _table(self, url: str) -> pa.Table:
        if url not in self._read:
            with open_held(url) as parquet:
                self._read[url] = parquet.read([*ITEM, *_CONTENT])
            if len(self._read) > FILES_IN_MEMORY:
                self._read.popitem(last=False)
        self._read.move_to_end(url)
        return self._read[url]


def _read_keys(file: StoredFile) -> tuple[StoredFile, pa.Table]:
    with open_held(file.url) as parquet:
        return file, parquet.read([*_KEY, "unused"])


def _content_of_row(line: pa.Table) -> tuple[str, ...] | None:
    columns = [line.column(name).to_pylist() for name in _KEY]
    return next(zip(*columns, strict=True), None)


def _keyed(rows: pa.Table | pa.RecordBatch) -> Iterable[tuple[int, bytes]]:
    """Row numbers and keys of rows whose vector is that of their bytes, and of nothing else."""
    columns = (rows.column(name).to_pylist() for name in (*_KEY, "unused"))
    for row, (modality, digest, unused) in enumerate(zip(*columns, strict=True)):
        # Of a pair whose text was of no use, the picture; but it may have been a text's half.
        if modality != "pair" and unused is None:
            yield row, _key(modality, digest)


def _key(modality: str, sha256: str) -> bytes:
    return modality[:1].encode() + bytes.fromhex(sha256)[:16]


@functools.lru_cache(maxsize=1)
def _load_once(spec: LedgerSpec) -> KnownVectors:
    return KnownVectors(spec.output, spec.model_id)


_loading = threading.Lock()


def shared_vectors(spec: LedgerSpec) -> KnownVectors:
    """The one index of this process and run."""
    with _loading:
        return _load_once(spec)
