from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import jsonschema
import pytest
import yaml
from labelmistakes import MISTAKES, TWO
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

import transforms
from transforms import labelnodes, labelsources
from transforms.labelfile import (
    LABEL_KEYS,
    MOST_FILES,
    SET_KEYS,
    LabelFileError,
    parse_label_set,
    read_label_set,
)
from transforms.labels import LabelSet, Resource, builtin_label_sets, imagenet

ROOT = Path(transforms.__file__).parents[1]
DOCS = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "transforms" / "data" / "label-set.schema.json").read_text())

WHOLE = """\
name: animals
version: 2.10
templates: ["a photo of a {}.", "a {} in the wild"]
activation: softmax
temperature: 1e-2
top_k: 3
threshold: 0.25
background: [an empty field, "no animal: nothing"]
levels: deepest
example_weight: 0.25
adapter: learned/animals.safetensors
labels:
  - animal
  - name: crane
    id: Q25365
    parent: bird
    prompts: ["a crane, the bird", "a long-legged bird"]
    templates: openai-simple
    translations:
      de: ein Kranich
      pt-br: [uma grua, um grou]
    not: [a construction crane]
    examples:
      - pictures/one.jpg
      - ../two.jpg
      - /archive/three.jpg
      - gs://bucket/what?.jpg
    example_weight: 0.75
    threshold: 0.5
    weight: 2
    description: |
      The bird.
      Not the machine.
  - name: bird
    id: Q5113
    parent: animal
"""


def parse(text: str, source: str = "/photos/animals.yaml") -> LabelSet:
    return parse_label_set(text, source)


def mistakes(source: Path | str) -> tuple[str, ...]:
    with pytest.raises(LabelFileError) as caught:
        read_label_set(str(source))
    return caught.value.mistakes


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_every_key_of_a_file_is_read():
    labels = parse(WHOLE)
    assert (labels.name, labels.version) == ("animals", "2.10")
    assert labels.templates == ("a photo of a {}.", "a {} in the wild")
    assert (labels.activation, labels.temperature, labels.top_k) == ("softmax", 0.01, 3)
    assert (labels.threshold, labels.levels, labels.example_weight) == (0.25, "deepest", 0.25)
    assert labels.background == ("an empty field", "no animal: nothing")
    assert labels.adapter == Resource("/photos/learned/animals.safetensors")
    assert labels.adapter.where == "/photos/animals.yaml:11"
    animal, crane, bird = labels.labels
    assert (animal.name, animal.key, animal.parent) == ("animal", "animal", None)
    assert (crane.id, crane.parent, bird.parent) == ("Q25365", "Q5113", "animal")
    assert crane.translations == (
        ("de", ("ein Kranich",)),
        ("pt-BR", ("uma grua", "um grou")),
    )
    assert crane.prompts == ("a crane, the bird", "a long-legged bird")
    assert crane.templates == tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)
    assert crane.against == ("a construction crane",)
    assert [(example.uri, example.where) for example in crane.examples] == [
        ("/photos/pictures/one.jpg", "/photos/animals.yaml:24"),
        ("/two.jpg", "/photos/animals.yaml:25"),
        ("/archive/three.jpg", "/photos/animals.yaml:26"),
        ("gs://bucket/what?.jpg", "/photos/animals.yaml:27"),
    ]
    assert (crane.example_weight, crane.threshold, crane.weight) == (0.75, 0.5, 2)
    assert crane.description == "The bird.\nNot the machine."
    assert labels.paths == ("animal", "animal/bird/crane", "animal/bird")


def test_what_is_not_said_has_its_default():
    least = parse("name: a\nlabels: [dog, cat]")
    assert least == LabelSet("a", least.labels)
    assert [label.name for label in least.labels] == ["dog", "cat"]
    nulls = "threshold: null\ntop_k:\ntemperature: ~\nversion:\nexample_weight: null\n"
    assert parse("name: a\n" + nulls + "labels: [dog, {name: cat, weight: , threshold: }]") == least


