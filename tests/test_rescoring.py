"""Stored vectors become batches that only have to be scored."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from tables import NOW, embeddings

from transforms.ledger import Unscored
from transforms.progress import progress
from transforms.publishing import publish
from transforms.records import BatchPosition, EmbeddedBatch
from transforms.rescoring import ROWS_AT_ONCE, ReadStored, read_stored
from transforms.stored import DamagedError, stored_files


def stored(output: object, count: int, shard: str = "0", dim: int = 2, dt: str = "2026-01-02"):
    """A file of this many items with a column that is carried, and what it holds."""
    vectors = np.random.default_rng(count).random((count, dim), np.float32)
    items = [(f"gs://archive/{number}", f"v{number}", None) for number in range(count)]
    shelves = {"shelf": [f"shelf {number}" for number in range(count)]}
    url = embeddings(output, items, shard=shard, dt=dt, vectors=vectors, carried=shelves)
    (file,) = (file for file in stored_files(str(output), "embeddings") if file.url == url)
    return file, items, vectors


def check(batches: list[EmbeddedBatch], items: list, vectors: np.ndarray) -> None:
    rows = pa.Table.from_batches([batch.embeddings for batch in batches])
    assert rows.column_names == ["uri", "version", "id", "embedding", "embedded_at", "shelf"]
    assert list(zip(*(rows.column(name).to_pylist() for name in rows.column_names[:3]),
                    strict=True)) == items  # fmt: skip
    flat = rows.column("embedding").combine_chunks().flatten().to_numpy()
    assert (flat == vectors.reshape(-1)).all()
    assert set(rows.column("embedded_at").to_pylist()) <= {NOW}
    assert rows.column("shelf").to_pylist() == [f"shelf {number}" for number in range(len(items))]
    assert {batch.failures for batch in batches} == {()}


@pytest.mark.parametrize(
    "count", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE, 20 * ROWS_AT_ONCE]
)
def test_a_file_in_batches(tmp_path, count):
    """Also of several row groups, whose ends are not those of batches."""
    file, items, vectors = stored(tmp_path, count)
    progress.reset()
    batches = list(read_stored(Unscored(file, ("w-1", "w-2"))))
    check(batches, items, vectors)
    assert progress.scored == count
    progress.reset()
    sizes = [batch.embeddings.num_rows for batch in batches]
    assert max(sizes) <= ROWS_AT_ONCE
    # Only the last tells that it is, and of no rows there is one batch, or nothing were written.
    assert [batch.position for batch in batches] == [
        BatchPosition("0", seq, last=seq == len(batches) - 1, dt="2026-01-02")
        for seq in range(max(1, len(batches)))
    ]
    assert {batch.label_sets for batch in batches} == {("w-1", "w-2")}


def test_several_files_through_a_pipeline(tmp_path):
    files = [stored(tmp_path, count, str(count), dt=f"2026-01-0{count}") for count in (2, 5, 1)]
    unscored = [Unscored(file, (f"w-{file.shard_id}",)) for file, _, _ in files]

    def matches(found: list[EmbeddedBatch]) -> None:
        assert len(found) == 3
        for batch in found:
            count = int(batch.position.shard_id)
            _, items, vectors = next(of for of in files if len(of[1]) == count)
            check([batch], items, vectors)
            assert batch.position == BatchPosition(str(count), 0, True, dt=f"2026-01-0{count}")
            assert batch.label_sets == (f"w-{count}",)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create(unscored) | ReadStored(), matches)
    progress.reset()


def test_a_large_file_is_not_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.writing.ROW_GROUP_ROWS", 2 * ROWS_AT_ONCE)
    file, _, vectors = stored(tmp_path, 30 * ROWS_AT_ONCE, dim=64)
    before = pa.total_allocated_bytes()
    most = rows = 0
    for batch in read_stored(Unscored(file, ())):
        most = max(most, pa.total_allocated_bytes() - before)
        rows += batch.embeddings.num_rows
    assert rows == len(vectors)
    assert most < vectors.nbytes / 4


def test_a_file_that_breaks_off_is_named(tmp_path):
    file, _, _ = stored(tmp_path, 1000)
    with open(file.url, "rb") as opened:
        content = opened.read()
    publish(file.url, content[: len(content) // 2])
    with pytest.raises(DamagedError, match=f"^cannot read {file.url}: "):
        list(read_stored(Unscored(file, ())))
