"""The job as clusters run it, on Beam's own portable runner in this process: the same tables."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import LABELS, Job, encoded, picture, write_pictures
from jobs import assert_same, left_aside, rows
from nights import night
from packing import pack

PORTABLE = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


@pytest.fixture
def inputs(tmp_path) -> list[str]:
    folder = write_pictures(tmp_path / "archive", 12)
    shutil.copy(folder / "00003.jpg", folder / "copy.jpg")
    (folder / "bad.jpg").write_bytes(b"<html>not found</html>")
    members = [(f"{n}.jpg", encoded(picture(seed=100 + n))) for n in range(5)]
    (folder / "a.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    (tmp_path / "rows.csv").write_text("uri,text\narchive/00001.jpg,a dog\ntext:1,a cat\n")
    return [f"--input={folder}", f"--input={folder}/a.tar", f"--input={tmp_path}/rows.csv"]


def test_nights_on_a_portable_runner(job: Job, inputs, tmp_path):
    flags = {"shard_size": 4, "batch_size": 2, "run_date": "2026-01-31"}
    changed = tmp_path / "changed.yaml"
    changed.write_text(LABELS.replace("house", "mouse"))
    expected = []
    for more in ({}, {"labels": changed}):
        local = night(job, *inputs, output=tmp_path / "local", **flags, **more)
        expected.append(rows(local.output))

    output = tmp_path / "portable"
    first = night(job, *inputs, *PORTABLE, output=output, **flags)
    assert first.counts[0] == 14 + 6 + 2
    assert_same(output, expected[0])
    again = night(job, *inputs, *PORTABLE, output=output, **flags)
    assert again.counts == (first.counts[0], 20, 0, 0, 2)
    assert_same(output, expected[0])
    relabelled = night(job, *inputs, *PORTABLE, output=output, labels=changed, **flags)
    assert relabelled.record["scored"] == 20
    assert_same(output, expected[1])
    assert left_aside(output) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the worker has the device here")
def test_the_device_is_the_workers(job: Job, inputs):
    """Whoever launches the job may have none: it is a worker who says that it has not."""
    done = job(*inputs, *PORTABLE, device="cuda")
    assert done.status == 2
    said = "beamtag tag: error: --device=cuda, but this machine has no CUDA device"
    assert done.err.splitlines()[-1].startswith(said)
    assert done.record["status"] == "failed"


def test_a_job_server_that_is_not_there_is_said_to_be(job: Job, inputs):
    done = job(
        *inputs, "--runner=PortableRunner", "--job_endpoint=localhost:1", "--job_server_timeout=1"
    )
    assert done.status == 1
    assert done.err.splitlines()[-1] == (
        "beamtag tag: failed: ConnectionError: no job server answers at --job_endpoint=localhost:1"
    )
    assert done.record["status"] == "failed"
