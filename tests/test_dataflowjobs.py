"""Jobs that go to Dataflow: submitted for real, to a service on loopback, with buckets there."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from functools import partial

import fsspec
import pytest
from conftest import write_pictures
from dataflowservice import CANCELLED, FAILED, dataflow_service
from servers import both_stores

from pipelines import tag
from pipelines.dataflowjobs import job_runs
from transforms import lockrecord
from transforms.accounting import Account
from transforms.recording import UnfinishedError, write_run_record
from transforms.runlock import HeldError, take_place
from transforms.storage import read_object

HEADER = {
    "run_id": "run-1",
    "started_at": "2026-01-01T00:00:00+00:00",
    "model": {"device": "cpu", "precision": "fp32"},
    "settings": {},
}


@pytest.fixture(scope="module")
def buckets():
    with both_stores("bucket"):
        yield


@pytest.fixture
def service():
    with dataflow_service() as (service, options):
        service.options = [
            "--runner=DataflowRunner", "--project=some-project", "--region=us-central1",
            "--temp_location=gs://bucket/temp", "--staging_location=gs://bucket/staging", *options,
        ]  # fmt: skip
        yield service


@pytest.fixture
def submit(service, buckets, labels, tmp_path):
    """`beamtag tag` on Dataflow; its status."""
    archive = write_pictures(tmp_path / "archive", 2)

    def submit(*more: str, output: object = tmp_path / "out") -> int:
        return tag.main([f"--input={archive}", f"--labels={labels}", f"--output={output}",
                         *service.options, *more])  # fmt: skip

    return submit


def lock_of(output):
    return json.loads((output / "_beamtag_lock.json").read_text())


def test_a_detached_job_holds_the_place_by_its_name(submit, service, tmp_path, capsys):
    assert submit("--detach", "--job_name=nightly") == 0
    said = capsys.readouterr().out
    assert "submitted dataflow:some-project/us-central1/nightly" in said
    assert f"its record will be {tmp_path}/out/runs/" in said
    assert lock_of(tmp_path / "out")["job"] == "dataflow:some-project/us-central1/nightly"
    [record] = (tmp_path / "out" / "runs").iterdir()
    assert json.loads(record.read_text())["status"] == "running"
    assert [request["name"] for request in service.requests] == ["nightly"]


def test_while_it_runs_it_keeps_others_out(submit, service, capsys):
    assert submit("--detach", "--json", "--job_name=nightly") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["job"]) == ("running", "dataflow:some-project/us-central1/nightly")
    assert submit("--detach") == 1
    assert "is held by run" in capsys.readouterr().err
    assert len(service.requests) == 1


def test_a_job_that_is_over_keeps_nobody_out(tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    with monkeypatch.context() as other_machine:
        other_machine.setattr(lockrecord, "here", lambda: ("elsewhere", "another boot"))
        place = take_place(output, "run-1")
    place.goes_on_in("dataflow:p/r/name")
    place.leave()
    for answer in (True, None):
        with pytest.raises(HeldError, match="job dataflow:p/r/name"):
            take_place(output, "run-2", job_runs=lambda job, seen, answer=answer: answer)
    taken = take_place(output, "run-2", job_runs=lambda job, seen: False, watch_s=0.2, beat_s=0.1)
    assert (taken.dead, taken.job) == (("run-1",), "")
    taken.release()


def test_a_lock_that_knows_no_jobs_is_one(tmp_path):
    """An earlier version's, which may stand there when a later one comes."""
    output = tmp_path / "out"
    place = take_place(str(output), "run-1")
    lock = output / "_beamtag_lock.json"
    told = json.loads(lock.read_text())
    del told["job"]
    lock.write_text(json.dumps(told))
    with pytest.raises(HeldError, match="held by run run-1"):
        take_place(str(output), "run-2")
    place.release()


def test_whether_a_job_runs(service, buckets):
    asked = partial(
        job_runs, "dataflow:some-project/us-central1/nightly", beam_args=service.options
    )
    now = datetime.now(UTC)
    assert asked(now) is False, "there is none"
    service.create("some-project", "us-central1", {"name": "nightly"})
    assert asked(now) is True
    assert asked(now - timedelta(days=1)) is False, "the job of the next night has the same name"
    service.end(FAILED)
    assert asked(now) is False
    assert job_runs("somewhere else", now, service.options) is None


def test_a_job_ends_its_run_by_itself(tmp_path):
    output = str(tmp_path / "out")
    place = take_place(output, "run-1")
    place.goes_on_in("dataflow:p/r/name")
    place.leave()
    place.release()  # What the launcher does at its end.
    with pytest.raises(HeldError, match="job dataflow:p/r/name"):
        take_place(output, "run-2", job_runs=lambda job, seen: True)
    header = {**HEADER, "output": output}
    url = f"{output}/runs/run-1.json"
    write_run_record(Account(), url, header, gives_back=True)
    assert json.loads(read_object(url))["status"] == "finished"
    take_place(output, "run-2").release()


def test_a_job_fails_where_its_run_does(tmp_path):
    output = str(tmp_path / "out")
    take_place(output, "run-1").leave()
    header = {**HEADER, "output": output}
    account = Account(listed=1, shards={"a": 1})
    # Dataflow tries a step four times.
    for _ in range(4):
        with pytest.raises(UnfinishedError, match="the run is unbalanced"):
            write_run_record(account, f"{output}/runs/run-1.json", header, gives_back=True)
    take_place(output, "run-2").release()


def test_who_breaks_off_a_run_ends_its_job(submit, service, tmp_path, capsys):
    service.on_look = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert submit() == 1
    assert "interrupted" in capsys.readouterr().err
    assert [job["currentState"] for job in service.jobs.values()] == [CANCELLED]
    assert not (tmp_path / "out" / "_beamtag_lock.json").exists()


def test_what_a_template_s_launcher_leaves(submit, service):
    """It makes a file of the job, and Dataflow makes the job of it when the launcher has ended."""
    output = "gs://bucket/tables"
    assert submit("--detach", "--job_name=nightly", "--template_location=gs://bucket/launch/job",
                  output=output) == 0  # fmt: skip
    assert service.requests == []
    job = json.loads(read_object("gs://bucket/launch/job"))
    assert job["name"] == "nightly"
    lock = json.loads(fsspec.filesystem("gs").cat_file(f"{output}/_beamtag_lock.json"))
    assert lock["job"] == "dataflow:some-project/us-central1/nightly"


def test_a_dry_run_leaves_nothing(submit, service, tmp_path, capsys):
    assert submit("--dry_run=True") == 0
    assert "not submitted" in capsys.readouterr().out
    assert service.requests == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--detach", "--prune"], "--prune needs the run's end"),
        (["--detach", "--runner=PrismRunner"], "--detach goes with --runner=DataflowRunner"),
        (["--dry_run=True", "--runner=FnApiRunner"], "--dry_run is a flag of DataflowRunner"),
    ],
)
def test_what_does_not_go_together(submit, capsys, more, message):
    assert submit(*more) == 2
    assert message in capsys.readouterr().err
