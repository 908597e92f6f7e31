from __future__ import annotations

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from transforms.labelfile import LabelFileError, parse_label_set
from transforms.labels import LabelSet, builtin_label_sets, builtin_label_text

WHOLE = """\
name: birds
templates:
  - "a photo of a {}."
  - "a {} in a tree"
labels:
  - robin
  - name: kiwi
    prompts: ["a kiwi bird", "a bird that does not fly"]
top_k: 1
threshold: 0.25
activation: sigmoid
"""


def parse(text: str) -> LabelSet:
    return parse_label_set(text, "birds.yaml")


def mistakes(text: str) -> tuple[str, ...]:
    with pytest.raises(LabelFileError) as caught:
        parse(text)
    return caught.value.mistakes


def test_a_whole_file():
    labels = parse(WHOLE)
    assert [label.name for label in labels.labels] == ["robin", "kiwi"]
    assert (labels.top_k, labels.threshold, labels.activation) == (1, 0.25, "sigmoid")
    robin, kiwi = labels.labels
    assert labels.prompts_of(robin) == ("a photo of a robin.", "a robin in a tree")
    assert labels.prompts_of(kiwi) == ("a kiwi bird", "a bird that does not fly")


def test_the_least_file():
    labels = parse("name: a\nlabels: [dog, cat]")
    assert labels.prompts_of(labels.labels[0]) == ("a photo of a dog.",)
    assert (labels.top_k, labels.threshold, labels.activation) == (5, None, "softmax")


def test_null_is_not_given():
    labels = parse("name: a\nlabels: [dog, cat]\nthreshold: null\ntop_k:\n")
    assert (labels.top_k, labels.threshold) == (5, None)


def test_words_are_as_written_whatever_yaml_makes_of_them():
    labels = parse("name: a\nlabels: [no, on, 2024, 1.50, 'null', été, 猫, 👩‍🚀]")
    assert [label.name for label in labels.labels] == [
        "no", "on", "2024", "1.50", "null", "été", "猫", "👩‍🚀",
    ]  # fmt: skip


def test_a_built_in_ensemble():
    labels = parse("name: a\nlabels: [dog, cat]\ntemplates: openai-imagenet")
    expected = tuple(template("dog") for template in OPENAI_IMAGENET_TEMPLATES)
    assert labels.prompts_of(labels.labels[0]) == expected
    assert len(expected) == 80


def test_built_in_sets_parse():
    assert "everyday" in builtin_label_sets()
    for name in builtin_label_sets():
        assert parse_label_set(builtin_label_text(name), name).name == name


def test_the_id_changes_with_whatever_can_change_a_tag():
    same = parse("# a comment\n" + WHOLE)
    assert same.label_set_id == parse(WHOLE).label_set_id
    assert parse(WHOLE).label_set_id.startswith("birds-")
    changed = [
        WHOLE.replace("robin", "wren"),
        WHOLE.replace("a kiwi bird", "the kiwi bird"),
        WHOLE.replace("in a tree", "on a tree"),
        WHOLE.replace("top_k: 1", "top_k: 2"),
        WHOLE.replace("0.25", "0.26"),
        WHOLE.replace("sigmoid", "softmax"),
    ]
    ids = {parse(text).label_set_id for text in [WHOLE, *changed]}
    assert len(ids) == 1 + len(changed)


def test_the_command_line_overrides_the_file():
    labels = parse(WHOLE)
    assert labels.with_overrides(None, None) == labels
    overridden = labels.with_overrides(3, 0.5)
    assert (overridden.top_k, overridden.threshold) == (3, 0.5)
    assert overridden.label_set_id != labels.label_set_id


