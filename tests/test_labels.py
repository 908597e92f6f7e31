from __future__ import annotations

from dataclasses import fields, replace

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from transforms.labels import Label, LabelSet, Resource, imagenet, paths_of, plain

SHOWN = Resource("/a/dog.jpg", "0f", "labels.yaml:4")
ANIMALS = LabelSet(
    "animals",
    (Label("dog", examples=(SHOWN,)), Label("animal"), Label("cat", prompts=("a cat",))),
    templates=("a {}", "two {}s"),
    threshold=0.5,
)

OF_SET = {
    "labels": ANIMALS.labels[:2],
    "templates": ("a {}",),
    "top_k": 4,
    "threshold": 0.25,
    "activation": "sigmoid",
    "temperature": 0.02,
    "background": ("nothing",),
    "levels": "leaves",
    "example_weight": 0.25,
    "adapter": Resource("/a/adapter"),
}
"""A change of every field that can change a tag."""

OF_LABEL = {
    "name": "hound",
    "id": "Q144",
    "prompts": ("a dog",),
    "templates": ("some {}",),
    "translations": (("de", ("ein Hund",)),),
    "against": ("a hot dog",),
    "examples": (),
    "example_weight": 0.75,
    "threshold": 0.0,
    "weight": 2.0,
    "parent": "animal",
}


def with_first(**changes) -> LabelSet:
    first, *others = ANIMALS.labels
    return replace(ANIMALS, labels=(replace(first, **changes), *others))


def test_the_id_changes_with_every_field_that_can_change_a_tag_and_with_no_other():
    assert {*OF_SET, "name", "version"} == {field.name for field in fields(LabelSet)}
    assert {*OF_LABEL, "description"} == {field.name for field in fields(Label)}
    changed = [
        ANIMALS,
        *(replace(ANIMALS, **{name: value}) for name, value in OF_SET.items()),
        *(with_first(**{name: value}) for name, value in OF_LABEL.items()),
        with_first(examples=(replace(SHOWN, sha256="1e"),)),
        with_first(translations=(("nl", ("ein Hund",)),)),
        with_first(example_weight=0.0),
        with_first(example_weight=1.0),
        replace(ANIMALS, labels=ANIMALS.labels[::-1]),
        replace(ANIMALS, threshold=None),
        replace(ANIMALS, adapter=Resource("/a/adapter", "2d")),
    ]
    ids = [label_set.label_set_id for label_set in changed]
    assert len({*ids}) == len(ids)
    assert all(found.startswith("animals-") and len(found) == 16 for found in ids)
    same = [
        replace(ANIMALS, version="2"),
        with_first(description="The pet."),
        with_first(examples=(replace(SHOWN, where="other.yaml:1"),)),
        # Of a file that was read what is in it counts, and not where it is.
        with_first(examples=(replace(SHOWN, uri="gs://b/dog.jpg"),)),
    ]
    assert {label_set.label_set_id for label_set in same} == {ANIMALS.label_set_id}
    renamed = replace(ANIMALS, name="beasts").label_set_id
    assert renamed == ANIMALS.label_set_id.replace("animals", "beasts")


def test_what_stands_for_a_label():
    def prompts(**changes):
        label_set = with_first(**changes)
        return label_set.prompts_of(label_set.labels[0])

    german = (("de", ("ein Hund", "Hunde")), ("fr", ("un chien",)))
    translated = ("ein Hund", "Hunde", "un chien")
    assert prompts() == ("a dog", "two dogs")
    assert prompts(translations=german) == ("a dog", "two dogs", *translated)
    assert prompts(templates=("my {}",)) == ("my dog",)
    assert prompts(prompts=("it barks",)) == ("it barks",)
    assert prompts(prompts=("it barks",), templates=("my {}",), translations=german) == (
        "it barks", "my dog", *translated,
    )  # fmt: skip
    # A name is taken as it is, whatever is in it.
    assert prompts(name="{0} {}") == ("a {0} {}", "two {0} {}s")
    # Examples with a share of 1 stand alone; a share without examples means nothing.
    assert prompts(example_weight=1.0, prompts=("it barks",), translations=german) == ()
    assert prompts(example_weight=0.99) == ("a dog", "two dogs")
    assert prompts(example_weight=1.0, examples=()) == ("a dog", "two dogs")
    all_shown = replace(ANIMALS, example_weight=1.0)
    assert [all_shown.prompts_of(label) for label in all_shown.labels] == [
        (), ("a animal", "two animals"), ("a cat",),
    ]  # fmt: skip


def test_a_label_has_the_sets_threshold_and_example_weight_unless_it_has_its_own():
    own = with_first(threshold=0.0, example_weight=0.0)
    assert [own.threshold_of(label) for label in own.labels] == [0.0, 0.5, 0.5]
    assert [own.example_weight_of(label) for label in own.labels] == [0.0, 0.5, 0.5]
    assert ANIMALS.examples == (SHOWN,)


def test_the_command_line_overrides_the_file():
    labels = with_first(threshold=0.125)
    assert labels.with_overrides(None, None) == labels
    assert labels.with_overrides(3, None) == replace(labels, top_k=3)
    overridden = labels.with_overrides(None, 0.0)
    assert {overridden.threshold_of(label) for label in overridden.labels} == {0.0}
    assert overridden == replace(ANIMALS, threshold=0.0)
    assert overridden.label_set_id != labels.label_set_id


def test_paths_lead_from_the_root_whatever_the_order_of_labels():
    labels = (
        Label("crane", id="c2", parent="b"),
        Label("bird", id="b", parent="animal"),
        Label("crane", id="c1", parent="machine"),
        Label("animal"),
        Label("machine"),
    )
    tree = LabelSet("tree", labels)
    assert tree.parents == (1, 3, 4, -1, -1)
    assert tree.paths == (
        "animal/bird/crane", "animal/bird", "machine/crane", "animal", "machine",
    )  # fmt: skip
    long = paths_of([str(place) for place in range(5000)], [*range(1, 5000), -1])
    assert (long[-1], long[-3], long[0].count("/")) == ("4999", "4999/4998/4997", 4999)
    with pytest.raises(KeyError):
        assert LabelSet("tree", labels[:2]).parents


def test_imagenet_is_open_clips():
    found = imagenet()
    assert [label.name for label in found.labels] == list(IMAGENET_CLASSNAMES)
    assert [int(label.key) for label in found.labels] == list(range(1000))
    assert len({label.name for label in found.labels}) == 998
    crane = found.labels[134]
    expected = tuple(template(crane.name) for template in OPENAI_IMAGENET_TEMPLATES)
    assert found.prompts_of(crane) == expected
    assert len(expected) == 80


def test_a_runs_record_has_what_a_set_says_and_nothing_else():
    told = plain(with_first(threshold=1.0, example_weight=1.0, weight=2.0))
    dog, animal, cat = told["labels"]
    example = {"uri": "/a/dog.jpg", "sha256": "0f", "where": "labels.yaml:4"}
    assert dog == {
        "name": "dog", "examples": (example,), "threshold": 1.0, "example_weight": 1.0,
        "weight": 2.0,
    }  # fmt: skip
    assert (animal, cat) == ({"name": "animal"}, {"name": "cat", "prompts": ("a cat",)})
    assert (told["name"], told["threshold"], told["levels"]) == ("animals", 0.5, "every")
    assert not {"adapter", "version", "background", "temperature"} & told.keys()
