from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from fakes import FakeModel
from test_embedding import RUN
from test_embedding import batch as decoded_batch
from test_scoring import label_vectors

from transforms.encoding import embed_batch
from transforms.ledger import TAR_END, LedgerSpec, unscored_files
from transforms.publishing import PublishError
from transforms.records import (
    BatchPosition,
    Counts,
    Failure,
    MediaRef,
    Reason,
    RunSpec,
    Stage,
    TaggedBatch,
)
from transforms.runlock import LostPlaceError, take_place
from transforms.schemas import (
    SCHEMA_VERSION,
    VERSION_KEY,
    embeddings_schema,
    failures_schema,
    predictions_schema,
)
from transforms.scoring import tag_batch
from transforms.storage import locate
from transforms.writing import (
    ROW_GROUP_ROWS,
    SHARDS_AHEAD,
    WriteShards,
    _WriteGrouped,
    _WriteWholeShards,
    parquet_bytes,
    table_file,
    write_shard,
)

GONE = Failure(MediaRef("u9", "v"), Stage.READ, Reason.READ_ERROR, "timed out")
LABELS = {"set-0": label_vectors(np.eye(3), names=("a", "b", "c"), top_k=2)}


def tagged(
    colours: list[int], seq: int = 0, of: int = 1, failures=(), *, shard: str = "s1", **position
) -> TaggedBatch:
    embedded = embed_batch(decoded_batch(colours, failures), FakeModel(), 3, RUN)
    position = BatchPosition(shard, seq, seq == of - 1, **position)
    object.__setattr__(embedded, "position", position)
    return tag_batch(embedded, LABELS, "run")


def footer(file: str) -> dict[bytes, bytes]:
    return pq.read_metadata(file).metadata


@pytest.fixture
def run(tmp_path) -> RunSpec:
    return RunSpec("run", "2026-01-31", str(tmp_path / "out"))


def test_one_file_per_table_where_the_contract_says(run):
    account = write_shard([tagged([1, 2], failures=(GONE,))], run, "net-1")
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


def test_all_tables_have_files_where_one_of_them_has_rows(run):
    account = write_shard([tagged([], failures=(GONE,))], run, "net-1")
    assert [pq.read_metadata(file).num_rows for file in account.files] == [0, 0, 1]
    assert account.examples == []


def test_nothing_is_written_of_a_shard_of_which_all_was_done(run):
    done = replace(tagged([]).embedded, counts=Counts(listed=3, reused=2, known_failures={"e": 1}))
    account = write_shard([tag_batch(done, LABELS, "run")], run, "net-1")
    assert (account.files, account.listed, account.reused, account.failed) == ([], 3, 2, 1)
    assert not os.path.exists(run.output)


def test_the_last_shard_of_a_tar_says_so(run):
    """Also where nothing is new in it: it ends what the shards before it have begun."""
    for shard_id, colours, end in [("t-r-0000", [1], False), ("t-r-0001", [], True)]:
        account = write_shard([tagged(colours, shard=shard_id, end=end)], run, "net-1")
        ends = {
            file[len(run.output) :].split("/")[1]: TAR_END in footer(file) for file in account.files
        }
        assert ends == {"embeddings": end, "predictions": False, "failures": False}, shard_id
        assert {footer(file)[VERSION_KEY] for file in account.files} == {b"%d" % SCHEMA_VERSION}


def test_a_shard_that_is_stored_gets_its_predictions_and_nothing_else(run):
    stored = tagged([1, 2], dt="2025-12-31")
    account = write_shard([stored], run, "net-1")
    (file,) = account.files
    assert file == (
        f"{run.output}/predictions/label_set=set-0/model=net-1/dt=2025-12-31/shard-s1.parquet"
    )
    assert os.listdir(run.output) == ["predictions"]
    assert (account.scored, account.listed, account.embedded) == (2, 0, 0)
    # A file without rows is scored once too, not every night.
    (file,) = write_shard([tagged([], dt="2025-12-30")], run, "net-1").files
    assert pq.read_metadata(file).num_rows == 0


