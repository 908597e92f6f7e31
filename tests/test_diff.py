"""`beamtag diff`, as a person meets it: what it says first is what the tables become."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, Job, Outcome, write_pictures

from pipelines import cli, diff

OLD = """\
name: things
threshold: 0.2
labels: [dog, cat, tree, {name: car, id: vehicle}, house]
top_k: 2
"""
NEW = """\
name: things
threshold: 0.15
labels:
  - dog
  - {name: cat, prompts: [a tiger asleep]}
  - {name: wood, id: tree, weight: 2}
  - {name: motor car, id: vehicle}
  - river
top_k: 2
"""


@pytest.fixture
def diffed(vit: Path, capfd: pytest.CaptureFixture[str]):
    def run(*arguments: object, model: str | None = None) -> Done:
        capfd.readouterr()
        status = diff.main([*map(str, arguments), f"--model={model or f'local-dir:{vit}'}"])
        printed = capfd.readouterr()
        return Done(status, printed.out, printed.err)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tags_of(outcome: Outcome, label_set_id: str) -> dict[str, list[str]]:
    """Each item's `label_id`s, best first, as the tables have them."""
    found: dict[str, list[str]] = {}
    for row in outcome.table("predictions"):
        if row["label_set"] == label_set_id:
            found.setdefault(row["uri"], []).extend(filter(None, [row["label_id"]]))
    return found


def test_what_diff_says_is_what_the_tables_become(job: Job, diffed, tmp_path: Path):
    pictures = write_pictures(tmp_path / "in", 40)
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(OLD)
    new.write_text(NEW)
    assert job(input=pictures, labels=old).status == 0
    output = tmp_path / "out"
    stored = files(output)
    text = diffed(old, new, f"--output={output}")
    printed = diffed(old, new, f"--output={output}", "--json", "--top=3")
    quiet = diffed(old, new, f"--output={output}", "--quiet")
    assert (text.status, printed.status, quiet) == (0, 0, (0, "", ""))
    assert text.err == printed.err == ""
    assert files(output) == stored

    told: dict[str, Any] = json.loads(printed.out)
    after = job(input=pictures, labels=new)
    tables = [tags_of(after, told[name]["label_set_id"]) for name in ("old", "new")]
    both = [(tables[0][uri], tables[1][uri]) for uri in tables[0]]
    assert len(both) == told["items"] == 40
    labels = {label["label_id"]: label for label in told["labels"]}
    assert labels.keys() == {"dog", "cat", "tree", "vehicle", "house", "river"}
    for key, label in labels.items():
        has = [(key in before, key in later) for before, later in both]
        assert label["before"] == sum(one for one, _ in has)
        assert label["after"] == sum(other for _, other in has)
        assert label["gained"] == has.count((False, True))
        assert label["lost"] == has.count((True, False))
        away = [later[0] for before, later in both if before[:1] == [key] and later]
        assert label["moved"] == sum(best != key for best in away)
    assert told["retagged"] == sum(set(before) != set(later) for before, later in both)
    assert told["untagged_before"] == sum(not before for before, _ in both)
    assert told["untagged_after"] == sum(not later for _, later in both)
    # The two differ, or this shows nothing.
    assert told["moved"] > 3
    assert told["retagged"] > 3
    assert labels["river"]["sets"] == "new"
    assert labels["house"]["sets"] == "old"
    assert labels["tree"]["was"] == "tree"
    assert labels["tree"]["label"] == "wood"
    most = told["items_most_changed"]
    assert len(most) == 3
    assert most[0]["change"] >= most[-1]["change"] > 0
    names = {label["label"]: key for key, label in labels.items()}
    for item in most:
        found = [[names[tag["label"]] for tag in item[when]] for when in ("before", "after")]
        assert found == [tables[0][item["uri"]], tables[1][item["uri"]]]

    assert "40 items with vectors of vit-" in text.out
    assert "Labels added: river." in text.out
    assert "Labels removed: house." in text.out
    assert "Labels renamed: tree is now wood; car is now motor car." in text.out
    assert f"Other tags than before: {told['retagged']} items" in text.out
    shown = [line.split() for line in text.out.splitlines()]
    for label in told["labels"]:
        numbers = [label[name] for name in ("before", "after", "gained", "lost", "moved")]
        if any(numbers[2:]):
            assert [*label["label"].split(), *map(str, numbers)] in shown
    move = told["moves"][0]
    assert [*move["before"].split(), *move["after"].split(), str(move["items"])] in shown
    assert most[0]["uri"] in text.out.splitlines()

    sampled = diffed(old, new, f"--output={output}", "--sample=10")
    assert "10 items with vectors of vit-" in sampled.out
    assert "a random sample of" in sampled.out
    same = diffed(old, old, f"--output={output}")
    assert same.status == 0
    assert "Nothing in the two files differs that could change a tag." in same.out
    assert "Other tags than before: 0 items." in same.out
    cosine = tmp_path / "cosine.yaml"
    cosine.write_text("name: c\nactivation: cosine\nlabels: [dog, cat]\n")
    assert "not of one kind (cosine and softmax)" in diffed(old, cosine, f"--output={output}").out


def test_a_mistake_is_told_in_a_line_and_before_any_work(job: Job, diffed, tmp_path: Path, labels):
    assert job(input=write_pictures(tmp_path / "in", 2)).status == 0
    output = f"--output={tmp_path / 'out'}"
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: a\nlabels: [dog, dog]\ncolour: red\n")
    shown = tmp_path / "shown.yaml"
    shown.write_text("name: a\nlabels:\n  - dog\n  - {name: cat, examples: [gone.jpg]}\n")
    nowhere = f"--output={tmp_path / 'nowhere'}"
    for arguments, wrong in [
        ((labels,), "the following arguments are required: NEW, --output"),
        ((labels, labels), "the following arguments are required: --output"),
        ((labels, labels, output, "--top=0"), "'0' is not a whole number from 1"),
        ((labels, labels, output, "--samples=3"), "unrecognized arguments: --samples=3"),
        ((labels, "gone.yaml", output), "no label file gone.yaml"),
        ((labels, shown, output), f"{shown}:4: example {tmp_path / 'gone.jpg'} cannot be used"),
        ((labels, labels, nowhere), "has no embeddings of vit-"),
        ((labels, labels, "--output=nostore://x"), "--output=nostore://x: "),
    ]:
        status, out, err = diffed(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("beamtag diff: error: ")
        assert wrong in err
    several = diffed(broken, labels, output)
    assert several.status == 2
    assert re.findall(r"error: \S+broken.yaml:(\d+): ", several.err) == ["2", "3"]
    other = diffed(labels, labels, output, model="demo")
    assert other.status == 2
    assert "has no embeddings of demo-" in other.err
    assert "it has those of vit-" in other.err

    for path in (tmp_path / "out" / "embeddings").rglob("*.parquet"):
        path.write_bytes(b"no table")
    failed = diffed(labels, labels, output)
    assert (failed.status, failed.out) == (1, "")
    assert failed.err.startswith("beamtag diff: failed: ")
    assert failed.err.count("\n") == 1


def test_diff_and_lint_are_jobs_of_the_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    jobs = capsys.readouterr().out
    for job in ("diff", "lint"):
        assert f"\n  {job} " in jobs
        with pytest.raises(SystemExit) as left:
            cli.main([job, "--help"])
        assert left.value.code == 0
        assert f"usage: beamtag {job}" in capsys.readouterr().out
