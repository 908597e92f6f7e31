"""Runs that meet a limit: one line says which, what is written stays, and the next completes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import LABELS, Job, encoded, picture, write_pictures
from faulty import faulty_server
from jobs import Rows, assert_same, forking, left_aside, records, rows
from packing import pack
from servers import CLIENTS, s3_server
from test_publishing import mounted, namespaces

from pipelines import tag, verify
from transforms import publishing

FLAGS = {"shard_size": 5, "batch_size": 2, "run_date": "2026-01-31"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """36 pictures, every ninth of them bad, and a tar of six whose last is."""
    folder = write_pictures(tmp_path_factory.mktemp("limits") / "archive", 36)
    for number in range(0, 36, 9):
        (folder / f"{number:05d}.jpg").write_bytes(b"<html>not found</html>")
    members = [(f"{n}.jpg", encoded(picture(seed=100 + n))) for n in range(5)]
    (folder / "a.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    return folder


def inputs_of(archive: Path) -> list[str]:
    return [f"--input={archive}", f"--input={archive}/a.tar"]


@pytest.fixture(scope="module")
def whole(archive, vit) -> Path:
    """The output of a run that meets no limit."""
    (archive.parent / "labels.yaml").write_text(LABELS)
    output = archive.parent / "whole"
    flags = {"labels": archive.parent / "labels.yaml", "model": f"local-dir:{vit}", **FLAGS}
    named = [f"--{name}={value}" for name, value in flags.items()]
    assert tag.main([*inputs_of(archive), f"--output={output}", "--quiet", *named]) == 0
    [record] = records(output)
    assert record["counts"] == {
        "listed": 42, "reused": 0, "embedded": 37, "duplicates": 0, "failed": 5,
    }  # fmt: skip
    return output


def assert_failed(status: int, err: str, said: str) -> None:
    assert status == 1, err
    assert "Traceback" not in err
    *before, last = err.splitlines()
    assert re.fullmatch(f"beamtag tag: failed: {said}", last), last
    # Beside it only what auto chose, and what else follows from the cause.
    others = [line for line in before if "device: auto" not in line]
    assert all(line.startswith("and its record cannot be written") for line in others), others


def assert_completed(output: str | Path, inputs: list[str], expected: Rows, **storage) -> None:
    assert_same(output, expected, **storage)
    assert verify.main(["--quiet", f"--output={output}", *inputs]) == 0


@pytest.mark.parametrize(
    ("most", "kinds", "tried", "kept"),
    [
        # Past a count it stops at once, past a share where all items are listed before any is read.
        ("2", "both", r"3 of \d+ tried", "a part"),
        ("5%", "folder", "2 of 36 tried", "a part"),
        ("0.1", "both", "5 of 42 tried", "all"),
        ("1%", "tar", "1 of 6 tried", "all"),
        ("5", "both", None, "all"),
    ],
)
def test_a_run_with_too_many_failures_fails_and_keeps_what_it_wrote(
    job: Job, archive, whole, tmp_path, most, kinds, tried, kept
):
    both = inputs_of(archive)
    inputs = {"both": both, "folder": both[:1], "tar": both[1:]}[kinds]
    output = tmp_path / "out"
    done = job(*inputs, max_failures=most, output=output, **FLAGS)
    if tried is None:
        assert done.status == 0, done.err
    else:
        share = f"{float(most[:-1]) / 100:g}" if most.endswith("%") else most
        said = f"{tried} items failed, more than --max_failures={share} allows"
        assert_failed(done.status, done.err, said)
        assert done.record["status"] == "failed"
        assert re.fullmatch(said, done.record["error"])
    found, expected = rows(output), rows(whole)
    for table, wanted in expected.items():
        there = [row for row, _ in found[table]]
        assert all(row in [row for row, _ in wanted] for row in there)
        if kept == "all" and kinds == "both":
            assert len(there) == len(wanted)
    assert found["failures"], "what failed is told of"
    again = job(*both, output=output, **FLAGS)
    assert again.status == 0, again.err
    assert again.record["counts"]["reused"] == len(found["embeddings"])
    assert_completed(output, both, expected)
    # What failed before is not tried, and does not fail a run again.
    assert job(*both, max_failures=0, output=output, **FLAGS).status == 0


class Disk:
    """A small disk that is read-only or large when that is asked; real where one can be mounted.

    Elsewhere a limit on the length of files, and a folder that may only be read.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        folder.mkdir()
        files = [path.stat().st_size for path in model.rglob("*") if path.is_file()]
        # A file takes whole pages.
        half = sum(-(-size // 4096) * 4096 for size in files) // 2
        self._folder = folder
        self._real = namespaces(folder)
        limited = ["prlimit", f"--fsize={max(files) - 1}:"]
        self.prefix = mounted(f"size={half}", folder) if self._real else limited
        self.full = "No space left on device" if self._real else "File too large"
        self.refuses = "Read-only file system" if self._real else "Permission denied"

    def become(self, what: str, pid: int) -> None:
        if self._real:
            options = {"read-only": "ro", "large": "rw,size=64m"}[what]
            inside = ["nsenter", f"--target={pid}", "--user", "--mount", "--preserve-credentials"]
            command = [*inside, "mount", "-o", f"remount,{options}", str(self._folder)]
            subprocess.run(command, check=True)
            return
        os.chmod(self._folder, 0o555 if what == "read-only" else 0o755)
        subprocess.run(["prlimit", f"--pid={pid}", "--fsize=unlimited:"], check=True)

    def seen_by(self, pid: int, path: Path) -> Path:
        """Where a path of a process that has the disk leads for others."""
        return Path(f"/proc/{pid}/root{path}") if self._real else path


def test_a_disk_that_is_full_then_read_only_then_neither(archive, whole, vit, labels, tmp_path):
    disk = Disk(tmp_path / "disk", whole)
    output = tmp_path / "disk" / "out"
    argv = [
        *inputs_of(archive), f"--output={output}", f"--labels={labels}",
        f"--model=local-dir:{vit}", *(f"--{name}={value}" for name, value in FLAGS.items()),
    ]  # fmt: skip
    with forking(disk.prefix) as jobs:
        seen = disk.seen_by(jobs.pid, output)
        status, job = jobs.run(*argv)
        assert_failed(status, job.err, f"cannot write {output}/.*/shard-.*: {disk.full}")
        kept = {path: path.read_bytes() for path in seen.rglob("*.parquet")}
        assert kept
        assert all("/shard-" in name or "/runs/" in name for name in map(str, kept))

        disk.become("read-only", jobs.pid)
        status, job = jobs.run(*argv)
        assert_failed(status, job.err, f"cannot write to {output}: .*{disk.refuses}.*")
        assert {path: path.read_bytes() for path in seen.rglob("*.parquet")} == kept

        disk.become("large", jobs.pid)
        status, job = jobs.run(*argv)
        assert status == 0, job.err
        assert_same(seen, rows(whole))
        assert left_aside(seen) == []
        assert {path: path.read_bytes() for path in kept} == kept


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url, pytest.MonkeyPatch.context() as environment:
        for name, value in CLIENTS.items():
            environment.setenv(name, value)
        yield url


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch) -> Iterator[str]:
    """A bucket of its own, to which clients lead that are made from now on."""
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    name = re.sub("[^a-z0-9]", "-", tmp_path.name.lower())[:60].strip("-")
    fsspec.filesystem("s3").mkdir(name)
    yield name
    kind.clear_instance_cache()


def through(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_store_that_starts_refusing_halfway(job: Job, s3, bucket, archive, whole, monkeypatch):
    output = f"s3://{bucket}/out"
    expected = rows(whole)
    made = sorted(whole.glob("embeddings/**/*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    # A shard has the same name wherever it is written.
    middle = [path for path in made if "-" not in path.name.removeprefix("shard-")][4]
    refused = {"faults": 1.0, "kinds": ["403"], "most": 999, "methods": ["PUT", "POST"]}
    with faulty_server(upstream=s3, only=f"predictions/.*{middle.name}", **refused) as server:
        through(server.url, monkeypatch)
        done = job(*inputs_of(archive), output=output, **FLAGS)
        said = rf"cannot write {output}/predictions/.*/{middle.name}: the store refuses \(403 .*\)"
        assert_failed(done.status, done.err, said)
        assert server.counts()["faults"] == {"403": 1}
    through(s3, monkeypatch)
    found = rows(output)
    assert (
        0 < len(found["predictions"]) / 2 < len(found["embeddings"]) < len(expected["embeddings"])
    )
    again = job(*inputs_of(archive), output=output, **FLAGS)
    assert again.status == 0, again.err
    assert_completed(output, inputs_of(archive), expected)


def test_a_store_that_fails_two_writes_in_ten(job: Job, s3, bucket, archive, whole, monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT_S", 0.02)
    output = f"s3://{bucket}/out"
    kinds = ["503", "500", "429", "408", "reset", "cut"]
    writes = {"methods": ["PUT", "POST", "DELETE"], "kinds": kinds}
    with faulty_server(upstream=s3, faults=0.2, **writes) as server:
        through(server.url, monkeypatch)
        done = job(*inputs_of(archive), output=output, **FLAGS)
        counts = server.counts()
    through(s3, monkeypatch)
    assert done.status == 0, done.err
    assert sum(counts["faults"].values()) >= 3, counts
    assert_completed(output, inputs_of(archive), rows(whole))
    names = fsspec.filesystem("s3").find(f"{bucket}/out")
    assert sum(name.endswith(".parquet") for name in names) == 3 * 10
    assert [name for name in names if not name.endswith((".parquet", ".json"))] == []
    assert not fsspec.filesystem("s3").exists(f"{bucket}/out/_beamtag_lock.json")
