"""`beamtag rescore`: other words for vectors that are there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import make_checkpoint
from conftest import Job, Outcome, write_pictures

from pipelines import cli, rescore
from transforms.modelstore import describe_model
from transforms.records import ModelSpec
from transforms.runlock import take_place

# All that can change a tag without a picture.
OTHER = """\
name: others
version: "2"
templates: ["the {}", "many {}s"]
background: [nothing at all, a wall]
temperature: 0.05
top_k: 3
threshold: 0.1
labels:
  - {name: living, id: alive, weight: 2}
  - {name: dog, parent: alive, not: [a hot dog]}
  - {name: cat, parent: alive, threshold: 0.2, translations: {de: [eine Katze]}}
  - {name: thing, prompts: [some thing, any thing]}
  - {name: car, parent: thing}
"""
COLOURS = "name: colours\nlabels: [red, green, blue]\nactivation: cosine\ntop_k: 1\n"

OWN = ("run_id", "tagged_at", "embedded_at")


@pytest.fixture
def again(tmp_path, vit, capfd) -> Callable[..., Outcome]:
    """`beamtag rescore` in this process, on the job's model and output unless told otherwise."""

    def run(*arguments: str, labels: Path, output: Path | None = None, **flags: Any) -> Outcome:
        output = output or tmp_path / "out"
        defaults = {"labels": labels, "output": output, "model": f"local-dir:{vit}"}
        named = [f"--{name}={value}" for name, value in {**defaults, **flags}.items()]
        capfd.readouterr()
        status = rescore.main([*arguments, *named])
        printed = capfd.readouterr()
        return Outcome(status, printed.out, printed.err, output)

    return run


@pytest.fixture
def other(tmp_path) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(OTHER)
    return path


def tags(output: Path, label_set: str) -> dict[str, list[dict[str, Any]]]:
    """Of each file of a label set's predictions the rows, without those of the run."""
    (folder,) = (output / "predictions").glob(f"label_set={label_set}-*")
    return {
        str(path.relative_to(folder)): [
            {name: value for name, value in row.items() if name not in OWN}
            for row in pq.ParquetFile(path).read().to_pylist()
        ]
        for path in sorted(folder.rglob("*.parquet"))
    }


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What is in a folder, and when each file was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_it_is_the_same_as_tagging_with_the_new_labels(job: Job, again, other, tmp_path):
    pictures = write_pictures(tmp_path / "p", 9)
    (pictures / "00004.jpg").write_bytes(b"<html>")
    rows = ["uri,id,text,owner"]
    texts = ["" if n == 4 else "a dog in a car" for n in range(9)]
    rows += [f"{pictures}/{n:05d}.jpg,{n},{texts[n]},owner {n % 2}" for n in range(9)]
    (tmp_path / "list.csv").write_text("\n".join([*rows, ",x,only words about a cat,nobody"]))
    told = {"input": tmp_path / "list.csv", "carry": "owner", "run_date": "2026-01-31"}
    settings = {"shard_size": 4, "batch_size": 3}
    assert job(**told, **settings).status == 0
    expected = job(**told, **settings, labels=other, output=tmp_path / "whole")
    assert expected.status == 0, expected.err

    # Neither a picture nor the manifest is there any more.
    shutil.rmtree(pictures)
    (tmp_path / "list.csv").unlink()
    before = contents(tmp_path / "out" / "embeddings")
    done = again(labels=other)
    assert done.status == 0, done.err
    record = done.record
    assert (record["scored"], record["model"]["loaded"]) == (9, ["text"])
    assert (record["status"], record["counts"]["listed"]) == ("finished", 0)
    assert contents(tmp_path / "out" / "embeddings") == before

    found, wanted = tags(done.output, "others"), tags(expected.output, "others")
    assert len(found) == len(wanted)
    numbers = ("score", "similarity")
    by_item: list[dict[tuple[Any, ...], dict[str, Any]]] = []
    for files in (found, wanted):
        every = [row for rows in files.values() for row in rows]
        by_item.append({(row["uri"], row["id"], row["rank"]): row for row in every})
    assert by_item[0].keys() == by_item[1].keys()
    for key, row in by_item[0].items():
        same = by_item[1][key]
        for name in numbers:
            assert row.pop(name) == pytest.approx(same.pop(name), abs=1e-5)
        assert row == same
    assert {row["owner"] for row in by_item[0].values()} == {"owner 0", "owner 1", "nobody"}
    # Named as the files of vectors are, and with their days.
    (model,) = (done.output / "embeddings").iterdir()
    assert {str(Path(name)) for name in found} == {
        str(path.relative_to(model.parent)) for path in model.rglob("*.parquet")
    }


