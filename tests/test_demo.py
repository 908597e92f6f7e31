"""What the package carries, and what README promises about it."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from pipelines import tag

ROOT = Path(__file__).parent.parent
ARCHIVE = ROOT / "transforms" / "data" / "demo_archive"
MODEL = ROOT / "transforms" / "data" / "demo_model"


@pytest.fixture
def demo(tmp_path, monkeypatch) -> Path:
    """`make demo`'s command, run elsewhere; gives the folder it ran in."""
    monkeypatch.chdir(tmp_path)
    arguments = [f"--input={ARCHIVE}", "--labels=everyday", "--output=build/demo"]
    assert tag.main(arguments) == 0
    return tmp_path


def rows(folder: Path, query: str) -> list[tuple]:
    return duckdb.sql(query.replace("DEMO", str(folder / "build" / "demo"))).fetchall()


def test_the_demo_finds_what_is_there(demo):
    with (ROOT / "demo" / "archive_truth.csv").open() as file:
        truth = {line["path"]: line["label"] for line in csv.DictReader(file)}
    best = dict(
        rows(demo, "SELECT uri, label FROM 'DEMO/predictions/**/*.parquet' WHERE rank <= 1")
    )
    right = sum(best[str(ARCHIVE / path)] == label for path, label in truth.items())
    assert right / len(truth) >= 0.75, f"{right} of {len(truth)}"


def test_the_demo_shows_failures_too(demo):
    found = rows(demo, "SELECT uri, reason FROM 'DEMO/failures/**/*.parquet' ORDER BY reason")
    assert [reason for _, reason in found] == ["not_an_image", "truncated_image"]


def test_the_query_of_the_readme_runs_as_written(demo):
    (query,) = re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    counted = duckdb.sql(query).fetchall()
    assert 0 < sum(items for _, items, _ in counted) <= 57
    assert len(counted) == 10


def test_the_archive_is_small_and_of_many_kinds():
    files = [path for path in ARCHIVE.rglob("*") if path.is_file()]
    assert 50 <= len(files) <= 70
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    kinds: Counter[str | None] = Counter()
    turned = transparent = unreadable = 0
    for path in files:
        try:
            with Image.open(path) as image:
                image.load()
                kinds[image.format] += 1
                turned += image.getexif().get(0x0112, 1) != 1
                transparent += image.has_transparency_data
        except OSError:
            unreadable += 1
    assert set(kinds) == {"JPEG", "PNG", "WEBP", "GIF", "TIFF"}
    assert unreadable == 2
    assert turned >= 1
    assert transparent >= 1


def test_the_model_is_small_and_has_a_card():
    assert (MODEL / "open_clip_model.safetensors").stat().st_size <= 8_000_000
    card = (MODEL / "README.md").read_text()
    assert "photograph" in card
    assert "--pretrained" in card


def test_the_wheel_carries_everything(tmp_path):
    # Built from a copy: what an earlier build left in the checkout must not help.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pipelines", "transforms", "tests", "demo"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--wheel-dir", str(tmp_path), str(source),
        ],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("beamtag-*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    for package in ("pipelines", "transforms"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in carried
    assert not any(name.startswith(("tests", "demo", "deploy")) for name in carried)
