"""`beamtag adapt`, as a user starts it, on an output whose pictures are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from colours import COLOURS, EACH, LABELS, Run, make_output, runner

from pipelines import adapt, evaluate, rescore
from transforms.adapters import parse_adapter
from transforms.model import forget_models, loaded_towers


@pytest.fixture(scope="module")
def root(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("adapted"), vit)


@pytest.fixture
def run(root: Path, vit: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(adapt.main, root, vit, capfd)


@pytest.fixture
def compare(root: Path, vit: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(evaluate.main, root, vit, capfd)


def test_a_few_labelled_items_make_an_adapter_that_the_other_jobs_take(
    run: Run, compare: Run, root: Path, vit: Path, tmp_path: Path
):
    assert not (root / "pictures").exists()
    # Half of the items are never shown to adapt.
    lines = (root / "truth.csv").read_text().splitlines()
    rows = [f"{root}/{line}" for line in lines[1:]]
    shown, fresh = tmp_path / "shown.csv", tmp_path / "fresh.csv"
    for file, part in ((shown, rows[::2]), (fresh, rows[1::2])):
        file.write_text("\n".join(["uri,label", *part]))
    # A file may name the adapter before there is one.
    labels = tmp_path / "labels.yaml"
    labels.write_text(LABELS.replace("labels:", "adapter: learnt.safetensors\nlabels:"))
    to = tmp_path / "learnt.safetensors"
    forget_models()
    done = run(labels=labels, truth=shown, to=to, json=True)
    assert (done.status, done.err) == (0, "")
    assert loaded_towers() == {"text"}
    told = done.told
    assert told["written"] == str(to)
    assert told["metric"] == "top-1"
    assert told["items"] == EACH * len(COLOURS) // 2
    assert told["after"] > told["before"]
    before = compare(truth=fresh, json=True).told
    after = compare(labels=labels, truth=fresh, json=True).told
    assert after["top_1"] > before["top_1"] + 0.2
    assert after["top_1"] > 0.9
    adapter = parse_adapter(to.read_bytes())
    # Pink has no items and keeps its words.
    assert adapter.keys == ("red", "verdant", "blue", "grey")
    assert adapter.told["items"] == told["items"]
    arguments = [f"--output={root}/out", f"--labels={labels}", f"--model=local-dir:{vit}"]
    assert rescore.main([*arguments, "--quiet"]) == 0
    tags = compare(labels=labels, truth=fresh, predictions=True, json=True).told
    assert tags["top_1"] == after["top_1"]
    # The same again over it, from the words and not from what was learnt.
    content = to.read_bytes()
    assert run(labels=labels, truth=shown, to=to).status == 2
    text = run(labels=labels, truth=shown, to=to, overwrite=True)
    assert text.status == 0
    assert "held-out items" in text.out
    assert "learnt from all 24 items for 4 of 5 labels" in text.out
    again = parse_adapter(to.read_bytes())
    assert np.array_equal(again.vectors, parse_adapter(content).vectors)


def test_what_is_no_better_than_the_words_is_refused(run: Run, root: Path, tmp_path: Path):
    to = tmp_path / "learnt.safetensors"
    # Where the words are always right nothing can be better.
    done = run(truth=root / "tags.csv", to=to)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("beamtag adapt: failed: top-1 of ")
    assert ": 1.0000 by the words, " in done.err
    assert done.err.endswith(": not better than the words, so nothing is written\n")
    assert done.err.count("\n") == 1
    rows = [f"{root}/pictures/{name}/00.png,{name}" for name in COLOURS]
    (tmp_path / "one.csv").write_text("\n".join(["uri,label", *rows]))
    done = run(truth=tmp_path / "one.csv", to=to)
    assert done.status == 1
    assert "no two items have the same labels: none can be held out" in done.err
    done = run(truth=tmp_path / "none.csv", to=to)
    assert done.status == 2
    assert done.err == f"beamtag adapt: error: no truth file {tmp_path}/none.csv\n"
    assert not to.exists()


@pytest.mark.parametrize("activation", ["sigmoid", "cosine"])
def test_items_of_several_labels_are_judged_by_their_ranks(
    run: Run, compare: Run, root: Path, tmp_path: Path, activation: str
):
    labels = tmp_path / "labels.yaml"
    text = LABELS.replace("labels:", f"activation: {activation}\nlabels:").replace("pink", "vivid")
    labels.write_text(text)
    vivid = [
        f"{root}/pictures/{name}/{number:02d}.png,{label}"
        for name in COLOURS
        for number in range(EACH)
        for label in (name, "vivid")
        if name != "grey" or label == "grey"
    ]
    truth = tmp_path / "truth.csv"
    truth.write_text("\n".join(["uri,label", *vivid]))
    to = tmp_path / "learnt.safetensors"
    told = run(labels=labels, truth=truth, to=to, json=True).told
    assert told["metric"] == "mAP"
    assert told["after"] > told["before"]
    before = compare(labels=labels, truth=truth, json=True).told
    labels.write_text(text.replace("labels:", "adapter: learnt.safetensors\nlabels:"))
    after = compare(labels=labels, truth=truth, json=True).told
    assert after["mean_average_precision"] > before["mean_average_precision"] + 0.1