def test_only_what_lacks_predictions_is_scored_unless_told_again(job: Job, again, other, tmp_path):
    pictures = write_pictures(tmp_path / "p", 10)
    assert job(input=pictures, shard_size=3).status == 0
    first = again(labels=other)
    assert first.record["scored"] == 10
    folder = first.output / "predictions"
    before = contents(folder)

    nothing = again("--json", labels=other)
    assert nothing.status == 0
    record = first.record
    assert json.loads(nothing.out) == record
    assert (record["scored"], record["model"]["loaded"]) == (0, [])
    assert contents(folder) == before

    # A night that was broken off: one file is missing.
    gone = next(path for path in folder.rglob("*.parquet") if "label_set=others" in str(path))
    missing = len(set(pq.ParquetFile(gone).read(["uri"])["uri"].to_pylist()))
    gone.unlink()
    assert again(labels=other).status == 0
    assert first.record["scored"] == missing
    after = contents(folder)
    name = str(gone.relative_to(folder))
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] != before[key]] == [name]

    everything = again("--again", labels=other)
    record = first.record
    assert (everything.status, record["scored"], record["settings"]) == (0, 10, {"again": True})
    anew = contents(folder)
    assert anew.keys() == before.keys()
    assert {key for key in anew if anew[key] != after[key]} == {
        key for key in anew if key.startswith("label_set=others")
    }
    # Nor has the tag job anything left to do.
    assert job(input=pictures, shard_size=3, labels=other).record["scored"] == 0