def test_words_are_as_written_whatever_yaml_makes_of_them():
    labels = parse("name: a\nlabels: [no, on, 2024, 1.50, 'null', été, 猫, 👩‍🚀, 2024-01-01]")
    assert [label.name for label in labels.labels] == [
        "no", "on", "2024", "1.50", "null", "été", "猫", "👩‍🚀", "2024-01-01",
    ]  # fmt: skip
    # Nodes are read, nothing is constructed: a tag cannot run anything.
    labels = parse("name: a\nlabels: [!!python/object/apply:os.system 'false', b]")
    assert [label.name for label in labels.labels] == ["false", "b"]
    assert parse("name: 2024\nversion: yes\nlabels: [a, b]").version == "yes"


def test_a_built_in_ensemble():
    labels = parse("name: a\nlabels: [dog, cat]\ntemplates: openai-imagenet")
    expected = tuple(template("dog") for template in OPENAI_IMAGENET_TEMPLATES)
    assert labels.prompts_of(labels.labels[0]) == expected
    assert len(expected) == 80


def test_one_label_is_fine_where_its_score_means_something():
    for more in ("activation: cosine", "activation: sigmoid", "background: [a photo]"):
        assert len(parse(f"name: a\nlabels: [dog]\n{more}\n").labels) == 1


def test_built_in_sets_are_read_by_name():
    assert {"everyday", "imagenet"} <= {*builtin_label_sets()}
    for name in builtin_label_sets():
        assert read_label_set(name).name == name
    assert read_label_set("imagenet") == imagenet()


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
def test_each_mistake_is_reported_with_its_line_by_both_of_pyyamls_parsers(loader, monkeypatch):
    assert labelnodes._LOADER is yaml.CSafeLoader, "PyYAML's wheels have libyaml"
    monkeypatch.setattr(labelnodes, "_LOADER", loader)
    assert len(MISTAKES) > 120
    for text, line, message in MISTAKES:
        with pytest.raises(LabelFileError) as caught:
            parse_label_set(text, "birds.yaml")
        (mistake,) = caught.value.mistakes
        assert mistake.startswith(f"birds.yaml:{line}: "), text[:200]
        assert message in mistake, text[:200]
        assert "\n" not in mistake


def test_every_mistake_of_a_file_is_reported_at_once_by_line():
    text = "name: a b\nlabels:\n  - dog\n  - {name: dog, parent: cow}\ntop_k: none\ncolor: red\n"
    with pytest.raises(LabelFileError) as caught:
        parse(text)
    lines = [int(mistake.split(":")[1]) for mistake in caught.value.mistakes]
    assert lines == [1, 4, 4, 5, 6]


def test_a_file_of_mistakes_alone_is_not_read_to_its_end():
    with pytest.raises(LabelFileError) as caught:
        parse("name: a\nlabels:\n" + "  - {nmae: a}\n" * 5000)
    assert len(caught.value.mistakes) == labelnodes.MOST_MISTAKES + 1
    assert "there may be more" in caught.value.mistakes[-1]


def test_a_file_of_very_many_words_is_refused(monkeypatch):
    monkeypatch.setattr(labelnodes, "MOST_NODES", 100)
    with pytest.raises(LabelFileError, match=r"animals.yaml:2: not a label file: more than 100"):
        parse("name: a\nlabels: [" + ",".join(map(str, range(200))) + "]")


def test_files_that_are_no_label_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: a\nlabels: [café, b]\n".encode("latin-1"))
    (tmp_path / "utf16.yaml").write_text(TWO, encoding="utf-16")
    (tmp_path / "marked.yaml").write_text(TWO, encoding="utf-8-sig")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", labelsources.MOST_BYTES + 1)
    fsspec.filesystem("memory").pipe_file("/labels/huge.yaml", bytes(labelsources.MOST_BYTES + 1))
    told = {
        tmp_path / "latin.yaml": ":2: not UTF-8 text: byte 20 is not; save it as UTF-8",
        tmp_path / "utf16.yaml": ":1: not UTF-8 text: byte 0 is not",
        tmp_path / "folder.yaml": "cannot read",
        tmp_path / "huge.yaml": "has more than 64 MiB",
        "memory://labels/huge.yaml": "has more than 64 MiB",
        "memory://labels/gone.yaml": "no label file memory://labels/gone.yaml, and no built-in",
        tmp_path / "gone.yaml": "(everyday, ",
    }
    for source, message in told.items():
        (mistake,) = mistakes(source)
        assert message.replace("(everyday, ", "label set of that name (") in mistake
        assert str(source) in mistake
    assert len(read_label_set(str(tmp_path / "marked.yaml")).labels) == 2
    fsspec.filesystem("memory").rm("/labels", recursive=True)


