"""Values written into a label file's text, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.labelediting import EditError, edited, own_keys
from transforms.labelfile import parse_label_set
from transforms.labels import builtin_label_sets, builtin_label_text

BEFORE = """\
# 🐕 what is looked for
name: things   # the name
top_k: 2
threshold:     # nothing yet
labels:   # all of them
  - dog   # 🐶 a dog
  - "cat"
  - name: tree  # T
    id: t1

    prompts: [a, b]   # two
  # of the road
  - {name: car, id: c9}
  - id: h
    threshold: 0.5  # old
    name: house
  - >
    big
    bird
  - salt, pepper
  -
    fish, chips
  -   deep
  - a name of
    two lines
  - name: |
      of a block
    weight: 2
  - mouse
# the end"""

AFTER = """\
# 🐕 what is looked for
name: things   # the name
temperature: 0.02
top_k: 2
threshold: 0.4     # nothing yet
labels:   # all of them
  - name: dog   # 🐶 a dog
    threshold: 0.25
  - name: "cat"
    threshold: 0.0000001
  - name: tree  # T
    threshold: 0.3
    id: t1

    prompts: [a, b]   # two
  # of the road
  - {name: car, threshold: 0.4, id: c9}
  - id: h
    threshold: 0.6  # old
    name: house
  - {name: "big bird", threshold: 0.1}
  - name: salt, pepper
    threshold: 0.2
  -
    {name: "fish, chips", threshold: 0.7}
  -   name: deep
      threshold: 0.9
  - {name: "a name of two lines", threshold: 0.8}
  - threshold: 0.15
    name: |
      of a block
    weight: 2
  - mouse
# the end"""

THRESHOLDS = {
    "dog": 0.25, "cat": 1e-7, "t1": 0.3, "c9": 0.4, "h": 0.6, "big bird": 0.1,
    "salt, pepper": 0.2, "fish, chips": 0.7, "deep": 0.9, "a name of two lines": 0.8,
    "of a block": 0.15,
}  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_values_land_in_their_places_and_all_else_stays(end: str):
    before, after = (text.replace("\n", end) for text in (BEFORE, AFTER))
    # A block's own line ends are written anew, as YAML reads them.
    told = edited(
        before, "a.yaml", "a.yaml", thresholds=THRESHOLDS, temperature=0.02, threshold=0.4
    )
    assert told.replace(end, "\n") == AFTER
    assert edited(told, "a.yaml", "a.yaml", thresholds=THRESHOLDS, temperature=0.02) == told
    assert edited(before, "a.yaml", "a.yaml") == before
    assert own_keys(after) == {*THRESHOLDS, "mouse"}


def test_a_file_of_one_line_is_edited_too():
    text = "{name: a, labels: [dog, 'big cat', {threshold: ~, name: tree}], threshold: 1}"
    told = edited(text, "a.yaml", "a.yaml", thresholds={"dog": 0.5, "big cat": 0.25, "tree": 0.75})
    assert told == (
        "{name: a, labels: [{name: dog, threshold: 0.5}, {name: 'big cat', threshold: 0.25}, "
        "{threshold: 0.75, name: tree}], threshold: 1}"
    )
    told = edited(text, "a.yaml", "a.yaml", temperature=2, threshold=0.0)
    assert told == text.replace("a,", "a, temperature: 2.0,", 1).replace(": 1}", ": 0.0}")


words = st.text(st.sampled_from("ab ,:#'\"-{}[]é🐕&*!|>%@0"), min_size=1, max_size=8)
quoted = st.sampled_from(["'", '"', ""])


@given(st.lists(st.tuples(words, quoted, st.booleans()), min_size=1, max_size=5), st.data())
def test_whatever_a_label_is_called_its_threshold_lands_or_the_edit_is_refused(drawn, data):
    lines = ["name: a", "activation: cosine", "labels:"]
    for word, quote, is_map in drawn:
        escaped = word.replace("'", "''") if quote == "'" else word.replace('"', '\\"')
        written = f"{quote}{escaped if quote else word}{quote}"
        lines.append(f"  - name: {written}" if is_map else f"  - {written}   # {word}")
    text = "\n".join(lines)
    try:
        before = parse_label_set(text, "a.yaml")
    except Exception:
        return
    keys = data.draw(st.sets(st.sampled_from([label.key for label in before.labels])))
    told = edited(text, "a.yaml", "a.yaml", thresholds=dict.fromkeys(keys, 0.125))
    labels = [
        replace(label, threshold=0.125) if label.key in keys else label for label in before.labels
    ]
    assert parse_label_set(told, "a.yaml") == replace(before, labels=tuple(labels))


@pytest.mark.parametrize("name", [name for name in builtin_label_sets() if name != "imagenet"])
def test_a_packaged_set_takes_thresholds_for_all_its_labels(name: str):
    text = builtin_label_text(name)
    before = parse_label_set(text, name)
    keys = own_keys(text)
    assert keys == {label.key for label in before.labels}
    told = edited(text, name, "/elsewhere/copy.yaml", thresholds=dict.fromkeys(keys, 0.5))
    after = parse_label_set(told, name)
    assert {label.threshold for label in after.labels} == {0.5}
    assert [replace(label, threshold=None) for label in after.labels] == [
        replace(label, threshold=None) for label in before.labels
    ]
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert [line for line in told.splitlines() if line.strip().startswith("#")] == comments


def test_what_stands_elsewhere_is_not_written_here(tmp_path: Path):
    (tmp_path / "more.yaml").write_text("name: more\nlabels: [fish]\n")
    source = str(tmp_path / "a.yaml")
    text = "name: a\nincludes: [more.yaml]\nlabels: [dog]\nadapter: learnt.safetensors\n"
    with pytest.raises(EditError, match="does not list fish itself"):
        edited(text, source, source, thresholds={"fish": 0.5})
    beside = edited(text, source, str(tmp_path / "b.yaml"), thresholds={"dog": 0.5})
    assert "labels: [{name: dog, threshold: 0.5}]" in beside
    for elsewhere in (tmp_path / "x" / "a.yaml", "memory://bucket/a.yaml"):
        with pytest.raises(EditError, match="names files beside it"):
            edited(text, source, str(elsewhere), thresholds={"dog": 0.5})
    with pytest.raises(EditError, match="cannot be changed in place"):
        # More than a score can be.
        edited(text, source, source, thresholds={"dog": 1.5})
