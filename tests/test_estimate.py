"""`beamtag estimate`, as a person meets it, and against the run that it speaks of."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done, Job, encoded, picture, write_pictures
from faulty import faulty_server
from packing import pack

from pipelines import cli, estimate
from pipelines.estimatetext import size_said, time_said

Run = Callable[..., Done]


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def estimated(vit, labels, temporary, capfd) -> Run:
    """The job in this process; whatever it was told, nothing is left of it."""

    def run(*arguments: str, **flags: object) -> Done:
        named = {"labels": labels, "model": f"local-dir:{vit}", **flags}
        capfd.readouterr()
        argv = [*arguments, *(f"--{name}={value}" for name, value in named.items())]
        status = estimate.main(argv)
        printed = capfd.readouterr()
        assert not list(temporary.iterdir())
        return Done(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """120 pictures, every tenth of them bad."""
    folder = write_pictures(tmp_path_factory.mktemp("estimate") / "archive", 120)
    for number in range(0, 120, 10):
        (folder / f"{number:05d}.jpg").write_bytes(b"<html>not found</html>")
    return folder


def test_a_sample_is_tagged_and_all_of_it_told(estimated: Run, archive):
    done = estimated(
        "--json", input=archive, sample=50, items=10**7, price_per_hour=2.5, batch_size=8
    )
    assert done.status == 0, done.err
    told = done.told
    sizes = [path.stat().st_size for path in archive.iterdir()]
    assert told["listed"]["items"] == 120
    assert told["listed"]["bytes"] == sum(sizes)
    assert told["listed"]["exact"]
    assert told["sample"]["items"] == 50
    assert 0 < told["sample"]["failed"] < 15
    assert told["bottleneck"]["kind"] in {"fetch", "decode", "device", "write", "score"}
    rates = told["items_per_second"]
    assert 0 < rates["least"] < rates["likely"] < rates["most"]
    few, many = told["estimates"]
    assert (few["items"], many["items"]) == (120, 10**7)
    for each in (few, many):
        seconds, cost = each["seconds"], each["cost"]
        assert seconds["least"] < seconds["likely"] < seconds["most"]
        for name, value in seconds.items():
            assert cost[name] == pytest.approx(value / 3600 * 2.5, abs=1e-4)
    assert few["seconds"]["likely"] > told["startup_seconds"]
    # What is not start-up grows with the items.
    grown = many["seconds"]["likely"] - told["startup_seconds"]
    assert grown == pytest.approx(10**7 / rates["likely"], rel=0.1)


def test_tables_are_as_large_as_the_run_makes_them(estimated: Run, job: Job, archive):
    told = estimated("--json", input=archive, sample=60).told
    done = job(input=archive)
    size = sum(path.stat().st_size for path in done.output.rglob("*.parquet"))
    assert told["estimates"][0]["output_bytes"] == pytest.approx(size, rel=0.5)


def test_the_same_sample_each_time(estimated: Run, archive):
    """Told by what fails in it: which of the items are bad is known."""
    failed = {
        estimated("--json", input=archive, sample=30).told["sample"]["failed"] for _ in range(2)
    }
    assert len(failed) == 1


def test_workers_and_prices(estimated: Run, archive):
    flags = {"input": archive, "sample": 20, "items": 10**6}
    alone = estimated("--json", **flags).told
    assert alone["estimates"][0]["cost"] is None
    many = estimated("--json", workers=100, price_per_hour=1, **flags).told
    seconds = many["estimates"][1]["seconds"]["likely"]
    assert many["estimates"][1]["cost"]["likely"] == pytest.approx(seconds / 36, abs=1e-3)
    assert seconds < alone["estimates"][1]["seconds"]["likely"] / 10


def test_what_a_person_reads(estimated: Run, archive):
    done = estimated(input=archive, sample=20, items=10**6, price_per_hour=2.5)
    assert done.status == 0, done.err
    assert re.search(r"^listed +120 items, \d+(\.\d)? kB *$", done.out, re.M)
    assert re.search(r"^sample +20 items in [\d.]+ s, \d+ of them failed; start-up", done.out, re.M)
    assert re.search(r"^speed +[\d,]+ items/s a worker \([\d,]+ to [\d,]+\) *$", done.out, re.M)
    assert re.search(r"^\w+-bound: ", done.out, re.M)
    assert re.search(r"^items +time +from +to +cost +from +to +tables", done.out, re.M)
    assert re.search(r"^1,000,000 ", done.out, re.M)
    assert "Left out: " in done.out
    quiet = estimated("--quiet", input=archive, sample=5)
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")


def test_a_manifest_has_no_sizes_and_they_are_told_from_the_sample(estimated: Run, tmp_path):
    folder = write_pictures(tmp_path / "served", 30)
    manifest = tmp_path / "links.csv"
    with faulty_server(folder=folder, count_paths=True) as server:
        rows = "".join(f"{server.url}/{number:05d}.jpg\n" for number in range(30))
        manifest.write_text(f"uri\n{rows}")
        told = estimated("--json", input=manifest, sample=10).told
        read = {path for path in server.counts()["per_path"] if path.endswith(".jpg")}
    assert len(read) == 10
    assert told["listed"]["items"] == 30
    assert not told["listed"]["exact"]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert told["listed"]["bytes"] == pytest.approx(size, rel=0.2)


def test_of_tars_the_first_samples_are_read(estimated: Run, tmp_path):
    for number in range(3):
        members = [(f"{n}.jpg", encoded(picture(640, 480, n))) for n in range(40)]
        (tmp_path / f"{number}.tar").write_bytes(pack(members))
    told = estimated("--json", input=f"{tmp_path}/*.tar", sample=30).told
    assert told["sample"]["items"] == 30
    assert told["listed"]["tars"] == 3
    assert told["listed"]["items"] == pytest.approx(120, rel=0.1)
    whole = estimated("--json", input=f"{tmp_path}/*.tar", sample=200).told
    assert whole["sample"]["items"] == whole["listed"]["items"] == 120


def test_half_of_a_mixed_sample_is_of_tars(estimated: Run, archive, tmp_path):
    members = [(f"{n}.jpg", encoded(picture(seed=n))) for n in range(40)]
    (tmp_path / "a.tar").write_bytes(pack(members))
    told = estimated("--json", f"--input={archive}", f"--input={tmp_path}/a.tar", sample=20).told
    assert told["sample"]["items"] == 20
    assert told["listed"]["items"] == pytest.approx(160, rel=0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sample=0"], "argument --sample: '0' is not a whole number from 1"),
        (["--price_per_hour=-1"], "argument --price_per_hour: '-1' is not a price from 0"),
        (["--output=out"], "unrecognized arguments: --output=out"),
        (["--runner=DataflowRunner"], "unrecognized arguments: --runner=DataflowRunner"),
        (["--input=/nowhere/at/all"], "--input=/nowhere/at/all does not exist"),
        (["--labels=nothing.yaml"], "nothing.yaml"),
        (["--model=local-dir:/nowhere"], "/nowhere"),
    ],
)
def test_bad_usage_is_one_line(archive, temporary, capfd, flags, said):
    assert estimate.main([f"--input={archive}", *flags]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("beamtag estimate: error: ")
    assert said in printed.err
    assert not list(temporary.iterdir())


def test_nothing_to_measure(estimated: Run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = estimated(input=empty)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"beamtag estimate: failed: nothing to tag in {empty}\n"
    (empty / "a.jpg").write_bytes(b"<html>")
    done = estimated(input=empty)
    assert done.status == 1
    assert done.err == (
        "beamtag estimate: failed: nothing of the sample can be embedded: not_an_image\n"
    )


def test_sigterm_leaves_nothing(archive, labels, vit, temporary):
    command = [
        sys.executable, "-m", "pipelines.cli", "estimate", f"--input={archive}",
        f"--labels={labels}", f"--model=local-dir:{vit}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    while not list(temporary.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert not list(temporary.iterdir())


def test_it_is_a_job_of_the_command_line(capsys):
    assert cli.main(["estimate"]) == 2
    assert "the following arguments are required: --input" in capsys.readouterr().err


def test_times_and_sizes_as_people_say_them():
    assert [time_said(seconds) for seconds in (14.2, 130, 35 * 60, 41_000, 800_000)] == [
        "14.2 s", "2 min", "35 min", "11.4 h", "9.3 days",
    ]  # fmt: skip
    assert [size_said(size) for size in (0, 999, 1500, 310e6, 999.9e6, 7.6e15)] == [
        "0 bytes", "999 bytes", "1.5 kB", "310 MB", "1.0 GB", "7600 TB",
    ]  # fmt: skip