def test_included_labels_come_first_and_keep_what_their_file_says_of_them(tmp_path):
    (tmp_path / "more").mkdir()
    main = write(
        tmp_path,
        main="name: main\nincludes: [more/birds.yaml, plain.yaml]\ntemplates: ['main {}']\n"
        "example_weight: 0.1\nbackground: [a photo, nothing]\nthreshold: 0.9\n"
        "labels:\n  - {name: owl, parent: bird, examples: [owl.jpg]}\n",
        plain="name: plain\nlabels: [stone, {name: tree, examples: [tree.jpg]}]\n",
    )
    write(
        tmp_path / "more",
        birds="name: birds\ntemplates: ['bird {}']\nexample_weight: 0.4\nbackground: [a sky, "
        "nothing]\nactivation: cosine\nthreshold: -0.5\nlevels: leaves\ntop_k: 1\n"
        "includes: [../plain.yaml]\nlabels:\n  - bird\n"
        "  - {name: emu, parent: bird, prompts: [an emu]}\n"
        "  - {name: wren, parent: bird, examples: [wren.jpg], templates: ['small {}']}\n"
        "  - {name: coot, parent: bird, examples: [coot.jpg], example_weight: 1}\n",
    )
    found = read_label_set(str(main))
    by_name = {label.name: label for label in found.labels}
    # `plain` comes along once, by way of `birds`, which has templates for it.
    assert list(by_name) == ["stone", "tree", "bird", "emu", "wren", "coot", "owl"]
    prompts = {name: found.prompts_of(label) for name, label in by_name.items()}
    assert prompts == {
        "stone": ("bird stone",), "tree": ("bird tree",), "bird": ("bird bird",),
        "emu": ("an emu",), "wren": ("small wren",), "coot": (), "owl": ("main owl",),
    }  # fmt: skip
    shares = {name: found.example_weight_of(label) for name, label in by_name.items()}
    assert (shares["tree"], shares["wren"], shares["coot"], shares["owl"]) == (0.4, 0.4, 1, 0.1)
    assert by_name["wren"].examples == (Resource(f"{tmp_path}/more/wren.jpg"),)
    assert by_name["wren"].examples[0].where == f"{tmp_path}/more/birds.yaml:13"
    assert found.background == ("a sky", "nothing", "a photo")
    assert (found.threshold, found.levels, found.top_k) == (0.9, "every", 5)
    assert found.paths[-1] == "bird/owl"
    # What a label or the background says has to have a meaning in the whole set.
    main.write_text("name: main\nactivation: cosine\nincludes: [more/birds.yaml]\n")
    (mistake,) = mistakes(main)
    assert mistake.startswith(f"{tmp_path}/more/birds.yaml:4: background takes part in a softmax")


def test_a_set_may_be_made_of_built_in_and_of_remote_files():
    store = fsspec.filesystem("memory")
    store.pipe_file("/sets/deep/main.yaml", b"name: m\nincludes: [../b.yaml, imagenet, ./c.yaml]\n")
    store.pipe_file("/sets/b.yaml", b"name: b\nlabels: [{name: robot, examples: [x.jpg]}]\n")
    store.pipe_file("/sets/deep/c.yaml", b"name: c\nlabels: [bubbles]\n")
    found = read_label_set("memory://sets/deep/main.yaml")
    assert len(found.labels) == 1002
    assert found.labels[0].examples == (Resource("memory://sets/x.jpg"),)
    assert found.prompts_of(found.labels[1]) == imagenet().prompts_of(imagenet().labels[0])
    assert found.prompts_of(found.labels[-1]) == ("a photo of a bubbles.",)
    store.pipe_file("/sets/deep/c.yaml", b"name: c\nlabels: [bubble]\n")
    (mistake,) = mistakes("memory://sets/deep/main.yaml")
    assert mistake == (
        "memory://sets/deep/c.yaml:2: label 'bubble' stands in imagenet already; "
        "labels of one name need an id each"
    )
    store.rm("/sets", recursive=True)


