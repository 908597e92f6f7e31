"""Workers and a task manager that are killed in the middle of a shard: nothing lost or twice."""

from __future__ import annotations

import os
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import Cluster, end_session, wait_for
from conftest import write_pictures
from engines import LOCAL, ON_PRISM, Archive, Engine, assert_whole
from faulty import Faulty, faulty_server
from jobs import Jobs, Rows, records, rows

pytestmark = pytest.mark.timeout(1200)

HELD = "00000.jpg"


@dataclass
class Held:
    """A job's command, of which one object is not given to the next who asks for it."""

    server: Faulty
    argv: list[str]
    inputs: list[str]
    expected: Rows

    def waits(self) -> bool:
        return self.server.counts()["faults"].get("stall", 0) == 1

    def workers(self) -> set[int]:
        """The processes that have a connection to the server."""
        port = urllib.parse.urlsplit(self.server.url).port
        sockets = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[2] == f"0100007F:{port:04X}" and fields[3] == "01":
                sockets.add(f"socket:[{fields[9]}]")
        found = set()
        for path in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(path) in sockets:
                    found.add(int(path.parts[2]))
            except OSError:
                continue  # It has ended, or closed it.
        return found


@pytest.fixture(scope="module")
def held(jobs: Jobs, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder = tmp_path_factory.mktemp("held")
    write_pictures(folder / "web", 1, width=70)
    with faulty_server(folder=folder, faults=1.0, kinds=["stall"], most=1, only=HELD) as server:
        manifest = folder / "web.txt"
        manifest.write_text(f"{server.url}/web/{HELD}\n")
        inputs = [*archive.inputs, f"--input={manifest}"]
        argv = [*archive.argv, inputs[-1], "--read_deadline=1000"]
        _take_the_fault(server)
        LOCAL.run(jobs, *argv, f"--output={folder / 'out'}")
        expected = rows(folder / "out")
        assert_whole(folder / "out", inputs, expected)
        assert sum(row["uri"].startswith(server.url) for row, _ in expected["embeddings"]) == 1
        yield Held(server, argv, inputs, expected)


def _take_the_fault(server: Faulty) -> None:
    """Of two that ask one waits: the first. So the next does not."""
    place = urllib.parse.urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port)) as asking:
        asking.sendall(f"GET /web/{HELD} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        wait_for("the first to wait", lambda: "stall" in server.counts()["faults"])


def test_a_python_worker_killed_on_flink(jobs: Jobs, on_flink: Engine, held: Held, tmp_path: Path):
    held.server.reset()
    output = tmp_path / "out"
    job = on_flink.start(jobs, *held.argv, f"--output={output}")
    wait_for("a worker that waits", held.waits, within_s=300)
    (worker,) = held.workers()
    os.kill(worker, signal.SIGKILL)
    assert job.ends(within_s=600) == 0, job.err
    assert_whole(output, held.inputs, held.expected)


def test_a_task_manager_killed(
    jobs: Jobs, flink: Cluster, on_flink: Engine, held: Held, tmp_path: Path
):
    """Its place is taken by another, as a company's cluster does it."""
    held.server.reset()
    output = tmp_path / "out"
    job = on_flink.start(jobs, *held.argv, f"--output={output}")
    wait_for("a worker that waits", held.waits, within_s=300)
    (worker,) = held.workers()
    (its_own,) = [p for p in flink.task_managers if p.pid == os.getsid(worker)]
    flink.kill(its_own)
    wait_for("the job manager to see it", lambda: flink.slots == 1, within_s=60)
    flink.start_task_manager()
    assert job.ends(within_s=600) == 0, job.err
    assert_whole(output, held.inputs, held.expected)
    # Of the worker, which waits yet, nothing more is wanted.
    end_session(its_own)


def test_a_python_worker_killed_on_prism(jobs: Jobs, held: Held, tmp_path: Path):
    """Prism gives up then: the job says so, and the next goes on from what is there."""
    held.server.reset()
    output = tmp_path / "out"
    job = ON_PRISM.start(jobs, *held.argv, f"--output={output}")
    wait_for("a worker that waits", held.waits, within_s=300)
    # Those of the job before may be about to end.
    wait_for("the only worker", lambda: len(held.workers()) == 1)
    (worker,) = held.workers()
    os.kill(worker, signal.SIGKILL)
    assert job.ends(within_s=300) == 1
    assert records(output)[-1]["status"] == "failed"
    ON_PRISM.run(jobs, *held.argv, f"--output={output}")
    assert_whole(output, held.inputs, held.expected)


def test_a_job_whose_launcher_is_told_to_end(
    engine: Engine, jobs: Jobs, held: Held, tmp_path: Path, request: pytest.FixtureRequest
):
    held.server.reset()
    output = tmp_path / "out"
    job = engine.start(jobs, *held.argv, f"--output={output}")
    wait_for("a worker that waits", held.waits, within_s=300)
    job.send("SIGTERM")
    assert job.ends(within_s=60) == 1
    assert "beamtag tag: failed: interrupted; " in job.err
    assert records(output)[-1]["status"] == "interrupted"
    if engine is not ON_PRISM:
        # Beam's job server keeps it from the cluster, so an operator has to say it there.
        flink: Cluster = request.getfixturevalue("flink")
        flink.cancel()
    wait_for("the worker's end", lambda: not held.workers())
    engine.run(jobs, *held.argv, f"--output={output}")
    assert_whole(output, held.inputs, held.expected)
