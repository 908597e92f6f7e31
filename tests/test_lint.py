"""`beamtag lint`, as a person meets it: findings with their lines, and what it exits with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Done, Job, write_pictures

from pipelines import lint

GOOD = """\
name: things
labels:
  - name: dog
    prompts: [a dog]
  - name: house
    prompts: [a house with a red roof]
"""
CUT = "a dog that runs and runs and runs over a very green and very wide meadow"


class Linted(Done):
    @property
    def found(self) -> set[tuple[int, str]]:
        return {(each["line"], each["kind"]) for each in self.told["findings"]}


@pytest.fixture
def linted(vit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """`beamtag lint` of a text, asked twice: what people read is what it gives as JSON."""

    def run(text: str | None, *arguments: object) -> Linted:
        path = tmp_path / "labels.yaml"
        if text is not None:
            path.write_text(text)
        told = [str(path), f"--model=local-dir:{vit}", *map(str, arguments)]
        capfd.readouterr()
        status = lint.main([*told, "--json"])
        printed = capfd.readouterr()
        linted = Linted(status, printed.out, printed.err)
        assert lint.main(told) == status
        again = capfd.readouterr()
        assert again.err == printed.err
        if printed.out:
            *lines, summary = again.out.splitlines()
            findings = linted.told["findings"]
            assert lines == [
                f"{each['file']}:{each['line']}: {each['kind']}: {each['message']}"
                for each in findings
            ]
            levels = [each["level"] for each in findings]
            counts = [(linted.told[f"{level}s"], level) for level in ("error", "warning")]
            assert [number for number, _ in counts] == [levels.count(level) for _, level in counts]
            assert summary == ", ".join(
                f"{number} {level}{'s' * (number != 1)}" for number, level in counts
            )
        return linted

    return run


def test_a_good_file_has_no_findings_and_a_warning_counts_only_with_strict(linted):
    good = linted(GOOD, "--strict", "--similar=1")
    assert (good.status, good.err, good.told["findings"]) == (0, "", [])
    assert good.told["label_set_id"].startswith("things-")
    assert good.told["model_id"].startswith("vit-")
    near = GOOD + "  - {name: hound, prompts: [A DOG]}\n"
    lenient = linted(near, "--similar=0.9999")
    assert (lenient.status, lenient.found) == (0, {(7, "near_synonym")})
    assert linted(None, "--strict", "--similar=0.9999").status == 1
    # An error counts anyway.
    cut = linted(GOOD.replace("a dog", CUT), "--similar=1")
    assert (cut.status, cut.found) == (1, {(4, "cut_prompt")})
    assert "'wide meadow' falls off" in cut.told["findings"][0]["message"]


def test_all_that_the_reader_refuses_is_a_finding_with_its_line(linted, tmp_path: Path):
    (tmp_path / "more.yaml").write_text("name: b\nlabels: [{name: hen, id: 1}, {nam: cow}]\n")
    found = linted("""\
name: a
includes: [more.yaml]
labels:
  - {name: dog, id: 1}
  - {name: cat, id: 2, parent: owl}
  - {name: owl, parent: cat}
""")
    assert found.status == 1
    where = [(Path(each["file"]).name, each["line"]) for each in found.told["findings"]]
    assert where == [("labels.yaml", 4), ("labels.yaml", 5), ("more.yaml", 2), ("more.yaml", 2)]
    messages = " ".join(each["message"] for each in found.told["findings"])
    assert "id '1' stands in" in messages
    assert "the parents go round: cat -> owl -> cat" in messages
    assert {each["kind"] for each in found.told["findings"]} == {"mistake"}


def test_labels_that_never_win_on_the_stored_archive_are_told(job: Job, linted, tmp_path: Path):
    names = ["dog", "cat", "tree", "car", "house", "river"]
    text = "name: things\ntop_k: 1\nlabels:\n" + "".join(f"  - {name}\n" for name in names)
    labels = tmp_path / "stored.yaml"
    labels.write_text(text)
    tagged = job(input=write_pictures(tmp_path / "in", 30), labels=labels)
    winners = {row["label"] for row in tagged.table("predictions")}
    assert 0 < len(winners) < len(names)
    output = f"--output={tmp_path / 'out'}"
    found = linted(text, output, "--similar=1")
    never = {(names.index(name) + 4, "never_wins") for name in names if name not in winners}
    assert {each for each in found.found if each[1] == "never_wins"} == never
    assert all("none of 30 items" in each["message"] for each in found.told["findings"])
    sampled = linted(text, output, "--sample=1", "--similar=1")
    assert len([kind for _, kind in sampled.found if kind == "never_wins"]) == len(names) - 1


def test_examples_are_looked_at_and_those_that_cannot_be_are_findings(linted, tmp_path: Path):
    write_pictures(tmp_path, 2)
    shown = """\
name: a
labels:
  - {name: one, examples: [00000.jpg], example_weight: 1}
  - {name: same, examples: [./00000.jpg], example_weight: 1}
  - {name: other, examples: [00001.jpg]}
"""
    assert (4, "near_synonym") in linted(shown, "--similar=0.9999").found
    gone = linted(shown.replace("00001", "gone") + f"  - {{name: dog, prompts: [{CUT}]}}\n")
    assert (gone.status, gone.found) == (1, {(5, "mistake"), (6, "cut_prompt")})
    assert "gone.jpg cannot be used" in gone.told["findings"][0]["message"]


def test_bad_usage_is_told_in_a_line(job: Job, linted, tmp_path: Path):
    assert job(input=write_pictures(tmp_path / "in", 2)).status == 0
    (tmp_path / "labels.yaml").unlink()
    for text, arguments, wrong in [
        (None, (), "no label file"),
        (GOOD, ("--sample=3",), "--sample is about --output, which is not given"),
        (GOOD, ("--similar=2",), "'2' is not a number from 0 to 1"),
        (GOOD, ("another",), "unrecognized arguments: another"),
        (GOOD, ("--model=local-dir:/nowhere",), "no open_clip_config.json in /nowhere"),
        (GOOD, (f"--output={tmp_path / 'nowhere'}",), "has no embeddings of vit-"),
        (GOOD, ("--output=nostore://x",), "--output=nostore://x: "),
    ]:
        status, out, err = linted(text, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("beamtag lint: error: ")
        assert wrong in err
    for path in (tmp_path / "out" / "embeddings").rglob("*.parquet"):
        path.write_bytes(b"no table")
    failed = linted(GOOD, f"--output={tmp_path / 'out'}")
    assert (failed.status, failed.out) == (1, "")
    assert failed.err.startswith("beamtag lint: failed: ")
