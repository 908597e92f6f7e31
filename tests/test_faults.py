"""The whole job against stores that fail: every item is embedded once, and the retries counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from conftest import Job, encoded, picture, write_pictures
from faulty import Faulty, faulty_server
from servers import CLIENTS, gcs_server, s3_server

ITEMS = 60


@contextmanager
def store(scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **faults) -> Iterator[Faulty]:
    """A real emulator with pictures in it, behind a proxy that fails; web pages from a folder."""
    if scheme == "http":
        write_pictures(folder / "archive", ITEMS)
        with faulty_server(folder=folder, **faults) as web:
            yield web
        return
    for name, value in CLIENTS.items():
        monkeypatch.setenv(name, value)
    variable = "AWS_ENDPOINT_URL" if scheme == "s3" else "STORAGE_EMULATOR_HOST"
    kind = fsspec.get_filesystem_class(scheme)
    with (s3_server if scheme == "s3" else gcs_server)() as emulator:
        monkeypatch.setenv(variable, emulator)
        kind.clear_instance_cache()
        filesystem = fsspec.filesystem(scheme)
        filesystem.mkdir("archive")
        for number in range(ITEMS):
            filesystem.pipe_file(f"archive/{number:03d}.jpg", encoded(picture(seed=number)))
        with faulty_server(upstream=emulator, **faults) as proxy:
            monkeypatch.setenv(variable, proxy.url)
            kind.clear_instance_cache()
            yield proxy
        kind.clear_instance_cache()


@pytest.mark.parametrize("scheme", ["gs", "s3", "http"])
def test_a_store_that_fails_three_times_in_ten(job: Job, scheme, tmp_path, monkeypatch):
    with store(scheme, tmp_path, monkeypatch, faults=0.3) as server:
        inputs: Path | str = f"{scheme}://archive"
        if scheme == "http":
            inputs = tmp_path / "list.txt"
            inputs.write_text(
                "".join(f"{server.url}/archive/{number:05d}.jpg\n" for number in range(ITEMS))
            )
        done = job(input=inputs, read_deadline=16, shard_size=25)
        counts = server.counts()
    assert done.status == 0, done.err
    uris = [row["uri"] for row in done.table("embeddings")]
    assert len(uris) == len(set(uris)) == ITEMS
    assert done.table("failures") == []
    record = done.record
    assert record["counts"] == {
        "listed": ITEMS, "reused": 0, "embedded": ITEMS, "duplicates": 0, "failed": 0,
    }  # fmt: skip
    # aiohttp itself asks once more where a connection that it had kept was reset.
    faults = sum(counts["faults"].values())
    assert len(counts["faults"]) >= 6, counts
    assert faults - counts["faults"].get("reset", 0) <= record["retries"] <= faults
    assert counts["objects"] == ITEMS + faults
    assert "reads were tried again" in done.out


def test_a_store_that_never_answers_is_a_row_and_not_a_hang(job: Job, tmp_path, monkeypatch):
    with store("http", tmp_path, monkeypatch, faults=1.0, kinds=["stall"], most=99) as server:
        (tmp_path / "list.txt").write_text(f"{server.url}/archive/00000.jpg\n")
        done = job(input=tmp_path / "list.txt", read_deadline=2)
    assert done.status == 0, done.err
    (failure,) = done.table("failures")
    assert (failure["reason"], failure["retryable"]) == ("timed_out", True)
    assert "tries" in failure["message"]
    assert done.record["retries"] >= 1


@pytest.mark.parametrize(
    ("kind", "reason", "retryable"),
    [
        ("403", "permission_denied", True),
        ("404", "not_found", False),
        ("400", "unsupported_uri", False),
    ],
)
def test_what_no_retry_can_help_is_asked_once(
    job: Job, tmp_path, monkeypatch, kind, reason, retryable
):
    with store("http", tmp_path, monkeypatch, faults=1.0, kinds=[kind], most=99) as server:
        (tmp_path / "list.txt").write_text(f"{server.url}/archive/00000.jpg\n")
        done = job(input=tmp_path / "list.txt")
        counts = server.counts()
    (failure,) = done.table("failures")
    assert (failure["reason"], failure["retryable"]) == (reason, retryable)
    assert counts["requests"] == 1
    assert done.record["retries"] == 0


def test_a_store_that_is_down_is_told_of_for_every_item(job: Job, tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.fetching.TRIES", 2)
    with store("s3", tmp_path, monkeypatch, faults=1.0, kinds=["503"], most=99):
        done = job(input="s3://archive", read_deadline=120)
    assert done.status == 0, done.err
    assert {row["reason"] for row in done.table("failures")} == {"unavailable"}
    assert len(done.table("failures")) == ITEMS
    assert done.record["retries"] == ITEMS


def test_an_interrupt_does_not_wait_for_a_store_that_hangs(labels, vit, tmp_path, monkeypatch):
    with store("http", tmp_path, monkeypatch, faults=1.0, kinds=["stall"], most=99) as server:
        (tmp_path / "list.txt").write_text(
            "".join(f"{server.url}/archive/{number:05d}.jpg\n" for number in range(ITEMS))
        )
        command = [
            sys.executable, "-m", "pipelines.tag", f"--input={tmp_path / 'list.txt'}",
            f"--labels={labels}", f"--output={tmp_path / 'out'}", f"--model=local-dir:{vit}",
        ]  # fmt: skip
        with subprocess.Popen(
            command, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True
        ) as process:
            while server.counts()["objects"] < 8 and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            try:
                _, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 1, err
        assert "interrupted" in err
        assert os.listdir(tmp_path / "out" / "runs")
