"""The vectors of an output as a reader takes them: of each item the version embedded last."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.itemkeys import KEY_BYTES, NO_KEYS, Keys, keys_of, keys_of_rows
from transforms.stored import StoredFile, open_parquet, stored_files

ROWS_AT_ONCE = 16 * 1024

Vectors = npt.NDArray[np.float32]


class Items(NamedTuple):
    """Some items: `uris[N]` and their `vectors[N, D]`, L2-normalised."""

    uris: list[str]
    vectors: Vectors


def latest_vectors(
    output: str,
    model_id: str,
    uris: Collection[str] | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Iterator[Items]:
    """The latest vector of every item (`uri` and `id`) of a model, a part of a file at a time.

    Only of these `uris` if given; of about `sample` items, chosen at random, if told. Keeps 32
    bytes an item. Raises what the store and pyarrow raise.
    """
    files = list(stored_files(output, "embeddings", model=model_id))
    wanted = None if uris is None else np.sort(keys_of(uris))
    for file, rows in _latest_rows(files, wanted, sample, seed):
        yield from _read(file, rows)


def collect(items: Iterator[Items]) -> Items:
    """All of them in one piece."""
    parts = list(items)
    if not parts:
        return Items([], np.empty((0, 0), np.float32))
    uris = [uri for part in parts for uri in part.uris]
    return Items(uris, np.concatenate([part.vectors for part in parts]))


def _latest_rows(
    files: Sequence[StoredFile], wanted: Keys | None, sample: int | None, seed: int
) -> Iterator[tuple[StoredFile, npt.NDArray[np.int64]]]:
    """Of each file the rows that are some item's latest, in order."""
    keys, times, places = [NO_KEYS], [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    for number, file in enumerate(files):
        with open_parquet(file.url) as parquet:
            table = parquet.read(["uri", "id", "embedded_at"]).combine_chunks()
        rows = np.arange(table.num_rows)
        if wanted is not None:
            rows = rows[np.isin(keys_of_rows([_text(table, "uri")]), wanted)]
            table = table.take(pa.array(rows))
        keys.append(keys_of_rows([_text(table, "uri"), _text(table, "id")]))
        times.append(pc.cast(table.column("embedded_at"), pa.int64()).to_numpy())
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    key, time, place = (np.concatenate(column) for column in (keys, times, places))
    halves = np.frombuffer(key.tobytes(), np.uint64).reshape(-1, KEY_BYTES // 8)
    order = np.lexsort((place[:, 1], place[:, 0], time, halves[:, 1], halves[:, 0]))
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    chosen = order[is_last]
    if sample is not None and sample < len(chosen):
        chosen = chosen[random.Random(seed).sample(range(len(chosen)), sample)]
    place = place[chosen]
    place = place[np.lexsort((place[:, 1], place[:, 0]))]
    for number in np.unique(place[:, 0]).tolist():
        yield files[number], place[place[:, 0] == number, 1]


def _text(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _read(file: StoredFile, rows: npt.NDArray[np.int64]) -> Iterator[Items]:
    start = 0
    with open_parquet(file.url) as parquet:
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["uri", "embedding"]):
            here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
            start += batch.num_rows
            if not len(here):
                continue
            column = batch.column("embedding")
            vectors = column.flatten().to_numpy(zero_copy_only=False)
            vectors = vectors.reshape(len(batch), column.type.list_size)
            whole = len(here) == len(batch)
            uris = batch.column("uri") if whole else batch.column("uri").take(pa.array(here))
            yield Items(uris.to_pylist(), vectors if whole else vectors[here])
