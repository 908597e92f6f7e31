"""What makes a label file's tags worse: findings of every kind, planted, and files without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint
from fakes import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import lintvectors
from transforms.labelfile import LabelFileError, parse_label_set, read_label_lines
from transforms.labellines import LabelLines
from transforms.labels import LabelSet
from transforms.labelvectors import label_vectors
from transforms.latest import Items
from transforms.linting import Finding, Kind, check_keys, in_order, mistakes_found
from transforms.lintvectors import (
    check_agreement,
    check_vectors,
    check_wins,
    greatest_scores,
    near_synonyms,
)
from transforms.lintwords import check_languages, check_sentences, fallen_off, is_unknown
from transforms.records import LabelVectors
from transforms.scoring import scores, similarities
from transforms.texttower import Tokenizer


class Letters(FakeModel):
    """A model whose text vectors are by the letters a and b."""

    logit_scale = 10.0
    logit_bias = 0.0


@pytest.fixture(scope="module")
def byte_pairs(vit: Path) -> Tokenizer:
    """open_clip's own tokenizer, of a model that reads 16 tokens."""
    return Tokenizer(f"local-dir:{vit}")


@pytest.fixture(scope="module")
def few_words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of transformers that knows eight words, of a model that reads 16 tokens."""
    return Tokenizer(f"local-dir:{make_checkpoint(tmp_path_factory.mktemp('models'), 'hf')}")


@pytest.fixture
def read(tmp_path: Path):
    def written(text: str) -> tuple[LabelSet, LabelLines]:
        path = tmp_path / "labels.yaml"
        path.write_text(text)
        return read_label_lines(str(path))

    return written


def told(findings) -> list[tuple[int, str]]:
    """The lines and kinds of findings, in order."""
    return [(finding.plain()["line"], str(finding.kind)) for finding in in_order(findings)]


def test_keys_that_change_nothing(read):
    text = """\
name: a
templates: ["a {}"]
threshold: 0.1
example_weight: 0.3
levels: leaves
labels:
  - {name: dog, prompts: [a dog], threshold: 0.2}
  - name: poodle
    prompts: [a poodle]
    threshold: 0.2
    parent: dog
"""
    found = list(check_keys(*read(text)))
    assert told(found) == [(line, "no_effect") for line in (2, 3, 4, 7)]
    assert "never a tag with levels: leaves" in in_order(found)[-1].message
    used = text.replace("prompts: [a dog], threshold: 0.2", "examples: [d.jpg]")
    used = used.replace("leaves", "every").replace("    prompts: [a poodle]\n", "")
    assert list(check_keys(*read(used))) == []


def test_cut_and_repeated_sentences_are_told_with_what_is_lost(read, byte_pairs: Tokenizer):
    long = "a dog that runs and runs and runs over a very green and very wide meadow"
    label_set, lines = read(f"""\
name: a
templates:
  - a photo of a {{}}.
  - A photo  of a {{}}.
  - one two three four five six seven eight nine ten eleven a {{}} thirteen
background:
  - nothing at all
  - {long} behind
labels:
  - cat
  - a tabby cat
  - name: dog
    prompts:
      - a dog
      - {long}
      - A DOG
    translations: {{de: [ein Hund, ein  hund]}}
    not:
      - {long} not
  - name: own
    templates: ["my {{}}", "My {{}}"]