def test_a_bundle_that_is_done_again_overwrites_its_files(run):
    first = write_shard([tagged([1, 2], failures=(GONE,))], run, "net-1").files
    account = write_shard([tagged([1, 2, 3])], run, "net-1")
    assert account.files == first
    assert [pq.read_metadata(file).num_rows for file in first] == [3, 6, 0]
    names = {os.path.join(at, name) for at, _, names in os.walk(run.output) for name in names}
    assert names == set(first)


@pytest.mark.parametrize("broken", ["embeddings", "predictions", "failures"])
def test_what_breaks_off_leaves_no_stray_predictions(run, broken):
    """What is embedded and not scored the next run scores; the other way round is damage."""
    place = Path(run.output, broken)
    place.parent.mkdir()
    place.write_bytes(b"no folder")
    with pytest.raises(PublishError):
        write_shard([tagged([1, 2])], run, "net-1")
    place.unlink()
    written = sorted(
        path.relative_to(run.output).parts[0] for path in Path(run.output).rglob("*.parquet")
    )
    assert written == {
        "embeddings": [], "predictions": ["embeddings"], "failures": ["embeddings", "predictions"],
    }[broken]  # fmt: skip
    unscored = unscored_files(run.output, "net-1", ["set-0", "set-1"])
    lacking = {"embeddings": [], "predictions": [("set-0", "set-1")], "failures": [("set-1",)]}
    assert [file.label_sets for file in unscored] == lacking[broken]


def writer_of(settings: WriteShards) -> _WriteWholeShards:
    """A writer in a bundle of its own."""
    writer = _WriteWholeShards(settings)
    writer.setup()
    writer.start_bundle()
    return writer


def test_a_shard_is_written_when_it_is_whole(run):
    writer = writer_of(WriteShards(run, "net-1"))
    assert list(writer.process(tagged([1], 0, 2))) == []
    assert not os.path.exists(run.output)
    written = [*writer.process(tagged([2], 1, 2), 7, GlobalWindow()), *writer.finish_bundle()]
    (account,) = written
    assert account.value.embedded == 2
    assert (account.timestamp, account.windows) == (7, (GlobalWindow(),))
    assert list(writer.finish_bundle()) == []


@pytest.fixture
def held(run):
    """A writer that stops before each file, whether it has come there, and what lets it go on."""
    there, go_on = threading.Event(), threading.Event()

    def check(*args):
        there.set()
        assert go_on.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.writing.check_place", check)
        ledger = LedgerSpec(run.output, "net-1", "none", "")
        yield writer_of(WriteShards(run, "net-1", ledger=ledger)), there, go_on


def given(writer: _WriteWholeShards, shard: str) -> list[WindowedValue]:
    """What a writer gives when it is given a whole shard, without vectors."""
    whole = tagged([], failures=(GONE,), shard=shard)
    return list(writer.process(whole, 0, GlobalWindow()))


def test_the_stages_above_go_on_while_shards_are_written(run, held):
    """Up to a bound; what is not written by then is waited for."""
    writer, writing, go_on = held
    for number in range(SHARDS_AHEAD):
        assert given(writer, f"s{number}") == []
    assert writing.wait(60)
    assert list(Path(run.output).rglob("shard-*.parquet")) == []
    threading.Timer(0.2, go_on.set).start()
    shards = given(writer, "s9")
    assert shards  # one had to be written before this one was taken
    shards += writer.finish_bundle()
    assert len({file for account in shards for file in account.value.files}) == 9


def test_what_a_failed_bundle_was_writing_is_done_before_its_retry(run, held):
    writer, started, go_on = held
    for shard in ("s1", "s2"):
        assert given(writer, shard) == []
    assert started.wait(60)
    threading.Timer(0.2, go_on.set).start()
    writer.start_bundle()  # the bundle has failed elsewhere
    names = {file.name for file in Path(run.output).rglob("*.parquet")}
    assert names == {"shard-s1.parquet"}  # the other had not begun
    assert list(writer.finish_bundle()) == []


