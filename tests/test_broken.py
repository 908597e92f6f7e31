"""Broken and hostile files through the whole job, and through the decoder alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from broken import Broken, corpus, make_corpus, wholes
from conftest import Job, encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.decoding import decode_image
from transforms.records import MediaError, Preprocess, Reason

ROOT = Path(__file__).parent.parent
SMALL = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
MAX_PIXELS = 128_000_000

MORE_MEMORY = 256
"""MiB above the same job over one good picture. Measured: 50, for originals of up to 12 million
pixels. The tags of `costly/tags.*` alone would take a gigabyte."""

SECONDS = 2.0
"""For one file alone. The slowest takes 0.1, and the scans of `costly/scans.jpg` would take 3."""

FILES = list(corpus())
WHOLES = wholes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    assert len(make_corpus(folder)) == len(FILES) >= 150
    return folder


def outcomes(output: Path) -> dict[str, str]:
    """What became of each file, by its path; no path may come twice."""
    rows = [
        (row["uri"], row.get("reason", "embedded"))
        for table in ("embeddings", "failures")
        for row in ds.dataset(output / table, partitioning="hive").to_table().to_pylist()
    ]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_broken_file_is_embedded_or_one_failure(job: Job, folder):
    done = job(input=f"{folder}/**/*", batch_size=16)
    assert done.status == 0, done.err
    found = outcomes(done.output)
    assert set(found) == {str(folder / file.name) for file in FILES}
    wrong = {
        file.name: (found[str(folder / file.name)], sorted(file.outcomes))
        for file in FILES
        if found[str(folder / file.name)] not in file.outcomes
    }
    assert not wrong
    counts = done.record["counts"]
    assert counts["listed"] == len(FILES) == counts["embedded"] + counts["failed"]


def peak_mebibytes(files: str, output: Path, labels: Path, model: Path) -> float:
    """The peak resident set of the job as a process of its own.

    Linux carries the peak of the process that starts a child into the child's, and pytest's is as
    large as the job's: a small process stands between them.
    """
    code = (
        "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:]);"
        "_, status, usage = os.wait4(child.pid, 0);"
        "print('peak', usage.ru_maxrss, os.waitstatus_to_exitcode(status))"
    )
    arguments = [f"--input={files}", f"--labels={labels}", f"--output={output}"]
    command = [sys.executable, "-m", "pipelines.tag", *arguments, f"--model=local-dir:{model}"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *command, "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    _, peak, status = ran.stdout.splitlines()[-1].split()
    assert int(status) == 0, ran.stderr
    return int(peak) / 1024


def test_memory_stays_bounded(folder, tmp_path, labels, vit):
    (tmp_path / "good.jpg").write_bytes(encoded(picture()))
    least = peak_mebibytes(f"{tmp_path}/good.jpg", tmp_path / "good", labels, vit)
    peak = peak_mebibytes(f"{folder}/**/*", tmp_path / "bad", labels, vit)
    print(f"peak {peak:.0f} MiB, {least:.0f} MiB for one good picture")
    assert outcomes(tmp_path / "bad")
    assert peak - least < MORE_MEMORY


def outcome_of(data: bytes) -> str:
    try:
        decode_image(data, SMALL, MAX_PIXELS)
    except MediaError as error:
        return error.reason
    return "embedded"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_takes_long(file: Broken):
    began = time.monotonic()
    assert outcome_of(file.data) in file.outcomes
    assert time.monotonic() - began < SECONDS


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


@pytest.mark.parametrize("kind", sorted(WHOLES))
@settings(max_examples=100, deadline=None)
@given(damage=DAMAGE, keep=st.floats(0.05, 1), twice=st.booleans())
def test_damage_anywhere_is_a_reason_or_a_picture(kind, damage, keep, twice):
    data = bytearray(WHOLES[kind])
    for place, value in damage:
        # Most of what can go wrong is in the first bytes.
        place = place**4 if twice else place
        data[int(place * len(data))] = value
    began = time.monotonic()
    found = outcome_of(bytes(data[: int(len(data) * keep)]))
    assert found == "embedded" or found in set(Reason)
    assert time.monotonic() - began < 5 * SECONDS


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLES)), behind=st.binary(max_size=300))
def test_anything_behind_a_signature_is_a_reason_or_a_picture(kind, behind):
    found = outcome_of(WHOLES[kind][:16] + behind)
    assert found == "embedded" or found in set(Reason)