""")
    found = in_order(check_sentences(label_set, lines, byte_pairs))
    assert told(found) == [
        (4, "no_effect"), (8, "cut_prompt"), (11, "cut_prompt"), (15, "cut_prompt"),
        (16, "no_effect"), (17, "no_effect"), (19, "cut_prompt"), (21, "no_effect"),
    ]  # fmt: skip
    by_line = {finding.plain()["line"]: finding.message for finding in found}
    # 16 words, and the model's own two tokens.
    count = len(long.split())
    assert count == 16
    assert (
        f"has {count + 2} tokens and the model reads 16: 'wide meadow' falls off, 2 tokens"
        in (by_line[15])
    )
    assert "'wide meadow not' falls off, 3 tokens" in by_line[19]
    assert "'wide meadow behind' falls off, 3 tokens" in by_line[8]
    assert "a tabby cat thirteen" in by_line[11]
    assert "'cat thirteen' falls off, 2 tokens" in by_line[11]
    assert "'A photo  of a {}.' is the same as 'a photo of a {}.'" in by_line[4]
    assert "'A DOG' is the same as 'a dog'" in by_line[16]
    assert all(finding.is_error for finding in found)


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab .,!é猫", max_size=60))
def test_a_sentence_is_told_exactly_if_it_does_not_fit(byte_pairs, few_words, text):
    text = " ".join(text.split()) or "a"
    for tokens in (byte_pairs, few_words):
        found = list(
            check_sentences(
                parse_label_set("name: a\nlabels: [{name: x, prompts: [p]}, y]", "f"),
                LabelLines("f"),
                tokens,
            )
        )
        assert found == []
        label_set = parse_label_set("name: a\nlabels: [{name: x, prompts: [p]}, y]", "f")
        first = replace(label_set.labels[0], prompts=(text,))
        label_set = replace(label_set, labels=(first, *label_set.labels[1:]))
        found = list(check_sentences(label_set, LabelLines("f"), tokens))
        assert [finding.kind for finding in found] == [Kind.CUT_PROMPT] * (not tokens.fits(text))
        if found:
            rest = fallen_off(text, tokens)
            assert text.endswith(rest)
            assert rest
            kept = text[: len(text) - len(rest)]
            assert tokens.fits(kept) or not kept.strip()


SENTENCES = {
    "en": ["a fire engine", "a snow-covered mountain at sunset", "MRI of 1984", "a café", "R2-D2"],
    "de": ["ein Schnepfenstrauß", "ein verschneiter Berg bei Sonnenuntergang", "Überfahrt"],
    "pl": ["odręczny list", "wóz strażacki"],
    "pt-BR": ["um caminhão de bombeiros", "um cão"],
}
FOREIGN = {
    "ru": ["фотография собаки"], "el": ["μια φωτογραφία"], "he": ["תמונה של כלב"],
    "ar": ["صورة كلب"], "hi": ["एक कुत्ते की तस्वीर"], "th": ["รูปถ่ายของสุนัข"], "ko": ["개의 사진"],
    "zh": ["一张狗的照片"], "ja": ["犬の写真", "ネコ"], "vi": ["một bức ảnh của một con chó"],
}  # fmt: skip


def test_languages_that_the_tokenizer_only_spells_are_unknown(byte_pairs: Tokenizer):
    assert {k: is_unknown(v, byte_pairs) for k, v in SENTENCES.items()} == dict.fromkeys(
        SENTENCES, False
    )
    assert {k: is_unknown(v, byte_pairs) for k, v in FOREIGN.items()} == dict.fromkeys(
        FOREIGN, True
    )


def test_an_unknown_language_is_told_once_and_where_it_stands(
    read, byte_pairs: Tokenizer, few_words: Tokenizer
):
    text = """\
name: a
labels:
  - dog
  - name: a cat
    translations:
      de: eine Katze
      ja:
        - 猫の写真
        - ネコ
  - 犬
  - name: house
    prompts: [a house, photo of house]
"""
    found = in_order(check_languages(*read(text), byte_pairs))
    assert told(found) == [(8, "unknown_language"), (10, "unknown_language")]
    assert "no words of ja, '猫の写真'" in found[0].message
    assert not any(finding.is_error for finding in found)
    # This one says what it does not know.
    found = check_languages(*read(text), few_words)
    assert told(found) == [(line, "unknown_language") for line in (6, 8, 10)]
    assert few_words.unknown_share("a photo of Katze") == 0.25
    assert few_words.unknown_share("") == 0
    assert byte_pairs.unknown_share("猫") is None


SOUNDS = """\
name: a
temperature: 0.1
background: [bbbb]
labels:
  - name: left
    prompts: [aaaa]
  - name: right
    prompts: [bbbb bbbb]
  - name: middle
    prompts: [ab]
  - name: center
    prompts: [ba]
    not: [ab ab]
  - name: torn
    prompts: [aaaaa, bbbbbb]
  - name: central point
    prompts: [ba ab]
    parent: center