def test_mistakes_in_included_files_name_the_files_and_lines(tmp_path):
    main = write(
        tmp_path,
        main="name: main\nincludes: [a.yaml, gone.yaml, ./a.yaml]\n"
        "labels:\n  - {name: dog, id: 1}\n  - {name: cow, parent: catt}\ntop_k: x\n",
        a="name: a\nincludes:\n  - b.yaml\n  - main.yaml\nlabels:\n  - {name: cat, id: 1}\n",
        b="name: b\nlabels:\n  - dog\n  - {name: hen, weight: 0}\ntemplates: [x\n",
    )
    broken = mistakes(main)
    write(tmp_path, b="name: b\nlabels:\n  - dog\n  - {name: hen, weight: 0}\n")
    whole = mistakes(main)
    told = [
        f"{main}:2: cannot include gone.yaml: no label file {tmp_path}/gone.yaml, and no built-in",
        f"{main}:4: label 'dog' stands in {tmp_path}/b.yaml:3 already; labels of one name need an",
        f"{main}:4: id '1' stands in {tmp_path}/a.yaml:6 already",
        f"{main}:5: parent 'catt' is no label of this set; did you mean 'cat'?",
        f"{main}:6: top_k must be",
        f"{tmp_path}/a.yaml:4: files include each other: {main} -> {tmp_path}/a.yaml -> {main}",
        f"{tmp_path}/b.yaml:4: weight must be a number",
    ]
    assert len(whole) == len(told)
    for mistake, start in zip(whole, told, strict=True):
        assert mistake.startswith(start)
    told[-1:] = [f"{tmp_path}/b.yaml:6: not YAML"]
    del told[1]
    for mistake, start in zip(broken, told, strict=True):
        assert mistake.startswith(start)


def test_a_single_label_of_an_included_file_is_one_of_several(tmp_path):
    main = write(tmp_path, main="name: m\nincludes: [a.yaml]\n", a="name: a\nlabels:\n  - dog\n")
    (mistake,) = mistakes(main)
    assert mistake.startswith(f"{tmp_path}/a.yaml:3: softmax over a single label")
    main.write_text("name: m\nincludes: [a.yaml]\nlabels: [cat]\n")
    assert [label.name for label in read_label_set(str(main)).labels] == ["dog", "cat"]
    main.write_text("name: m\nincludes: [gone.yaml]\nlabels: [cat]\n")
    assert "gone.yaml" in mistakes(main)[0]


def test_a_chain_of_files_has_an_end(tmp_path):
    for number in range(MOST_FILES + 1):
        more = f"includes: [f{number + 1}.yaml]\n" if number < MOST_FILES else ""
        write(tmp_path, **{f"f{number}": f"name: f\nlabels: [l{number}]\n{more}"})
    (mistake,) = mistakes(tmp_path / "f0.yaml")
    last = tmp_path / f"f{MOST_FILES - 1}.yaml"
    assert mistake == f"{last}:3: a label set is made of {MOST_FILES} files at most"
    assert len(read_label_set(str(tmp_path / "f1.yaml")).labels) == MOST_FILES


