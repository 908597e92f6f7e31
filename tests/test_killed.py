"""Runs that are broken off at any write, and run again: nothing lost, nothing done twice."""

from __future__ import annotations

import queue
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LABELS, encoded, picture, write_pictures
from faulty import faulty_server
from jobs import Jobs, Rows, assert_same, forking, left_aside, records, rows
from packing import pack

from pipelines import verify

GOES_ON = "interrupted; what is written is kept, and the same command goes on from it"
ITEMS = 40 + 5 + 3 + 2 * 6


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with forking() as started:
        yield started


@dataclass
class Night:
    """A command, and what it comes to where nothing disturbs it."""

    argv: list[str]
    inputs: list[str]
    output: Path
    expected: Rows
    writes: list[str]

    def points(self, number: int) -> list[int]:
        """Writes spread evenly over the run, the first and the last among them."""
        return [1 + (len(self.writes) - 1) * n // (number - 1) for n in range(number)]


def make_archive(folder: Path) -> list[str]:
    """Pictures, some of them bad or there twice, and two tars; gives the inputs."""
    write_pictures(folder, 40)
    for number in range(5):
        shutil.copy(folder / f"{number * 8:05d}.jpg", folder / f"copy-{number}.jpg")
    for number in range(3):
        (folder / f"{number * 13:05d}-bad.jpg").write_bytes(b"<html>not found</html>")
    for name in ("a", "b"):
        # The second's last is one of the first's.
        seeds = [0, *range(101, 105)] if name == "a" else [*range(110, 114), 101]
        members = [(f"{n}.jpg", encoded(picture(seed=seed))) for n, seed in enumerate(seeds)]
        (folder / f"{name}.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    return [f"--input={folder}", f"--input={folder}/*.tar"]


def first_night(jobs: Jobs, folder: Path, vit: Path) -> Night:
    inputs = make_archive(folder / "archive")
    for name in ("things", "others"):
        text = LABELS.replace("things", name)
        (folder / f"{name}.yaml").write_text(
            text.replace("dog, ", "") if name == "others" else text
        )
    argv = [
        *inputs, *(f"--labels={folder}/{name}.yaml" for name in ("things", "others")),
        f"--model=local-dir:{vit}", "--shard_size=5", "--batch_size=2", "--run_date=2026-01-31",
    ]  # fmt: skip
    return undisturbed(jobs, argv, inputs, folder / "out")


def undisturbed(jobs: Jobs, argv: list[str], inputs: list[str], output: Path) -> Night:
    status, job = jobs.run(*argv, f"--output={output}")
    assert status == 0, job.err
    night = Night(argv, inputs, output, rows(output), job.writes)
    assert_whole(night, output)
    return night


@pytest.fixture(scope="module")
def night(jobs, tmp_path_factory, vit) -> Night:
    return first_night(jobs, tmp_path_factory.mktemp("night"), vit)


def shard_in_the_middle(night: Night) -> int:
    """Where a run begins to write one."""
    middle = len(night.writes) // 2
    return next(
        n for n, write in enumerate(night.writes, 1) if n > middle and "mkdir /embeddings" in write
    )


def assert_whole(night: Night, output: Path) -> None:
    """The output is what an undisturbed run makes, and its last run's account balances."""
    assert_same(output, night.expected)
    assert left_aside(output) == []
    assert verify.main(["--quiet", f"--output={output}", *night.inputs]) == 0
    *broken, last = records(output)
    assert last["status"] == "finished"
    counts = last["counts"]
    assert counts.pop("listed") == sum(counts.values())
    assert {record["status"] for record in broken} <= {"finished", "interrupted"}


def break_off(jobs: Jobs, night: Night, at: int, how: str, output: Path, *more: str) -> str:
    """The command, broken off at this write, and run again; gives what the first try said."""
    command = [*night.argv, f"--output={output}", *more]
    job = jobs.start(*command, at=at, how=how)
    status = job.ends()
    assert len(job.writes) >= at, "it has not come so far"
    assert status == (-9 if how.startswith("SIGKILL") else 1), job.err
    said = job.err
    status, job = jobs.run(*command)
    assert status == 0, job.err
    assert_whole(night, output)
    return said


def break_off_each(
    jobs: Jobs, night: Night, points: list[int], how: str, folder: Path, before: Path | None = None
) -> list[str]:
    def one(at: int) -> str:
        output = folder / f"{at}"
        if before:
            shutil.copytree(before, output)
        # Every second time as in the middle of a write.
        return break_off(jobs, night, at, f"{how} torn" if at % 2 else how, output)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, points))


def test_what_an_undisturbed_run_comes_to(night):
    """Or what is compared below would be little."""
    [record] = records(night.output)
    assert record["counts"] == {
        "listed": ITEMS, "reused": 0, "embedded": 48, "duplicates": 7, "failed": 5,
    }  # fmt: skip
    assert len(night.expected["embeddings"]) == 55
    assert len(night.expected["predictions"]) == 2 * 2 * 55
    assert len(list(night.output.glob("embeddings/**/*.parquet"))) >= 12
    assert len(night.writes) >= 150


def test_a_run_killed_at_any_write_is_completed_by_the_next(jobs, night, tmp_path):
    points = night.points(25)
    assert len(set(points)) == 25
    break_off_each(jobs, night, points, "SIGKILL", tmp_path)


def test_a_run_killed_while_it_takes_its_place_leaves_nothing(jobs, night, tmp_path):
    """Also before anything tells of it, and as the lock's file is half there."""
    taking = [n for n, write in enumerate(night.writes, 1) if "/._beamtag_lock" in write][:3]
    assert [night.writes[n - 1].split()[0] for n in taking] == ["open", "os.link", "os.remove"]
    for at in taking:
        break_off(jobs, night, at, "SIGKILL torn", tmp_path / str(at))


def test_a_run_killed_again_and_again_gets_to_its_end(jobs, night, tmp_path):
    """And each time further: what is done is not done again."""
    command = [*night.argv, f"--output={tmp_path / 'out'}"]
    done = [0]
    while (ended := jobs.run(*command, at=60, how="SIGKILL torn"))[0]:
        assert ended[0] == -9, ended[1].err
        done.append(len(list(tmp_path.glob("out/embeddings/**/*.parquet"))))
        assert done[-1] > done[-2]
    assert len(done) >= 4
    assert_whole(night, tmp_path / "out")
    *killed, _ = records(tmp_path / "out")
    assert "running" not in {record["status"] for record in killed}
    assert len(killed) == len(done) - 1


def test_a_night_of_changed_labels_killed_at_any_write(jobs, night, tmp_path):
    """After one that was killed itself: it scores what is stored, and embeds the rest."""
    new = tmp_path / "things.yaml"
    new.write_text(LABELS.replace("house", "mouse"))
    before = tmp_path / "before"
    command = [*night.argv, f"--output={before}"]
    status, job = jobs.run(*command, at=shard_in_the_middle(night))
    assert status == -9, job.err
    argv = [f"--labels={new}" if "things.yaml" in word else word for word in night.argv]
    shutil.copytree(before, tmp_path / "out")
    second = undisturbed(jobs, argv, night.inputs, tmp_path / "out")
    scored = records(second.output)[-1]["scored"]
    assert 10 < scored < 50
    assert len(second.expected["predictions"]) == 2 * (2 * 55 + scored)
    break_off_each(jobs, second, second.points(8), "SIGKILL", tmp_path, before)


def test_a_prune_killed_at_any_write(jobs, tmp_path, vit):
    (tmp_path / "first").mkdir()
    first = first_night(jobs, tmp_path / "first", vit)
    archive = tmp_path / "first" / "archive"
    for path in [*sorted(archive.glob("0*.jpg"))[::6], archive / "a.tar", archive / "copy-1.jpg"]:
        path.unlink()
    shutil.copytree(first.output, tmp_path / "out")
    second = undisturbed(jobs, [*first.argv, "--prune"], first.inputs, tmp_path / "out")
    pruned = records(second.output)[-1]["pruned"]
    assert pruned["items"] == 8 + 6 + 1
    assert pruned["files"] >= 20
    break_off_each(jobs, second, second.points(8), "SIGKILL", tmp_path, first.output)
    # A run that only tags does not bring back what is gone.
    status, job = jobs.run(*first.argv, f"--output={second.output}")
    assert status == 0, job.err
    assert_same(second.output, second.expected)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGTERM hung"])
def test_a_run_that_is_asked_to_end(jobs, night, tmp_path, how):
    """Whether it writes in the thread that is told, or in another that its disk does not answer."""
    threads = ["--direct_num_workers=2"] if how == "SIGTERM hung" else []

    def one(at: int) -> None:
        said = break_off(jobs, night, at, how, tmp_path / str(at), *threads)
        assert said.splitlines()[-1] == f"beamtag tag: failed: {GOES_ON}"
        assert "Traceback" not in said

    begin = shard_in_the_middle(night)
    with ThreadPoolExecutor(2) as pool:
        # About to give a file its name, among others.
        list(pool.map(one, [begin // 2, begin, begin + 2, begin + 20, begin + 40]))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_it_ends_within_ten_seconds_while_a_server_never_answers(jobs, night, tmp_path, name):
    write_pictures(tmp_path / "archive", 12)
    argv = [word for word in night.argv if not word.startswith("--input=")]
    with faulty_server(folder=tmp_path, faults=1.0, kinds=["stall"], most=99) as server:
        (tmp_path / "list.txt").write_text(
            "".join(f"{server.url}/archive/{number:05d}.jpg\n" for number in range(12))
        )
        job = jobs.start(*argv, f"--input={tmp_path}/list.txt", f"--output={tmp_path}/out")
        # Until it waits.
        while server.counts()["objects"] < 4:
            with pytest.raises(queue.Empty):
                job.ends(within_s=0.05)
        job.send(name)
        assert job.ends(within_s=10) == 1
    assert job.err.splitlines()[-1] == f"beamtag tag: failed: {GOES_ON}"
    assert records(tmp_path / "out")[0]["status"] == "interrupted"
    assert left_aside(tmp_path / "out") == []


def test_a_second_run_at_once_is_told_who_holds_the_output(jobs, night, tmp_path):
    command = [*night.argv, f"--output={tmp_path / 'out'}"]
    first = jobs.start(*command, at=len(night.writes) // 2, how="SIGSTOP")
    first.stands_still()
    [record] = records(tmp_path / "out")
    status, second = jobs.run(*command)
    assert status == 1
    assert re.fullmatch(
        rf"beamtag tag: failed: {tmp_path}/out is held by run {record['run_id']} \(host \S+, "
        rf"process {first.pid}\) since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, last seen \d+ s ago; "
        "--take_over takes its place",
        second.err.splitlines()[-1],
    )
    assert records(tmp_path / "out") == [record]
    first.send("SIGCONT")
    assert first.ends() == 0, first.err
    assert_whole(night, tmp_path / "out")


def test_a_run_whose_place_is_taken_over_ends_and_does_no_harm(jobs, night, tmp_path):
    """Wherever it is in writing a shard: before, within or between its files, or behind them."""
    begin = shard_in_the_middle(night)

    def one(at: int) -> None:
        output = tmp_path / str(at)
        command = [*night.argv, f"--output={output}"]
        first = jobs.start(*command, at=at, how="SIGSTOP")
        first.stands_still()
        status, second = jobs.run(*command, "--take_over")
        assert status == 0, second.err
        first.send("SIGCONT")
        assert first.ends() == 1, first.err
        run_id = next(r["run_id"] for r in records(output) if r["status"] == "failed")
        *others, last = first.err.splitlines()
        # Its beat may have seen it first.
        assert all(re.search("^device: auto|place was taken by another$", line) for line in others)
        assert last == (
            f"beamtag tag: failed: {output} is not held by run {run_id} any more: its lock is gone"
        )
        taken = [line for line in second.err.splitlines() if "takes the place of run" in line]
        assert len(taken) == 1
        assert f"run {run_id} (host " in taken[0]
        assert_same(output, night.expected)
        assert verify.main(["--quiet", f"--output={output}", *night.inputs]) == 0
        assert left_aside(output) == []

    with ThreadPoolExecutor(2) as pool:
        # Four things happen for each of its four files, the flush of the folder the last.
        list(pool.map(one, [begin + n for n in (0, 1, 2, 3, 6, 13, 14, 16)]))
