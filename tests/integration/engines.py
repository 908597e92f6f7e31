"""Engines that a job runs on, what they are given to do, and what has to come of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from clusters import PRISM, worker_environment
from conftest import LABELS, encoded, picture, write_pictures
from jobs import Jobs, Rows, Running, assert_same, left_aside, records
from packing import pack

from pipelines import verify


@dataclass
class Engine:
    """Where a job runs: flags, and in whose environment."""

    name: str
    flags: list[str]

    def start(self, jobs: Jobs, *argv: str) -> Running:
        return jobs.start(*argv, *self.flags, env=worker_environment())

    def run(self, jobs: Jobs, *argv: str) -> None:
        """To an end without an error."""
        job = self.start(jobs, *argv)
        assert job.ends(within_s=600) == 0, job.err


LOCAL = Engine("local", [])
ON_PRISM = Engine(
    "prism",
    # A process of its own for the Python worker: by default it would be a thread of the job.
    ["--runner=PrismRunner", f"--prism_location={PRISM}",
     "--experiments=use_loopback_process_worker"],
)  # fmt: skip


@dataclass
class Archive:
    """What there is to tag, and how."""

    inputs: list[str]
    argv: list[str]
    changed: list[str]
    """The same command with one of its label sets changed."""


def make_archive(folder: Path, vit: Path) -> Archive:
    """Pictures, some of them bad or there twice, rows of a manifest, a tar; two label sets."""
    media = write_pictures(folder / "media", 40)
    for number in range(3):
        shutil.copy(media / f"{number * 8:05d}.jpg", media / f"copy-{number}.jpg")
        (media / f"{number * 13:05d}-bad.jpg").write_bytes(b"<html>not found</html>")
    written = [
        {"uri": "media/00001.jpg", "id": "pair", "text": "a dog"},
        {"uri": "media/00002.jpg", "id": "pair", "text": "a house behind a tree"},
        {"uri": "text:1", "text": "a car"},
        {"uri": "text:2", "text": "a cat " * 200},
        {"uri": "media/gone.jpg", "id": "gone"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    # The last is one of the pictures.
    members = [(f"{n}.jpg", encoded(picture(seed=seed))) for n, seed in enumerate([101, 102, 3])]
    (folder / "a.tar").write_bytes(pack([*members, ("bad.jpg", b"no picture")]))
    for name, labels in {
        "things": LABELS,
        "others": LABELS.replace("things", "others").replace("dog, ", ""),
        "changed": LABELS.replace("house", "mouse"),
    }.items():
        (folder / f"{name}.yaml").write_text(labels)
    inputs = [f"--input={folder}/{name}" for name in ("media", "rows.jsonl", "a.tar")]
    argv = [
        *inputs, f"--labels={folder}/things.yaml", f"--labels={folder}/others.yaml",
        f"--model=local-dir:{vit}", "--shard_size=4", "--batch_size=2", "--run_date=2026-01-31",
    ]  # fmt: skip
    return Archive(inputs, argv, [word.replace("things.yaml", "changed.yaml") for word in argv])


def assert_whole(output: Path, inputs: list[str], expected: Rows) -> None:
    """The tables are those of a local run, each row once; the last run's account balances."""
    assert_same(output, expected)
    assert left_aside(output) == []
    assert verify.main(["--quiet", f"--output={output}", *inputs]) == 0
    last = records(output)[-1]
    assert last["status"] == "finished"
    counts = dict(last["counts"])
    assert counts.pop("listed") == sum(counts.values())