def test_other_models_vectors_are_left_alone(job: Job, again, other, vit, tmp_path):
    pictures = write_pictures(tmp_path / "p", 4)
    second = make_checkpoint(tmp_path / "second", seed=1)
    assert job(input=pictures).status == 0
    assert job(input=pictures, model=f"local-dir:{second}").status == 0
    done = again(labels=other)
    assert done.status == 0, done.err
    assert done.record["scored"] == 4
    (label_set,) = (done.output / "predictions").glob("label_set=others-*")
    (model,) = label_set.iterdir()
    mine = describe_model(ModelSpec(f"local-dir:{vit}")).model_id
    assert model.name == f"model={mine}"

    third = make_checkpoint(tmp_path / "third", seed=2)
    held = sorted(
        path.name.removeprefix("model=") for path in (done.output / "embeddings").iterdir()
    )
    before = contents(done.output)
    for output, has in (
        (done.output, f"; it has those of {', '.join(held)}"),
        (tmp_path / "no", ""),
    ):
        refused = again(labels=other, model=f"local-dir:{third}", output=output)
        assert (refused.status, refused.out) == (2, "")
        (line,) = refused.err.splitlines()
        model_id = describe_model(ModelSpec(f"local-dir:{third}")).model_id
        assert line == f"beamtag rescore: error: {output} has no embeddings of {model_id}{has}"
    assert not (tmp_path / "no").exists()
    assert contents(done.output) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output=o"], "the following arguments are required: --labels"),
        (["--labels=nothing.yaml", "--output=o"], "no label file nothing.yaml"),
        (["--labels=everyday", "--output=o", "--threshold=2"], "--threshold=2 is not a score of"),
        (["--labels=everyday", "--labels=everyday", "--output=o"], "is given twice"),
        (["--labels=everyday", "--output=o", "--input=p"], "unknown option --input=p"),
        (["--labels=everyday", "--output=o", "more"], "unexpected argument 'more'"),
        (["--labels=everyday", "--output=o", "--model=local-dir:/no"], "no open_clip_config.json"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(
    arguments, told, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert rescore.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("beamtag rescore: error: ")
    assert told in line
    assert not (tmp_path / "o").exists()


def test_what_stops_a_run_is_told_in_a_line(job: Job, again, other, tmp_path):
    assert job(input=write_pictures(tmp_path / "p", 2)).status == 0
    before = contents(tmp_path / "out")
    with take_place(str(tmp_path / "out"), "20260101T000000-another") as place:
        place.start_beating()
        held = again(labels=other)
        assert held.status == 1
        (line,) = held.err.splitlines()
        assert line.startswith("beamtag rescore: failed: ")
        assert "20260101T000000-another" in line
        assert contents(tmp_path / "out") == before
        assert len(list((held.output / "runs").iterdir())) == 1
        done = again("--take_over", labels=other)
        assert done.status == 0, done.err
    assert done.record["scored"] == 2

    # And a file of vectors that is damaged is named, without a trace.
    (path,) = (tmp_path / "out" / "embeddings").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    broken = again("--again", labels=other)
    assert broken.status == 1
    assert broken.err.splitlines()[-1].startswith(f"beamtag rescore: failed: cannot read {path}: ")
    assert "Traceback" not in broken.err
    assert done.record["status"] == "failed"


def test_memory_does_not_grow_with_the_rows(job: Job, again, tmp_path):
    """Many times the files, each larger than what is read at a time: no more memory."""
    labels = tmp_path / "words.yaml"
    labels.write_text("name: words\nlabels: [dog, cat, tree, car, house, fish]\ntop_k: 6\n")
    assert job(input=write_pictures(tmp_path / "p", 2)).status == 0
    (path,) = (tmp_path / "out" / "embeddings").rglob("*.parquet")
    pair = pq.ParquetFile(path).read()
    rows = 9000  # more than are read at a time
    many = pair.take(np.arange(rows) % 2)
    peaks = {}
    for count in (2, 32):
        output = tmp_path / f"{count}"
        folder = output / path.parent.relative_to(tmp_path / "out")
        folder.mkdir(parents=True)
        pq.write_table(many, folder / "shard-00.parquet", compression="zstd")
        for number in range(1, count):
            (folder / f"shard-{number:02d}.parquet").hardlink_to(folder / "shard-00.parquet")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        done = again(labels=labels, output=output)
        assert done.status == 0
        peaks[count] = peak_bytes()
        assert done.record["scored"] == count * rows
        written = list((output / "predictions").rglob("*.parquet"))
        assert len(written) == count
        assert {pq.ParquetFile(file).metadata.num_rows for file in written} == {6 * rows}
        shutil.rmtree(output)
    # What is read of 30 files more would take 110 MiB, what is written more than 250.
    assert peaks[32] - peaks[2] < 70 * 2**20, peaks


def peak_bytes() -> int:
    """The most memory that this process had since its peak was forgotten."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) * 1024


def test_two_label_sets_as_the_readme_has_it(job: Job, vit, other, tmp_path, capfd):
    """An archive that is tagged gets two more label sets at once, which anybody can then ask."""
    pictures = write_pictures(tmp_path / "p", 6)
    assert job(input=pictures).status == 0
    (tmp_path / "colours.yaml").write_text(COLOURS)
    output = tmp_path / "out"
    capfd.readouterr()
    status = cli.main(
        [
            "rescore", f"--output={output}", f"--labels={other}",
            f"--labels={tmp_path / 'colours.yaml'}", f"--model=local-dir:{vit}",
        ]
    )  # fmt: skip
    printed = capfd.readouterr()
    assert status == 0, printed.err
    for text in (
        "6 stored vectors", "vectors/s", "(others-", "(colours-", f"{output}/predictions/",
    ):  # fmt: skip
        assert text in printed.out
    assert "listed" not in printed.out
    record = Outcome(status, printed.out, printed.err, output).record
    assert (record["scored"], record["model"]["loaded"]) == (6, ["text"])
    sets = duckdb.sql(
        "SELECT split_part(label_set, '-', 1), count(DISTINCT uri) "
        f"FROM read_parquet('{output}/predictions/*/*/*/*.parquet', hive_partitioning = true) "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert sets == [("colours", 6), ("others", 6), ("things", 6)]

    # Once more there is nothing to do, and that is said.
    arguments = [f"--output={output}", f"--labels={other}", f"--model=local-dir:{vit}"]
    assert cli.main(["rescore", *arguments]) == 0
    assert capfd.readouterr().out.startswith("Nothing to score: every vector of vit-")