"""


def test_labels_that_lie_on_each_other_are_told_with_both_lines(read):
    label_set, lines = read(SOUNDS)
    labels = label_vectors(label_set, Letters())
    found = in_order(check_vectors(label_set, labels, lines, 0.99))
    assert told(found) == [
        (3, "near_background"), (11, "near_synonym"), (13, "near_not"), (14, "near_synonym"),
        (16, "near_synonym"),
    ]  # fmt: skip
    assert "'center' is nearly the same as 'middle' (line 9, 1.000)" in found[1].message
    assert "'right' (line 7), whose items it takes" in found[0].message
    # Its parent is as near, and is not told.
    assert "'torn' (line 14, 1.000), 'middle' (line 9, 1.000)" in found[4].message
    assert "center" not in found[4].message
    assert list(check_vectors(label_set, labels, lines, 1.01)) == []
    odd = list(check_agreement(label_set, Letters(), lines))
    assert told(odd) == [(15, "disagreeing_prompts")]


def a_space(random: np.random.Generator, count: int, **changes) -> LabelVectors:
    vectors = random.normal(size=(count + 3, 4)).astype(np.float32)
    names = tuple(map(str, range(count)))
    given = {
        "label_set_id": "s",
        "names": names,
        "ids": names,
        "paths": names,
        "parents": tuple(int(random.integers(-1, place)) for place in range(count)),
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "opposed": (0, 1),
        "lengths": random.uniform(0.5, 2, count).astype(np.float32),
        "biases": random.normal(size=count).astype(np.float32),
        "thresholds": (None,) * count,
        "logit_scale": 2.0,
        "logit_bias": -1.0,
        "top_k": 1,
        "activation": "softmax",
        "levels": "every",
    }
    return LabelVectors(**{**given, **changes})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.sampled_from(["softmax", "sigmoid", "cosine"]))
def test_near_pairs_are_all_pairs_and_no_score_is_above_the_greatest(seed, count, activation):
    random = np.random.default_rng(seed)
    labels = a_space(random, count, activation=activation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lintvectors, "SIMILARITIES_AT_ONCE", 2 * count)
        patch.setattr(lintvectors, "MOST_TOLD", 5)
        pairs, values, total = near_synonyms(labels, 0.3)
        most = greatest_scores(labels)
    above = {place: set() for place in range(count)}
    for place in range(count):
        parent = labels.parents[place]
        above[place] = set() if parent < 0 else {parent, *above[parent]}
    similarity = labels.vectors @ labels.vectors.T
    expected = sorted(
        (-float(similarity[first, second]), first, second)
        for first in range(count)
        for second in range(first + 1, count)
        if similarity[first, second] >= 0.3
        and first not in above[second]
        and second not in above[first]
    )
    assert total == len(expected)
    assert sorted(map(tuple, pairs.tolist())) == sorted(pair[1:] for pair in expected[:5])
    assert values.tolist() == pytest.approx([-pair[0] for pair in expected[:5]], abs=1e-6)

    # Everywhere, and where a label is as likely as it gets.
    items = np.concatenate([random.normal(size=(300, 4)), labels.vectors, *_apart(labels)])
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float32)
    score = scores(similarities(items, labels), labels)
    assert (score <= most + 1e-5).all()


def _apart(labels: LabelVectors) -> list[np.ndarray]:
    count = len(labels.names)
    long = labels.vectors[:count] * labels.lengths[:, None]
    apart = long[:, None] - long[None]
    apart[np.arange(count), np.arange(count)] = 1
    return [*apart]


def test_a_score_that_a_label_can_reach_is_not_called_impossible(read):
    text = """\
name: a
temperature: {temperature}
threshold: 0.7
labels:
  - {{name: left, prompts: [aaaa]}}
  - {{name: right, prompts: [bbbb]}}
  - name: rare
    prompts: [aabb]
    weight: {weight}
    threshold: 0.9
