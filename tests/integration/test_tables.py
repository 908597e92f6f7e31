"""Local, Prism and Flink: the same tables, night after night."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from engines import LOCAL, Archive, Engine, assert_whole
from jobs import Jobs, Rows, records, rows

pytestmark = pytest.mark.timeout(1200)


class Nights(NamedTuple):
    """What local runs come to: the first night's, and one's with changed labels after it."""

    first: Rows
    changed: Rows
    listed: int
    failed: int


@pytest.fixture(scope="module")
def nights(jobs: Jobs, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    output = tmp_path_factory.mktemp("local") / "out"
    LOCAL.run(jobs, *archive.argv, f"--output={output}")
    first = rows(output)
    assert_whole(output, archive.inputs, first)
    LOCAL.run(jobs, *archive.changed, f"--output={output}")
    counts = records(output)[0]["counts"]
    return Nights(first, rows(output), counts["listed"], counts["failed"])


def test_what_there_is_to_compare(nights: Nights):
    """Or what is compared below would be little."""
    assert nights.listed == 40 + 3 + 3 + 5 + 4
    assert nights.failed == 3 + 1 + 1
    assert {row["modality"] for row, _ in nights.first["embeddings"]} == {"image", "text", "pair"}
    assert len(nights.first["embeddings"]) == 50
    assert len(nights.first["predictions"]) == 2 * 2 * 50
    assert len(nights.changed["predictions"]) == 3 * 2 * 50


def files(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/**/*.parquet")}


def test_three_nights(engine: Engine, jobs: Jobs, archive: Archive, nights: Nights, tmp_path: Path):
    output = tmp_path / "out"
    engine.run(jobs, *archive.argv, f"--output={output}")
    assert_whole(output, archive.inputs, nights.first)
    counts = records(output)[-1]["counts"]
    assert (counts["listed"], counts["failed"]) == (nights.listed, nights.failed)
    assert len(list(output.glob("embeddings/**/*.parquet"))) >= 12
    before = files(output)

    engine.run(jobs, *archive.argv, f"--output={output}")
    assert files(output) == before
    counts = records(output)[-1]["counts"]
    assert counts["embedded"] == counts["duplicates"] == 0
    assert counts["reused"] == nights.listed - nights.failed

    engine.run(jobs, *archive.changed, f"--output={output}")
    assert_whole(output, archive.inputs, nights.changed)
    assert records(output)[-1]["scored"] == 50
    assert files(output).items() >= before.items()


def test_it_goes_on_where_a_killed_local_run_stopped(
    engine: Engine, jobs: Jobs, archive: Archive, nights: Nights, tmp_path: Path
):
    """What is done is told by the output, whoever has written it."""
    command = [*archive.argv, f"--output={tmp_path / 'out'}"]
    status, killed = jobs.run(*command, at=100)
    assert status == -9, killed.err
    done = len(list(tmp_path.glob("out/embeddings/**/*.parquet")))
    engine.run(jobs, *command)
    assert_whole(tmp_path / "out", archive.inputs, nights.first)
    counts = records(tmp_path / "out")[-1]["counts"]
    assert done > 2
    assert counts["reused"] > 2 * done