def as_json(text: str) -> object:
    """A file as an editor's YAML has it: dates are words there."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def test_the_schema_knows_the_readers_keys_and_what_it_takes():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(SET_KEYS)
    assert set(SCHEMA["definitions"]["label"]["properties"]) == set(LABEL_KEYS)
    validator = jsonschema.Draft7Validator(SCHEMA)
    files = sorted((ROOT / "transforms" / "data" / "label_sets").glob("*.yaml"))
    assert {path.stem for path in files} == {*builtin_label_sets()} - {"imagenet"}
    for path in files:
        validator.validate(as_json(path.read_text(encoding="utf-8")))
    validator.validate(as_json(WHOLE.replace("1e-2", "0.01")))
    cosine = "name: 5\nactivation: cosine\nthreshold: -0.5\nincludes: [a]\n"
    validator.validate(as_json(cosine))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(as_json(cosine.replace("cosine", "sigmoid")))


def test_the_schema_marks_most_mistakes_of_a_single_value():
    validator = jsonschema.Draft7Validator(SCHEMA)
    marked = set()
    for text, _, message in MISTAKES:
        if "*" in text or len(text) > 100_000:
            continue
        try:
            value = as_json(text)
        except (yaml.YAMLError, ValueError, TypeError):
            continue
        if not validator.is_valid(value):
            marked.add(message)
    assert len(marked) > 60
    assert {
        "did you mean 'prompts'?", "has no 'name'", "has no 'labels'", "labels is an empty list",
        "becomes part of a path", "needs one {}", "{} has a meaning in templates only",
        "one of every, deepest, leaves", "a number from 0 to 1 for softmax", "cosine has none",
        "a number from -1 to 1 for cosine", "in a softmax, and not in sigmoid",
        "did you mean pt-BR?",
        "says nothing of a label without examples", "top_k must be a whole number from 1",
    } <= marked  # fmt: skip


def test_the_documents_examples_are_right(tmp_path):
    blocks = re.findall(r"^```yaml\n(# ([\w-]+\.yaml)\n.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert len(blocks) == DOCS.count("```yaml") >= 6
    validator = jsonschema.Draft7Validator(SCHEMA)
    for text, name in blocks:
        (tmp_path / name).write_text(text, encoding="utf-8")
        validator.validate(as_json(text))
    found = {name: read_label_set(str(tmp_path / name)) for _, name in blocks}
    for name, label_set in found.items():
        assert f"{label_set.name}.yaml" == name
    assert found["all.yaml"].paths[-1] == "animal/bird/owl"
    # What the page says of them is what they do.
    assert "animal/mammal/dog" in found["animals.yaml"].paths
    both = (
        (tmp_path / "all.yaml").read_text().replace("- birds.yaml", "- birds.yaml\n  - garden.yaml")
    )
    (tmp_path / "all.yaml").write_text(both)
    told = "{0}/garden.yaml:10: label 'kiwi' stands in {0}/birds.yaml:6 already"
    assert mistakes(tmp_path / "all.yaml") == (told.format(tmp_path),)
    assert told.format("/photos") in DOCS


def test_the_document_has_every_key():
    of_set, of_label = DOCS.split("Of a label:")
    for keys, part in ((SET_KEYS, of_set.split("## All keys")[1]), (LABEL_KEYS, of_label)):
        assert re.findall(r"^\| `(\w+)` ", part, re.MULTILINE) == list(keys)


MANY = """
import sys
import numpy as np
from transforms.labelfile import parse_label_set

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024

class Words:
    logit_scale, logit_bias = 100.0, 0.0

    def encode_texts(self, texts):
        vectors = np.random.default_rng(len(texts)).standard_normal((len(texts), 128), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

text = "name: many\\nlabels:\\n" + "".join(
    f"  - name: label {row}\\n    id: n{row}\\n    prompts: [a label {row}, a photo of {row}]\\n"
    f"    threshold: 0.001\\n" + (f"    parent: n{row // 10}\\n" if row else "")
    for row in range(50_000)
)
before = peak()
labels = parse_label_set(text, "many.yaml")
parsed = peak() - before
from transforms.labelvectors import label_vectors
from transforms.scoring import _tags
vectors = label_vectors(labels, Words())
tags = _tags(Words().encode_texts([""] * 1000), vectors)
items = {int(item) for part in tags for item in part[0]}
assert len(labels.labels) == 50_000 and len(items) == 1000
assert not {"torch", "open_clip"} & sys.modules.keys()
print(parsed, peak())
"""


def test_fifty_thousand_labels_fit_into_a_stated_memory():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MANY], env=environment, capture_output=True, text=True, check=True
    )
    parsed, whole = map(int, done.stdout.split())
    # MiB: reading the file; and all, of which Python with Beam is 110, and vectors of 128 numbers
    # are 24 in each of the forms that they go through.
    assert parsed < 220
    assert whole < 520