"""
    for temperature, weight, expected in [
        (0.01, 1, []),
        (0.01, 1e-6, []),
        (0.1, 1e-6, [(10, "impossible")]),
        (1, 1, [(5, "impossible"), (6, "impossible"), (10, "impossible")]),
    ]:
        label_set, lines = read(text.format(temperature=temperature, weight=weight))
        labels = label_vectors(label_set, Letters())
        # A threshold that is the set's is told at its label.
        assert told(check_vectors(label_set, labels, lines, 1.01)) == expected


def test_labels_that_never_win_are_told_and_those_above_winners_are_not(read, monkeypatch):
    monkeypatch.setattr(lintvectors, "SCORES_AT_ONCE", 8)
    label_set, lines = read("""\
name: a
temperature: 0.05
top_k: 2
labels:
  - name: thing
    prompts: [c]
  - {name: left, prompts: [aaaa], parent: thing}
  - {name: right, prompts: [bbbb]}
  - {name: other right, prompts: [bbb]}
""")
    labels = label_vectors(label_set, Letters())
    places = [1, 2, 2]
    items = [Items(["u"], labels.vectors[[place]]) for place in places]
    (found,) = check_wins(label_set, labels, items, lines)
    assert (found.plain()["line"], found.kind) == (9, Kind.NEVER_WINS)
    assert "the best tag of none of 3 items, and a tag of 3" in found.message
    score = scores(similarities(labels.vectors[places], labels), labels)
    assert f"its highest score is {score[:, 3].max():.3g}" in found.message
    assert list(check_wins(label_set, labels, [], lines)) == []


def test_a_readers_mistakes_keep_their_lines_and_files(tmp_path: Path):
    (tmp_path / "in.yaml").write_text("name: b\nlabels: [dog]\ncolour: 1: 2\n")
    path = tmp_path / "a: 7.yaml"
    path.write_text(
        "name: a\nincludes: [in.yaml]\nlabels:\n  - {name: x, id: 1, parent: y}\n"
        "  - {name: y, id: 1, parent: x}\n"
    )
    with pytest.raises(LabelFileError) as caught:
        read_label_lines(str(path))
    found = mistakes_found(caught.value.mistakes, str(path))
    assert [str(finding).replace(f": {Kind.MISTAKE}", "", 1) for finding in found] == [
        *caught.value.mistakes
    ]
    assert {finding.plain()["file"] for finding in found} == {str(path), str(tmp_path / "in.yaml")}
    assert {finding.plain()["line"] for finding in found} == {3, 4, 5}
    whole = Finding("labels.yaml", Kind.MISTAKE, "1000 mistakes")
    assert mistakes_found(["labels.yaml: 1000 mistakes"], "labels.yaml") == [whole]
    assert mistakes_found(["1000 mistakes"], "labels.yaml") == [whole]
    assert not whole.has_line
    assert whole.plain()["line"] is None


def test_lines_are_those_of_the_file_that_a_label_stands_in(tmp_path: Path):
    other = tmp_path / "other.yaml"
    other.write_text("name: b\nbackground:\n  - sky\nlabels:\n  - dog\n  - {name: cat, id: '1'}\n")
    path = tmp_path / "labels.yaml"
    path.write_text(
        "name: a\nincludes: [other.yaml]\nbackground:\n  - sea\nlabels:\n  - name: cow\n"
        "    prompts:\n      - ' a cow '\n      - >-\n        a cow\n        of two lines\n"
    )
    label_set, lines = read_label_lines(str(path))
    assert [label.key for label in label_set.labels] == ["dog", "1", "cow"]
    assert [lines.label(label.key) for label in label_set.labels] == [
        f"{other}:5", f"{other}:6", f"{path}:6",
    ]  # fmt: skip
    assert lines.word("cow", "a cow") == f"{path}:8"
    assert lines.word("cow", "a cow of two lines") == f"{path}:9"
    assert lines.word("", "sky") == f"{other}:3"
    assert lines.word("", "sea") == f"{path}:4"
    assert lines.key("cow", "prompts") == f"{path}:8"
    assert lines.key("cow", "weight") == f"{path}:6"
    assert lines.label("none such") == lines.word("", "none such") == str(path)
    assert read_label_lines("everyday")[1].label("dog").startswith("everyday:")
