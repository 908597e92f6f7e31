from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeModel
from test_embedding import RUN
from test_embedding import batch as decoded_batch
from test_scoring import label_vectors

from transforms.encoding import embed_batch
from transforms.records import BatchPosition, Failure, MediaRef, Reason, RunSpec, Stage, TaggedBatch
from transforms.schemas import embeddings_schema, failures_schema, predictions_schema
from transforms.scoring import tag_batch
from transforms.storage import locate, publish
from transforms.writing import _WriteWholeShards, parquet_bytes, table_file, write_shard

LABELS = {"set-0": label_vectors(np.eye(3), names=("a", "b", "c"), top_k=2)}


def tagged(colours: list[int], seq: int = 0, of: int = 1, failures=()) -> TaggedBatch:
    embedded = embed_batch(decoded_batch(colours, failures), FakeModel(), 3, RUN)
    position = BatchPosition("s1", seq, seq == of - 1)
    object.__setattr__(embedded, "position", position)
    return tag_batch(embedded, LABELS, "run")


@pytest.fixture
def run(tmp_path) -> RunSpec:
    return RunSpec("run", "2026-01-31", str(tmp_path / "out"))


def test_one_file_per_table_where_the_contract_says(run):
    gone = Failure(MediaRef("u9", "v"), Stage.READ, Reason.READ_ERROR, "timed out")
    account = write_shard([tagged([1, 2], failures=(gone,))], run, "net-1")
    assert account.files == [
        f"{run.output}/embeddings/model=net-1/dt=2026-01-31/shard-s1.parquet",
        f"{run.output}/predictions/label_set=set-0/model=net-1/dt=2026-01-31/shard-s1.parquet",
        f"{run.output}/failures/dt=2026-01-31/shard-s1.parquet",
    ]
    embeddings, predictions, failures = (pq.ParquetFile(file).read() for file in account.files)
    assert embeddings.schema == embeddings_schema(3)
    assert predictions.schema == predictions_schema()
    assert failures.schema == failures_schema()
    assert (embeddings.num_rows, predictions.num_rows) == (2, 4)
    (row,) = failures.to_pylist()
    assert (row["stage"], row["reason"], row["message"]) == ("read", "read_error", "timed out")
    assert row["retryable"]
    assert (account.embedded, account.failed, account.bytes) == (2, 1, 14)
    assert account.labels == {"set-0": Counter(a=2)}


def test_batches_are_written_in_their_order(run):
    account = write_shard([tagged([3], 1, 2), tagged([1, 2], 0, 2)], run, "net-1")
    assert pq.ParquetFile(account.files[0]).read().column("uri").to_pylist() == ["u0", "u1", "u0"]


def test_a_shard_without_rows_still_has_its_files(run):
    account = write_shard([tagged([])], run, "net-1")
    assert [pq.ParquetFile(file).metadata.num_rows for file in account.files] == [0, 0, 0]
    assert account.examples == []


def test_a_shard_is_written_when_it_is_whole(run):
    writer = _WriteWholeShards(run, "net-1", {})
    writer.start_bundle()
    assert list(writer.process(tagged([1], 0, 2))) == []
    assert not os.path.exists(run.output)
    (account,) = writer.process(tagged([2], 1, 2))
    assert account.embedded == 2
    writer.finish_bundle()


def test_part_of_a_shard_is_never_written_as_the_whole(run):
    writer = _WriteWholeShards(run, "net-1", {})
    writer.start_bundle()
    assert list(writer.process(tagged([1], 0, 2))) == []
    with pytest.raises(RuntimeError, match=r"batches of shards \['s1'\] did not arrive together"):
        writer.finish_bundle()
    assert not os.path.exists(run.output)


def test_the_parquet_that_warehouses_want():
    schema = embeddings_schema(3)
    table = pa.Table.from_batches(
        [embed_batch(decoded_batch([1, 2]), FakeModel(), 3, RUN).embeddings]
    )
    metadata = pq.ParquetFile(pa.BufferReader(parquet_bytes(table))).metadata
    group = metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(metadata.num_columns)}
    assert set(columns) == {*schema.names} - {"embedding"} | {"embedding.list.element"}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert (columns["uri"].statistics.min, columns["uri"].statistics.max) == ("u0", "u1")
    assert columns["embedding.list.element"].statistics is None


def test_urls_of_files():
    assert (
        table_file("gs://b/out/", "7", "failures", "dt=1")
        == "gs://b/out/failures/dt=1/shard-7.parquet"
    )


def test_publish_replaces_in_one_step(tmp_path):
    path = tmp_path / "deep" / "file.parquet"
    publish(str(path), b"old" * 100_000)
    old, new = b"old" * 100_000, b"new" * 100_000
    stop = threading.Event()

    def look() -> set[bytes]:
        seen = set()
        while not stop.is_set():
            seen.add(path.read_bytes())
        return seen

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(50):
            publish(str(path), new)
            publish(str(path), old)
        stop.set()
        # A moment without the file would have ended the reader with FileNotFoundError.
        assert looking.result() == {old, new}
    assert os.listdir(path.parent) == ["file.parquet"]


def test_publish_leaves_nothing_when_it_fails(tmp_path):
    target = tmp_path / "file"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        publish(str(target), b"content")
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed, nor known yet
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ImportError, match=r"s3:// needs a package .* pip install 'beamtag\[s3\]'"):
        locate("s3://bucket/key")


def test_publish_to_an_object_store():
    publish("memory://bucket/runs/r.json", b"{}")
    assert fsspec.filesystem("memory").cat_file("/bucket/runs/r.json") == b"{}"