MISTAKES = [
    ("", 1, "the file is empty"),
    ("# only a comment\n", 1, "the file is empty"),
    ("- dog\n- cat\n", 1, "is a map with the keys name and labels"),
    ("just words", 1, "is a map with the keys name and labels"),
    ("name: a\n", 1, "has no 'labels'"),
    ("labels: [a, b]\n", 1, "has no 'name'"),
    ("name: a\nlabels: [a, b]\ntempaltes: []\n", 3, "did you mean 'templates'?"),
    ("name: a\nlabels: [a, b]\ncolour: red\n", 3, "known: name, labels"),
    ("name: a\nlabels: [a, b]\n? [x]\n: 1\n", 3, "unknown key"),
    ("name: a\nlabels: [a, b]\nname: b\n", 3, "the key 'name' stands twice"),
    ("name: a/b\nlabels: [a, b]\n", 1, "becomes part of a path"),
    ("name: ''\nlabels: [a, b]\n", 1, "name is empty"),
    ("name: [a]\nlabels: [a, b]\n", 1, "name must be text"),
    ("name: a\nlabels: dog\n", 2, "labels must be a list"),
    ("name: a\nlabels: []\n", 2, "labels is an empty list"),
    ("name: a\nlabels:\n  - dog\n  -\n", 4, "a label is empty"),
    ("name: a\nlabels:\n  - dog\n  - [cat]\n", 4, "a label must be text"),
    ("name: a\nlabels:\n  - dog\n  - cat\n  - dog\n", 5, "'dog' stands on line 3 already"),
    ("name: a\nlabels:\n  - dog\n  - prompts: [a cat]\n", 4, "a label has no 'name'"),
    ("name: a\nlabels:\n  - dog\n  - name: cat\n    promts: [a]\n", 5, "did you mean 'prompts'?"),
    ("name: a\nlabels:\n  - dog\n  - name: cat\n    prompts: a cat\n", 5, "prompts must be a list"),
    ("name: a\nlabels:\n  - dog\n  - name: cat\n    prompts: []\n", 5, "prompts is an empty list"),
    ("name: a\nlabels:\n  - dog\n  - name: cat\n    prompts: ['']\n", 5, "a prompt is empty"),
    ("name: a\nlabels: [a, b]\ntemplates: fancy\n", 3, "no built-in templates are called 'fancy'"),
    ("name: a\nlabels: [a, b]\ntemplates: []\n", 3, "templates is an empty list"),
    ("name: a\nlabels: [a, b]\ntemplates: [a photo]\n", 3, "needs one {}"),
    ("name: a\nlabels: [a, b]\ntemplates: ['{} {}']\n", 3, "needs one {}"),
    ("name: a\nlabels: [a, b]\ntemplates: ['{} {label}']\n", 3, "needs one {}"),
    ("name: a\nlabels: [a, b]\ntop_k: 0\n", 3, "top_k must be a whole number from 1"),
    ("name: a\nlabels: [a, b]\ntop_k: 1.5\n", 3, "top_k must be a whole number from 1"),
    ("name: a\nlabels: [a, b]\ntop_k: many\n", 3, "top_k must be a whole number from 1"),
    ("name: a\nlabels: [a, b]\nactivation: relu\n", 3, "one of softmax, sigmoid, cosine"),
    ("name: a\nlabels: [a, b]\nthreshold: 1.5\n", 3, "a number from 0 to 1 for softmax"),
    ("name: a\nlabels: [a, b]\nthreshold: high\n", 3, "a number from 0 to 1 for softmax"),
    ("name: a\nlabels: [a, b]\nthreshold: .nan\n", 3, "a number from 0 to 1 for softmax"),
    (
        "name: a\nlabels: [a, b]\nactivation: cosine\nthreshold: -2\n",
        4,
        "a number from -1 to 1 for cosine",
    ),
    ("name: a\nlabels: [a, b]\ntemplates: ['a {} and {b} c']\n", 3, "needs one {}"),
    ("name: a\nlabels: [a, b]\ntemplates: ['a { b {} c']\n", 3, "needs one {}"),
    ('name: a\nlabels: [a, "b\\uD800"]\n', 2, "belong to no word"),
    ('name: a\nlabels: [a, "b\\x07"]\n', 2, "belong to no word"),
    ("[" * 5000, 1, "nested too deeply"),
    ("name: a\nlabels: [dog]\n", 2, "softmax over a single label always scores 1.0"),
    ("name: a\nlabels: [a, b\n", 3, "not YAML"),
    ("name: a\n\tlabels: [a, b]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, b, \x07]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, *b]\n", 2, "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES)
def test_a_mistake_is_reported_with_its_line(text, line, message):
    (mistake,) = mistakes(text)
    assert mistake.startswith(f"birds.yaml:{line}: ")
    assert message in mistake


def test_every_mistake_of_a_file_is_reported_at_once():
    found = mistakes("name: a b\nlabels:\n  - dog\n  - dog\ntop_k: none\ncolor: red\n")
    assert [mistake.split(":")[1] for mistake in found] == ["6", "1", "4", "5"]


def test_one_label_is_fine_where_its_score_means_something():
    assert len(parse("name: a\nlabels: [dog]\nactivation: cosine").labels) == 1


def test_python_objects_in_yaml_are_only_words():
    # Nodes are read, nothing is constructed: a tag cannot run anything.
    labels = parse("name: a\nlabels: [!!python/object/apply:os.system 'false', b]")
    assert [label.name for label in labels.labels] == ["false", "b"]
