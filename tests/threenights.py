"""An output as warehouses get it."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

from pipelines import tag

DRAWINGS = Path(__file__).parent.parent / "transforms" / "data" / "demo_archive"
WORDS = "name: things\ntemplates: ['a drawing of a {}.']\ntop_k: 2\nlabels: "


def make_tables(folder: Path) -> Path:
    """Three nights of the real job with the demo model; gives the output.

    Pictures, a text and a pair, one with an id; one picture that changes, one that is broken and
    then mended, one that is broken later; two label files, of which one changes, so that an old day
    gets new files; a column that is carried from the second night on.
    """
    archive = folder / "archive"
    archive.mkdir()
    names = [path.name for path in sorted((DRAWINGS / "animals").iterdir())][:12]
    for name in names:
        shutil.copy(DRAWINGS / "animals" / name, archive)
    changing, mended, breaking = names[:3]
    good = (archive / mended).read_bytes()
    _put(archive / mended, b"<html>", 1000)
    rows = [[f"archive/{name}", "", "", "us"] for name in names]
    rows[4][1:3] = ["four", "A cat that sits."]
    rows.append(["archive/words.txt", "", "A dog. " * 60, "them"])
    words, places = folder / "things.yaml", folder / "places.yaml"
    places.write_text("name: places\nlabels: [garden, sea, street]\n")
    output = folder / "tables"

    def night(day: int, columns: int, *more: str) -> None:
        with (folder / "list.csv").open("w", newline="") as file:
            told = [["uri", "id", "text", "owner"], *rows]
            csv.writer(file).writerows(row[:columns] for row in told)
        arguments = [
            f"--input={folder}/list.csv", f"--output={output}", f"--run_date=2026-01-0{day}",
            "--shard_size=5", f"--labels={places}", "--quiet", *more,
        ]  # fmt: skip
        assert tag.main(arguments) == 0

    words.write_text(WORDS + "[cat, dog, fish]\n")
    night(1, 3, f"--labels={words}")
    _put(archive / changing, (DRAWINGS / "food" / "hamburger-1.jpg").read_bytes(), 2000)
    _put(archive / mended, good, 2000)
    words.write_text(WORDS + "[cat, dog, horse, hamburger]\n")
    night(2, 4, f"--labels={words}", "--carry=owner", "--retry=all")
    _put(archive / breaking, good[:200], 3000)
    night(3, 4, "--carry=owner")
    return output


def _put(path: Path, content: bytes, second: int) -> None:
    path.write_bytes(content)
    os.utime(path, (second, second))