def test_part_of_a_shard_is_never_written_as_the_whole(run):
    """It goes on, to where the other parts of it go."""
    writer = writer_of(WriteShards(run, "net-1"))
    parts = [tagged([2], 1, 3), tagged([1], 0, 3), tagged([7], 0, 2, dt="2025-12-31")]
    for part in parts:
        assert list(writer.process(part, 0, GlobalWindow())) == []
    late = [output.value.value for output in writer.finish_bundle()]
    assert late == [("/s1", parts[0]), ("/s1", parts[1]), ("2025-12-31/s1", parts[2])]
    grouped = _WriteGrouped(WriteShards(run, "net-1"))
    with pytest.raises(RuntimeError, match="shard /s1: only 2 of its batches have arrived"):
        list(grouped.process(("/s1", parts[:2])))
    assert not os.path.exists(run.output)
    # One that an engine gives twice is written once.
    whole = [tagged([3], 2, 3), *parts[:2], parts[0]]
    (account,) = grouped.process(("/s1", whole))
    assert account.embedded == 3
    assert pq.read_table(account.files[0], partitioning=None).num_rows == 3


def test_shards_whose_batches_an_engine_scatters(run):
    shards = {f"s{number}": [[number], [number + 1, number + 2], [9]] for number in range(5)}
    batches = [
        tagged(colours, seq, len(parts), shard=shard)
        for shard, parts in shards.items()
        for seq, colours in enumerate(parts)
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        embedded = (
            pipeline
            | beam.Create([batch for seq in range(3) for batch in batches[seq::3]])
            | beam.Reshuffle()
            | WriteShards(run, "net-1")
            | beam.Map(lambda account: account.embedded)
        )
        assert_that(embedded, equal_to([4] * 5))
    found = pq.read_table(f"{run.output}/embeddings", partitioning=None)
    assert found.num_rows == 20
    assert len(list(Path(run.output).rglob("*.parquet"))) == 15


def test_a_reader_finds_an_item_without_reading_all():
    """By the statistics of files and of row groups: rows stay as they were listed."""
    count = ROW_GROUP_ROWS + 1000
    uris = [f"s3://bucket/{number:07d}.jpg" for number in range(count)]
    columns = {"uri": uris, "rank": [1] * count}
    rows = pa.table({name: columns.get(name, pa.nulls(count)) for name in ("uri", "rank", "id")})
    content = pa.BufferReader(parquet_bytes(rows))
    file = pq.ParquetFile(content)
    groups = [file.metadata.row_group(place) for place in range(file.num_row_groups)]
    bounds = [(group.column(0).statistics.min, group.column(0).statistics.max) for group in groups]
    assert bounds == [(uris[0], uris[ROW_GROUP_ROWS - 1]), (uris[ROW_GROUP_ROWS], uris[-1])]
    fragment = ds.ParquetFileFormat().make_fragment(content)
    for wanted, groups_read in [(uris[3], [0]), (uris[-3], [1]), ("s3://bucket/x", [])]:
        left = fragment.subset(ds.field("uri") == wanted).row_groups
        assert [group.id for group in left] == groups_read


def test_whoever_has_lost_their_place_writes_nothing(run):
    ledger = LedgerSpec(run.output, "net-1", "none", run.run_id)
    writer = writer_of(WriteShards(run, "net-1", ledger=ledger))
    with pytest.raises(LostPlaceError, match="its lock is gone"):
        [*writer.process(tagged([], failures=(GONE,))), *writer.finish_bundle()]
    assert list(Path(run.output).rglob("*.parquet")) == []
    with take_place(run.output, run.run_id):
        shard = tagged([], failures=(GONE,))
        (account,) = [*writer.process(shard, 0, GlobalWindow()), *writer.finish_bundle()]
    assert len(account.value.files) == 3


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


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed, nor known yet
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ImportError, match=r"s3:// needs a package .* pip install 'beamtag\[s3\]'"):
        locate("s3://bucket/key")
