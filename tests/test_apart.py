"""A shard whose batches an engine has torn apart ends as one file per table, each row once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest
from conftest import Job, encoded, picture, write_pictures
from jobs import assert_same, left_aside, rows
from packing import pack

from pipelines import graph, verify
from transforms import writing
from transforms.scoring import ScoreLabels


class TornApart(beam.PTransform):
    """`ScoreLabels` on an engine that does not fuse it with what comes after."""

    def __init__(self, *settings: object) -> None:
        super().__init__()
        self._scoring = ScoreLabels(*settings)

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        return pcoll | "Score" >> self._scoring | "BreakFusion" >> beam.Reshuffle()


@pytest.fixture
def archive(tmp_path) -> Path:
    folder = write_pictures(tmp_path / "archive", 40)
    (folder / "bad.jpg").write_bytes(b"<html>not found</html>")
    members = [(f"{n}.jpg", encoded(picture(seed=100 + n))) for n in range(7)]
    (folder / "a.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    return folder


def test_batches_that_arrive_apart_end_as_one_file_per_shard(
    job: Job, archive, tmp_path, monkeypatch
):
    flags = {"shard_size": 8, "batch_size": 2, "run_date": "2026-01-31"}
    inputs = [f"--input={archive}", f"--input={archive}/a.tar"]
    whole = job(*inputs, **flags)
    assert whole.status == 0, whole.err

    late: Counter[str] = Counter()
    write_grouped = writing._WriteGrouped.process

    def counted(self, shard):
        name, parts = shard
        late[name] += 1
        return write_grouped(self, (name, list(parts)))

    monkeypatch.setattr(writing._WriteGrouped, "process", counted)
    monkeypatch.setattr(graph, "ScoreLabels", TornApart)
    output = tmp_path / "apart"
    apart = job(*inputs, "--direct_num_workers=4", output=output, **flags)
    assert apart.status == 0, apart.err
    assert len(late) > 1
    assert_same(output, rows(whole.output))
    files = Counter(path.name for path in output.glob("*/**/shard-*.parquet"))
    assert len(files) == 7
    assert set(files.values()) == {3}
    assert apart.record["counts"] == whole.record["counts"]
    assert left_aside(output) == []
    assert verify.main(["--quiet", f"--output={output}", *inputs]) == 0
