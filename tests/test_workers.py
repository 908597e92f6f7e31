"""A local run in several processes: the same tables, and an end of all of them at once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import LABELS, Job, encoded, picture, write_pictures
from faulty import Faulty, faulty_server
from jobs import Jobs, Rows, Running, assert_same, forking, left_aside, records, rows
from packing import pack

from pipelines import verify
from transforms.handing import environments
from transforms.listing import EACH, SMALLEST, cut_shard, make_shard
from transforms.model import worker_gpus
from transforms.modelstore import ModelError
from transforms.processes import cores, runs
from transforms.progress import progress
from transforms.records import MediaRef, ModelSpec

FLAGS = {"shard_size": 5, "batch_size": 2, "run_date": "2026-01-31"}
COUNTS = ("listed", "reused", "embedded", "duplicates", "failed")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Pictures, some of them bad or there twice, a tar, and a manifest of texts and one picture."""
    folder = write_pictures(tmp_path_factory.mktemp("workers") / "archive", 22)
    for number in range(3):
        (folder / f"{number * 7:05d}-bad.jpg").write_bytes(b"<html>not found</html>")
        (folder / f"copy-{number}.jpg").write_bytes((folder / f"{number * 9:05d}.jpg").read_bytes())
    members = [(f"{n}.jpg", encoded(picture(seed=100 + n))) for n in range(7)]
    (folder / "a.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    (folder.parent / "one.jpg").write_bytes(encoded(picture(seed=200)))
    (folder.parent / "list.csv").write_text(
        "uri,id,text\none.jpg,,\n" + "".join(f",text-{n},a {n} of dogs\n" for n in range(6))
    )
    return folder


def inputs_of(archive: Path) -> list[str]:
    return [f"--input={url}" for url in (archive, archive / "a.tar", archive.parent / "list.csv")]


def test_two_workers_write_what_one_process_does(job: Job, archive, tmp_path):
    one = job(*inputs_of(archive), output=tmp_path / "one", **FLAGS)
    assert one.status == 0, one.err
    two = job(*inputs_of(archive), "--workers=2", output=tmp_path / "two", **FLAGS)
    assert two.status == 0, two.err
    assert_same(two.output, rows(one.output))
    assert left_aside(two.output) == []
    assert verify.main(["--quiet", f"--output={two.output}", *inputs_of(archive)]) == 0

    record = two.record
    assert record["settings"]["workers"] == 2
    assert record["workers"] == {"processes": 2, "cores": cores()}
    assert sorted(record["model"]["loaded"]) == ["image", "text"]
    assert record["model"]["batch_size"] == 2
    # The same bytes in two workers are embedded in both.
    counts, alone = record["counts"], one.record["counts"]
    for told in (counts, alone):
        told["with vectors"] = told.pop("embedded") + told.pop("duplicates")
    assert counts == alone
    assert counts["listed"] == counts["with vectors"] + counts["failed"]
    # What the progress bar has seen is counted here, by what the workers say.
    assert (progress.listed, progress.failed) == (counts["listed"], counts["failed"])
    assert progress.done == progress.listed
    assert "listed" in two.out
    assert two.err.count("device: auto") == 1

    again = job(*inputs_of(archive), "--workers=2", output=tmp_path / "two", **FLAGS)
    assert again.status == 0, again.err
    assert again.record["counts"]["reused"] == counts["with vectors"]
    # The tar is done; of the manifest's picture only reading tells the version.
    assert again.record["model"]["loaded"] == []
    assert_same(two.output, rows(one.output))


def test_too_many_failures_in_all_workers_together_end_a_run(job: Job, tmp_path):
    folder = write_pictures(tmp_path / "archive", 20)
    for number in range(0, 20, 5):
        (folder / f"{number:05d}.jpg").write_bytes(b"<html>not found</html>")
    # Of each shard one fails: no worker alone gets past the limit before both have one.
    most = job(f"--input={folder}", "--workers=2", max_failures=1, **FLAGS)
    assert most.status == 1
    last = most.err.splitlines()[-1]
    assert last.endswith("of 20 tried items failed, more than --max_failures=1 allows"), most.err
    assert "Traceback" not in most.err
    assert most.record["status"] == "failed"
    assert most.table("failures"), "what failed is told of"
    assert job(f"--input={folder}", "--workers=2", max_failures=4, **FLAGS).status == 0


def test_what_breaks_in_a_worker_is_told_as_of_this_process(job: Job, archive, tmp_path):
    first = job(f"--input={archive}", output=tmp_path / "first", **FLAGS)
    written = sorted((first.output / "failures").rglob("*.parquet"))[0]
    said = []
    for count in (1, 2):
        output = tmp_path / f"out-{count}"
        # A folder where a shard's file is to be.
        (output / written.relative_to(first.output) / "x").mkdir(parents=True)
        done = job(f"--input={archive}", f"--workers={count}", output=output, **FLAGS)
        assert done.status == 1
        assert "Traceback" not in done.err
        said.append(done.err.splitlines()[-1].replace(str(output), "OUT"))
    assert written.name in said[0]
    assert said[0] == said[1]


# Ends from outside.


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with forking() as started:
        yield started


@dataclass
class Waiting:
    """A job whose workers wait for a server that does not answer them, yet."""

    jobs: Jobs
    argv: list[str]
    output: Path
    job: Running
    workers: list[int]

    def assert_all_end(self) -> None:
        until = time.monotonic() + 10
        while any(runs(pid, "") for pid in self.workers):
            assert time.monotonic() < until, "workers are left"
            time.sleep(0.05)

    def assert_the_next_completes(self, expected: Rows) -> None:
        status, job = self.jobs.run(*self.argv, "--read_deadline=8")
        assert status == 0, job.err
        assert_same(self.output, expected)
        assert left_aside(self.output) == []
        last = records(self.output)[-1]
        assert last["status"] == "finished"
        assert last["counts"]["listed"] == sum(last["counts"][name] for name in COUNTS[1:])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("server")
    write_pictures(folder / "archive", 12)
    # Of each path one try stalls, and the next is answered.
    with faulty_server(folder=folder, faults=1.0, kinds=["stall"], most=1) as started:
        yield started


@pytest.fixture
def waiting(jobs, server, vit, tmp_path) -> Waiting:
    before = server.counts()["objects"]
    (tmp_path / "labels.yaml").write_text(LABELS)
    (tmp_path / "list.txt").write_text(
        "".join(f"{server.url}/archive/{n:05d}.jpg?{tmp_path.name}\n" for n in range(12))
    )
    argv = [
        f"--input={tmp_path}/list.txt", f"--labels={tmp_path}/labels.yaml", "--workers=2",
        f"--output={tmp_path}/out", f"--model=local-dir:{vit}",
        *(f"--{name}={value}" for name, value in FLAGS.items()),
    ]  # fmt: skip
    job = jobs.start(*argv, "--read_concurrency=4")
    until = time.monotonic() + 60
    # Both wait: one alone asks for four at a time.
    while server.counts()["objects"] < before + 5:
        assert time.monotonic() < until, job.err
        time.sleep(0.05)
    return Waiting(jobs, argv, tmp_path / "out", job, workers_of(job.pid))


def workers_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text()
        except OSError:
            continue  # It has ended.
        if int(parent) == pid and "pipelines.working" in command:
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_told_to_end_ends_with_its_workers(waiting, server, name):
    assert len(waiting.workers) == 2
    # As a terminal and a service manager do it, who tell all processes.
    for pid in waiting.workers:
        os.kill(pid, signal.Signals[name])
    waiting.job.send(name)
    assert waiting.job.ends(within_s=10) == 1
    waiting.assert_all_end()
    assert waiting.job.err.splitlines()[-1] == (
        "beamtag tag: failed: interrupted; what is written is kept, and the same command goes on "
        "from it"
    )
    assert records(waiting.output)[0]["status"] == "interrupted"


def test_a_killed_worker_fails_the_run_and_the_next_completes(waiting, job, tmp_path):
    killed = waiting.workers[1]
    os.kill(killed, signal.SIGKILL)
    assert waiting.job.ends(within_s=10) == 1
    waiting.assert_all_end()
    said = f"worker 2 (process {killed}) ended by SIGKILL"
    assert waiting.job.err.splitlines()[-1] == f"beamtag tag: failed: {said}"
    assert "Traceback" not in waiting.job.err
    [record] = records(waiting.output)
    assert (record["status"], record["error"]) == ("failed", said)
    # The server answers whoever asks again, which is after a quarter of the time.
    one = job(f"--input={tmp_path}/list.txt", "--read_deadline=8", output=tmp_path / "one", **FLAGS)
    assert one.record["counts"]["embedded"] == 12
    waiting.assert_the_next_completes(rows(one.output))


def test_workers_do_not_outlive_a_killed_run(waiting):
    waiting.job.send("SIGKILL")
    assert waiting.job.ends(within_s=10) == -signal.SIGKILL
    waiting.assert_all_end()


# Shares of the machine and of the work.


def test_few_shards_are_cut_so_that_each_worker_has_several():
    refs = [MediaRef(f"{number}.jpg", "1") for number in range(4096)]
    shard = make_shard(refs)
    cut = list(cut_shard(shard, 3, 2, "model/cut"))
    assert len(cut) == 3
    assert [ref for part in cut for ref in part.refs] == refs
    assert max(len(part.refs) for part in cut) - min(len(part.refs) for part in cut) <= 1
    assert len({shard.shard_id, *(part.shard_id for part in cut)}) == 4
    assert list(cut_shard(shard, 3, 2, "model/cut")) == cut
    # Enough shards, too small ones, and tars stay whole.
    assert list(cut_shard(shard, 2 * EACH, 2)) == [shard]
    small = make_shard(refs[: 2 * SMALLEST - 1])
    assert list(cut_shard(small, 1, 2)) == [small]
    assert len(list(cut_shard(make_shard(refs[: 2 * SMALLEST]), 1, 2))) == 2


def test_one_large_shard_is_shared(job: Job, tmp_path):
    count = 2 * SMALLEST
    (tmp_path / "list.csv").write_text(
        "id,text\n" + "".join(f"text-{n},dog {n % 50}\n" for n in range(count))
    )
    done = job(f"--input={tmp_path}/list.csv", "--workers=2")
    assert done.status == 0, done.err
    assert done.record["workers"]["processes"] == 2
    assert Counter(row["id"] for row in done.table("embeddings")) == Counter(
        f"text-{n}" for n in range(count)
    )


def test_workers_share_the_cores_unless_threads_are_told(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads = str(max(1, cores() // 2))
    shares = environments(2, ())
    assert [share["OMP_NUM_THREADS"] for share in shares] == [threads, threads]
    assert environments(10_000, ())[0]["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in environments(2, ())[0]
    gpus = [share["CUDA_VISIBLE_DEVICES"] for share in environments(2, ("0", "1"))]
    assert gpus == ["0", "1"]


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    """Of a machine that has two, as torch would tell it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    spec = ModelSpec("demo")
    assert worker_gpus(spec, 2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert worker_gpus(spec, 2) == ("3", "GPU-5")
    assert worker_gpus(ModelSpec("demo", device="cpu"), 9) == ()
    with pytest.raises(ModelError, match="--workers=3, but this machine has 2 CUDA devices"):
        worker_gpus(spec, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers=0"], "'0' is not a whole number from 1"),
        (["--workers=2", "--runner=PrismRunner"], "--workers is for a local run"),
        (["--workers=2", "--direct_num_workers=2"], "--workers and --direct_num_workers"),
        (["--workers=2", "--precision=auto"], "--precision=auto may choose otherwise"),
    ],
)
def test_workers_are_for_local_runs(job: Job, archive, flags, said, capfd):
    try:
        status, err = (done := job(f"--input={archive}", *flags)).status, done.err
    except SystemExit as ended:
        status, err = ended.code, capfd.readouterr().err
    assert status == 2
    assert said in err.splitlines()[-1]
