"""What many tests need: pictures, small models, and the whole job as a user starts it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.dataset as ds
import pytest
from checkpoints import make_checkpoint
from PIL import Image
from threenights import make_tables

from pipelines import tag

LABELS = """\
name: things
templates: ["a {}", "a photo of a {}"]
labels: [dog, cat, tree, car, house]
top_k: 2
"""


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """An RGB picture with structure at several scales, different for every seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + random.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int, width: int = 64, height: int = 48) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(encoded(picture(width, height, number)))
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="session")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of three nights (`threenights.make_tables`), which no test may change."""
    return make_tables(tmp_path_factory.mktemp("nightly"))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(LABELS)
    return path


@dataclass
class Outcome:
    """A finished job: its exit status, what it printed, and its tables."""

    status: int
    out: str
    err: str
    output: Path

    def table(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (
            ds.dataset(self.output / name, partitioning="hive").to_table().to_pylist()
        )
        return sorted(rows, key=lambda row: (row["uri"], row.get("rank", 0)))

    @property
    def record(self) -> dict[str, Any]:
        # Not by name: two runs may begin in one second.
        records = [json.loads(path.read_text()) for path in (self.output / "runs").iterdir()]
        return max(records, key=lambda record: str(record["started_at"]))


class Done(NamedTuple):
    """A job of the command line that has ended."""

    status: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """What `--json` printed."""
        told: dict[str, Any] = json.loads(self.out)
        return told


Job = Callable[..., Outcome]


@pytest.fixture
def job(tmp_path: Path, vit: Path, labels: Path, capfd: pytest.CaptureFixture[str]) -> Job:
    """`beamtag tag` in this process, on a small model and label file unless told otherwise."""

    def run(*arguments: str, output: Path | str | None = None, **flags: Any) -> Outcome:
        output = output or tmp_path / "out"
        defaults = {"labels": labels, "output": output, "model": f"local-dir:{vit}"}
        named = [f"--{name}={value}" for name, value in {**defaults, **flags}.items()]
        capfd.readouterr()
        status = tag.main([*arguments, *named])
        printed = capfd.readouterr()
        return Outcome(status, printed.out, printed.err, output)

    return run
