"""Broken and hostile files and tars through the whole job, and through the decoder alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broken import corpus, make_corpus, wholes
from brokentars import OUTSIDE, broken_tars
from conftest import LABELS, Outcome, encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import Broken

from transforms.decoding import decode_image
from transforms.records import MediaError, Preprocess, Reason

ROOT = Path(__file__).parent.parent
SMALL = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
MAX_PIXELS = 128_000_000

MORE_MEMORY = 256
"""MiB above the same job over one good picture. Measured: 50, for originals of up to 12 million
pixels. The tags of `costly/tags.*` alone would take a gigabyte, a member of a tar 300 MiB."""

SECONDS = 2.0
"""For one file alone. The slowest takes 0.1, and the scans of `costly/scans.jpg` would take 3."""

FILES = list(corpus())
TARS = list(broken_tars())
WHOLES = wholes()


def run_apart(root: Path, model: Path, output: str, *inputs: str) -> tuple[Outcome, float]:
    """The job as a process of its own, in a folder below `root`, and its peak in MiB.

    Linux carries the peak of the process that starts a child into the child's, and pytest's is as
    large as the job's: a small process stands between them.
    """
    code = (
        "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:]);"
        "_, status, usage = os.wait4(child.pid, 0);"
        "print('peak', usage.ru_maxrss, os.waitstatus_to_exitcode(status))"
    )
    arguments = [f"--input={each}" for each in inputs]
    arguments += [f"--labels={root}/labels.yaml", f"--output={root}/{output}", "--batch_size=16"]
    command = [sys.executable, "-m", "pipelines.tag", *arguments, f"--model=local-dir:{model}"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *command, "--quiet"],
        cwd=root / "here",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(root / "temporary")},
        capture_output=True,
        text=True,
        check=True,
    )
    _, peak, status = ran.stdout.splitlines()[-1].split()
    return Outcome(int(status), ran.stdout, ran.stderr, root / output), int(peak) / 1024


def listing(root: Path) -> dict[str, int | None]:
    """Every folder, and every file with its time of change, but for those in the outputs."""
    return {
        str(path): None if path.is_dir() else path.stat().st_mtime_ns
        for path in root.rglob("*")
        if not path.is_relative_to(root / "good") and not path.is_relative_to(root / "bad")
    }


class Ran:
    """The one job over the whole corpus, and the files around it before and after."""

    def __init__(self, root: Path, model: Path) -> None:
        self.media, self.tars = root / "corpus" / "media", root / "corpus" / "tars"
        assert len(make_corpus(root / "corpus")) == len(FILES) + len(TARS) >= 200
        (root / "good.jpg").write_bytes(encoded(picture()))
        (root / "labels.yaml").write_text(LABELS)
        for folder in ("here", "temporary"):
            (root / folder).mkdir()
        self.before = listing(root)
        good, self.least = run_apart(root, model, "good", f"{root}/good.jpg")
        assert good.status == 0, good.err
        inputs = f"{self.media}/**/*", f"{self.tars}/*.tar"
        self.done, self.peak = run_apart(root, model, "bad", *inputs)
        self.after = listing(root)
        self.rows = [
            (row["uri"], row.get("reason", "embedded"))
            for table in ("embeddings", "failures")
            for row in self.done.table(table)
        ]

    def below(self, folder: Path) -> dict[str, str]:
        """What became of each item, by its path below the folder."""
        start = f"{folder}/"
        return {uri.removeprefix(start): fate for uri, fate in self.rows if uri.startswith(start)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vit: Path) -> Ran:
    return Ran(tmp_path_factory.mktemp("broken"), vit)


def test_the_accounts_balance(ran: Ran):
    assert ran.done.status == 0, ran.done.err
    assert len(dict(ran.rows)) == len(ran.rows)
    counts = ran.done.record["counts"]
    fates = [fate for _, fate in ran.rows]
    assert counts == {
        "listed": len(fates), "reused": 0,
        # Some of the broken files are the same bytes as others.
        "embedded": fates.count("embedded") - counts["duplicates"],
        "duplicates": counts["duplicates"],
        "failed": len(fates) - fates.count("embedded"),
    }  # fmt: skip
    digests = {row["content_sha256"] for row in ran.done.table("embeddings")}
    assert counts["embedded"] == len(digests)


def test_every_broken_file_is_embedded_or_one_failure(ran: Ran):
    found = ran.below(ran.media)
    assert set(found) == {file.name for file in FILES}
    wrong = {
        file.name: (found[file.name], sorted(file.outcomes))
        for file in FILES
        if found[file.name] not in file.outcomes
    }
    assert not wrong


def test_all_that_a_broken_tar_lets_read_is_embedded(ran: Ran):
    expected = {f"{tar.name}#{name}": fate for tar in TARS for name, fate in tar.items.items()}
    expected |= {tar.name: "corrupt_archive" for tar in TARS if tar.corrupt}
    assert ran.below(ran.tars) == expected


def test_nothing_is_written_outside_the_output(ran: Ran):
    assert ran.after == ran.before
    assert not Path("/", OUTSIDE).exists()


def test_memory_stays_bounded(ran: Ran):
    print(f"peak {ran.peak:.0f} MiB, {ran.least:.0f} MiB for one good picture")
    assert ran.peak - ran.least < MORE_MEMORY


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
