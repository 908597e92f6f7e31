"""`beamtag calibrate`, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint
from colours import COLOURS, EACH, LABELS, SHOWN, Run, make_output, runner

from pipelines import calibrate, evaluate
from transforms.decoding import ImageDecoder
from transforms.examples import place_labels
from transforms.labelfile import read_label_set
from transforms.latest import collect, latest_vectors
from transforms.modelstore import describe_model
from transforms.records import ModelSpec, ReadLimits
from transforms.scoring import scores, similarities


@pytest.fixture(scope="module")
def root(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("calibrated"), vit)


@pytest.fixture
def run(root: Path, vit: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(calibrate.main, root, vit, capfd)


@pytest.fixture
def compare(root: Path, vit: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(evaluate.main, root, vit, capfd)


def scored(root: Path, model: Path, labels: Path | str) -> np.ndarray:
    """Scores of all items, in no order."""
    spec = ModelSpec(f"local-dir:{model}", None, "cpu")
    info = describe_model(spec)
    decode = ImageDecoder(info.preprocess, 10**6, (255, 255, 255))
    placed = place_labels(read_label_set(str(labels)), spec, decode, ReadLimits())
    items = collect(latest_vectors(str(root / "out"), info.model_id))
    return scores(similarities(items.vectors, placed), placed)


def test_what_helps_on_held_out_items_is_written_into_a_copy(
    run: Run, compare: Run, root: Path, tmp_path: Path
):
    labels, to = root / "shown.yaml", root / "new.yaml"
    before = sorted((root / "out").rglob("*"))
    done = run(labels=labels, to=to, held_out=0.5, json=True)
    told = done.told
    assert (done.status, done.err) == (0, "")
    assert told["written"] == str(to)
    assert told["fitted"] + told["held_out"] == EACH * len(COLOURS)
    assert told["held_out"] == told["before"]["items"]
    assert told["temperature_helps"]
    assert told["warmed"]["nll"] < told["before"]["nll"]
    assert told["thresholds_help"] == (told["tagged"]["f1"] > told["warmed"]["f1"])
    assert sorted((root / "out").rglob("*")) == before
    assert labels.read_text() == SHOWN
    text = to.read_text()
    old, new = read_label_set(str(labels)), read_label_set(str(to))
    kept = [label.threshold for label in old.labels]
    found = told["thresholds"]["own"]
    assert new.temperature == told["temperature"]
    assert [label.threshold for label in new.labels] == (
        list(found.values()) if told["thresholds_help"] else kept
    )
    assert [replace(label, threshold=None) for label in new.labels] == [
        replace(label, threshold=None) for label in old.labels
    ]
    lines = [line for line in text.splitlines() if "temperature" not in line]
    assert len(lines) >= len(SHOWN.splitlines())
    for comment in ("# What is looked for, ", "# the name", "# like blood", "# like grass"):
        assert comment in text
    # evaluate says the same of all items as calibrate of those that it held out.
    errors = [compare(labels=file, json=True).told["calibration_error"] for file in (labels, to)]
    assert (errors[1] < errors[0]) == (told["after"]["ece"] < told["before"]["ece"])


def test_thresholds_for_a_wanted_precision_have_it_and_few_items_get_none(
    run: Run, root: Path, tmp_path: Path
):
    # All labels of a picture are tags, so only thresholds make them right.
    labels = root / "all.yaml"
    labels.write_text(LABELS.replace("top_k: 1", "top_k: 5"))
    done = run(labels=labels, to=tmp_path / "f1.yaml", json=True)
    told = done.told
    assert told["thresholds_help"]
    assert told["after"]["f1"] > told["before"]["f1"]
    assert set(told["thresholds"]["own"]) == {"red", "verdant", "blue", "grey"}
    assert told["thresholds"]["few"] == ["pink"]
    written = read_label_set(str(tmp_path / "f1.yaml"))
    own = {label.key: label.threshold for label in written.labels if label.threshold is not None}
    assert own == told["thresholds"]["own"]
    assert written.threshold == told["thresholds"]["of_set"]
    done = run(labels=labels, to=tmp_path / "p.yaml", precision=0.9, json=True)
    precise = done.told
    assert precise["tagged"]["precision"] > told["before"]["precision"]
    assert run(labels=labels, to=tmp_path / "p.yaml", least=100, overwrite=True).status == 0
    assert {label.threshold for label in read_label_set(str(tmp_path / "p.yaml")).labels} == {None}
    text = run(labels=labels, to=tmp_path / "t.yaml").out
    assert "what is kept" in text
    assert "1 label with fewer than 5 items, which the set's threshold is for: pink" in text
    assert text.endswith(f"written: {tmp_path / 't.yaml'}\n")


def test_where_nothing_gets_better_nothing_is_written_unless_forced(
    run: Run, root: Path, tmp_path: Path
):
    to = tmp_path / "new.yaml"
    done = run(truth=root / "tags.csv", to=to, quiet=True)
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        "beamtag calibrate: failed: nothing makes the held-out items' figures better: nothing is "
        "written\n"
    )
    assert not to.exists()
    done = run(truth=root / "tags.csv", to=to, force=True)
    assert (done.status, done.err) == (0, "")
    assert "thresholds do not make the held-out tags better: written because of --force" in done.out
    assert "temperature: these items do not tell one: not written" in done.out
    assert read_label_set(str(to)).threshold is not None
    assert read_label_set(str(to)).temperature is None


def test_without_truth_the_scores_of_the_archive_tell_the_thresholds(
    run: Run, root: Path, vit: Path, tmp_path: Path
):
    (tmp_path / "more.yaml").write_text("name: more\nlabels: [black, white]\n")
    labels = tmp_path / "labels.yaml"
    labels.write_text(LABELS.replace("labels:", "includes: [more.yaml]\nlabels:"))
    done = run(labels=labels, truth=None, share=0.25, to=tmp_path / "new.yaml")
    assert (done.status, done.err) == (0, "")
    assert "a guess, from the scores of 48 items" in done.out
    assert (
        "2 labels of included files, which are not changed; thresholds of their own can only be "
        "written there: black, white\n" in done.out
    )
    written = read_label_set(str(tmp_path / "new.yaml"))
    least = [label.threshold for label in written.labels]
    assert least[:2] == [None, None]
    reached = (scored(root, vit, labels)[:, 2:] >= np.array(least[2:], np.float32)).sum(axis=0)
    assert np.abs(reached - 12).max() <= 2
    # A label file may be calibrated in place, if that is said twice.
    assert run(labels=labels, truth=None, share=0.5, to=labels).status == 2
    assert run(labels=labels, truth=None, share=0.5, to=labels, overwrite=True).status == 0
    assert read_label_set(str(labels)).labels[2].threshold < least[2]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"truth": None}, "--truth=FILE, or --share=SHARE to guess without it"),
        ({"share": 0.1}, "--share is for want of a truth"),
        ({"precision": 0.9, "f1": True}, "not allowed with argument"),
        ({"precision": 0}, "is not a number above 0"),
        ({"held_out": 1}, "is not a share above 0 and below 1"),
        ({"labels": "imagenet"}, "--labels=imagenet is not a file"),
        ({"labels": "/nowhere.yaml"}, "no label file /nowhere.yaml"),
        ({"truth": "/nowhere.csv"}, "no truth file /nowhere.csv"),
        ({"to": "http://host/new.yaml"}, "nothing can be written to http://"),
        ({"to": "nosuch://host/new.yaml"}, "--to=nosuch://host/new.yaml: "),
        ({"output": "/nowhere"}, "/nowhere has no embeddings of "),
        ({"model": "local-dir:/nowhere"}, "no open_clip_config.json"),
    ],
)
def test_bad_usage_is_told_in_a_line_before_any_work(
    run: Run, tmp_path: Path, flags: dict[str, object], told: str
):
    done = run(**{"to": tmp_path / "new.yaml", **flags})
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("beamtag calibrate: error: ")
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "new.yaml").exists()


def test_a_truth_and_a_place_that_cannot_be_used_are_bad_usage_too(
    run: Run, root: Path, tmp_path: Path
):
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    assert f"--to={there} is there already (--overwrite writes over it)" in run(to=there).err
    assert there.read_text() == "mine"
    truth = tmp_path / "truth.csv"
    truth.write_text("uri,label\na.png,red\nb.png,mauve\n")
    done = run(truth=truth, to=tmp_path / "new.yaml")
    assert done.status == 2
    assert "truth.csv:3: label 'mauve' is not in the label set 'colours'" in done.err
    done = run(truth=truth, unknown="ignore", to=tmp_path / "new.yaml")
    assert done.status == 2
    assert f"no item of {root / 'out'} has truth: {truth} has {tmp_path}/a.png" in done.err
    labels = root / "included.yaml"
    labels.write_text(LABELS.replace("labels:", "includes: [labels2.yaml]\nlabels:"))
    (root / "labels2.yaml").write_text("name: more\nlabels: [black]\n")
    done = run(labels=labels, to=tmp_path / "new.yaml")
    assert done.status == 2
    assert "names files beside it" in done.err
    truth.write_text(f"uri,label\n{root}/pictures/red/00.png,red\n")
    done = run(truth=truth, to=tmp_path / "new.yaml")
    assert done.status == 1
    assert "no two items have the same labels: none can be held out" in done.err


def test_another_models_vectors_are_not_taken(run: Run, tmp_path: Path):
    other = make_checkpoint(tmp_path / "other", seed=7)
    done = run(model=f"local-dir:{other}", to=tmp_path / "new.yaml")
    assert done.status == 2
    assert "tell --model" in done.err


@pytest.mark.parametrize("job", ["calibrate", "adapt"])
def test_help_waits_for_neither_torch_nor_beam(job: str):
    code = (
        f"import sys; from pipelines.{job} import parser; parser().format_help(); "
        "print({'torch', 'apache_beam', 'numpy', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
