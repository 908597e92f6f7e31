from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from checkpoints import make_checkpoint
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from test_scoring import NOW, embedded

from transforms.adapters import Adapter
from transforms.labels import Label, LabelSet, Resource, imagenet
from transforms.labelvectors import PROMPTS_AT_ONCE, label_vectors
from transforms.model import TextModel
from transforms.records import LabelVectors, ModelSpec
from transforms.scoring import scores, select, similarities, tag

DIM = 12


class Words:
    """A model of sentences: each has a direction of its own, told by its letters."""

    logit_scale = 25.0
    logit_bias = -3.0

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self.asked: list[int] = []

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(len(texts))
        return np.stack([self.of(text) for text in texts])

    def of(self, text: str) -> np.ndarray:
        if text.startswith("minus "):
            return -self.of(text.removeprefix("minus "))
        digest = hashlib.blake2b(text.encode()).digest() * (1 + self.dim // 64)
        numbers = np.frombuffer(digest, np.uint8)[: self.dim].astype(np.float32) - 127.5
        return unit(numbers)


def unit(vector: Any) -> np.ndarray:
    return np.asarray(vector, np.float32) / np.linalg.norm(vector)


def mean_of(*texts: str) -> np.ndarray:
    """The normalised mean of normalised embeddings, as everybody makes it."""
    return unit(np.mean([Words().of(text) for text in texts], axis=0))


SHOWN = [Resource(f"/a/{number}.jpg") for number in range(3)]
PICTURES = {file: unit(np.random.default_rng(n).normal(size=DIM)) for n, file in enumerate(SHOWN)}
PICTURES[Resource("/a/minus.jpg")] = -PICTURES[SHOWN[0]]
PICTURE = unit(PICTURES[SHOWN[0]] + PICTURES[SHOWN[1]])


def placed(*labels: Label | str, adapter: Adapter | None = None, **settings: Any) -> LabelVectors:
    given = [Label(label) if isinstance(label, str) else label for label in labels]
    label_set = LabelSet("any", tuple(given), **{"templates": ("a {}", "some {}s"), **settings})
    return label_vectors(label_set, Words(), PICTURES, adapter)


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        (Label("dog"), ["a dog", "some dogs"]),
        (Label("dog", prompts=("my dog",)), ["my dog"]),
        (Label("dog", templates=("the {}",)), ["the dog"]),
        (Label("dog", prompts=("my dog",), templates=("the {}",)), ["my dog", "the dog"]),
        (
            Label("dog", translations=(("de", ("ein Hund", "Hunde")), ("fr", ("un chien",)))),
            ["a dog", "some dogs", "ein Hund", "Hunde", "un chien"],
        ),
    ],
)
def test_words_are_the_normalised_mean_of_their_prompts(label, texts):
    found = placed("cat", label).vectors
    assert found[0] == pytest.approx(mean_of("a cat", "some cats"), abs=1e-6)
    assert found[1] == pytest.approx(mean_of(*texts), abs=1e-6)


@pytest.mark.parametrize("of_set", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("of_label", [None, 0.0, 0.75, 1.0])
def test_examples_are_blended_with_words_by_their_weight(of_set, of_label):
    shown = Label("dog", examples=tuple(SHOWN[:2]), example_weight=of_label)
    found = placed("cat", shown, example_weight=of_set)
    weight = of_set if of_label is None else of_label
    blend = unit(weight * PICTURE + (1 - weight) * mean_of("a dog", "some dogs"))
    assert found.vectors[1] == pytest.approx(blend, abs=1e-6)
    # A label without examples is its words, whatever the set's weight.
    assert found.vectors[0] == pytest.approx(mean_of("a cat", "some cats"), abs=1e-6)


def test_examples_alone_need_no_words():
    words = Words()
    shown = LabelSet("any", (Label("dog", examples=tuple(SHOWN[:2])),), example_weight=1.0)
    assert label_vectors(shown, words, PICTURES).vectors[0] == pytest.approx(PICTURE, abs=1e-6)
    assert words.asked == []


def test_what_speaks_against_labels_and_the_background_stand_behind_them():
    found = placed(
        "dog", Label("cat", against=("a lion", "a tiger")), "cow", Label("bat", against=("sport",)),
        background=("nothing", "a wall"),
    )  # fmt: skip
    assert found.opposed == (1, 3)
    assert found.vectors.shape == (4 + 2 + 2, DIM)
    expected = [mean_of("a lion", "a tiger"), *map(Words().of, ("sport", "nothing", "a wall"))]
    assert found.vectors[4:] == pytest.approx(np.stack(expected), abs=1e-6)
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(np.ones(8), abs=1e-6)


def test_a_sets_settings_are_those_of_its_vectors():
    dog = Label("dog", id="Q144", parent="pet", weight=4.0, threshold=0.25)
    told = {"activation": "sigmoid", "levels": "leaves", "top_k": 7, "threshold": 0.5}
    found = placed(Label("animal", id="pet"), dog, "car", **told)
    assert found.names == ("animal", "dog", "car")
    assert found.ids == ("pet", "Q144", "car")
    assert found.paths == ("animal", "animal/dog", "car")
    assert found.parents == (-1, 0, -1)
    assert found.thresholds == (0.5, 0.25, 0.5)
    assert (found.activation, found.levels, found.top_k) == ("sigmoid", "leaves", 7)
    assert (found.logit_scale, found.logit_bias) == (25.0, -3.0)
    assert found.biases == pytest.approx([0, np.log(4), 0])
    assert found.lengths.tolist() == [1, 1, 1]
    assert placed("a", "b", temperature=0.02).logit_scale == pytest.approx(50)
    assert found.label_set_id.startswith("any-")


def test_an_adapter_stands_in_place_of_words_and_examples():
    learned = np.random.default_rng(5).normal(size=(2, DIM)).astype(np.float32) * 3
    adapter = Adapter("m", ("Q144", "gone"), learned, np.float32([0.5, 9]), {})
    dog = Label("dog", id="Q144", weight=2.0, examples=(SHOWN[0],))
    found = placed("cat", dog, adapter=adapter)
    assert found.vectors[1] == pytest.approx(unit(learned[0]), abs=1e-6)
    assert found.lengths == pytest.approx([1, np.linalg.norm(learned[0])])
    assert found.biases == pytest.approx([0, 0.5 + np.log(2)])
    assert found.vectors[0] == pytest.approx(placed("cat", dog).vectors[0], abs=1e-6)
    # Its logit is what its file says: scale * (vector x embedding) + bias.
    embedding = unit(np.arange(1, DIM + 1))
    similarity = similarities(embedding[None], found)
    logits = np.array([25 * similarity[0, 0], 25 * learned[0] @ embedding + 0.5 + np.log(2)])
    powers = np.exp(logits - logits.max())
    assert scores(similarity, found)[0] == pytest.approx(powers / powers.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (Label("dog", prompts=("a dog", "minus a dog")), "label 'dog' has no vector"),
        (Label("dog", examples=(SHOWN[0], Resource("/a/minus.jpg"))), "label 'dog' has no vector"),
        (Label("dog", against=("a", "minus a")), "not of label 'dog' has no vector"),
    ],
)
def test_prompts_that_cancel_out_are_an_error(label, told):
    with pytest.raises(ValueError, match=told):
        placed("cat", label)


def test_prompts_are_encoded_some_at_a_time():
    words = Words()
    labels = tuple(Label(str(n), against=("not it",) if n % 2 else ()) for n in range(3000))
    label_set = LabelSet("many", labels, tuple(f"{n} {{}}" for n in range(5)))
    found = label_vectors(label_set, words)
    assert sum(words.asked) == 3000 * 5 + 1500
    assert max(words.asked) < PROMPTS_AT_ONCE + 5
    assert len(words.asked) <= 2 + 3000 * 5 // PROMPTS_AT_ONCE + 1
    for place in (0, 409, 410, 2999):
        expected = mean_of(*(f"{n} {place}" for n in range(5)))
        assert found.vectors[place] == pytest.approx(expected, abs=1e-6)


def test_50_000_labels_take_a_few_times_the_memory_of_their_vectors():
    dim = 256
    many = LabelSet("many", tuple(Label(f"label {n}") for n in range(50_000)), ("a {}",))
    tracemalloc.start()
    try:
        found = label_vectors(many, Words(dim))
        _, peak = tracemalloc.get_traced_memory()
        assert found.vectors.nbytes == 50_000 * dim * 4
        assert peak < 4.5 * found.vectors.nbytes
        items = embedded(found.vectors[:400])
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        tagged = tag(items, found, "run", NOW)
        _, peak = tracemalloc.get_traced_memory()
        assert tagged.num_rows == 5 * 400
        # All similarities at once would take 80 MB, and the scores as much again.
        assert peak - before < 3 * 2**24
    finally:
        tracemalloc.stop()


# Against open_clip, on the same weights.


class Remembering:
    """open_clip's own tokenizer, which makes each sentence's row once for all models here."""

    rows: dict[str, torch.Tensor]

    def __init__(self, tokenize: Any) -> None:
        self.tokenize = tokenize
        self.context_length = tokenize.context_length
        self.rows = {}

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        assert context_length in (None, self.context_length)
        new = [text for text in texts if text not in self.rows]
        if new:
            self.rows.update(zip(new, self.tokenize(new), strict=True))
        return torch.stack([self.rows[text] for text in texts])


class OnSameWeights(NamedTuple):
    """ImageNet's names and templates by us and by open_clip: `classifier[D, 1000]`."""

    ours: LabelVectors
    classifier: torch.Tensor
    model: Any


@pytest.fixture(scope="module")
def of_imagenet(tmp_path_factory) -> Callable[[str], OnSameWeights]:
    made: dict[str, OnSameWeights] = {}
    tokenizers: dict[int, Remembering] = {}
    get_tokenizer = open_clip.get_tokenizer

    def remembering(name: str, **options: Any) -> Remembering:
        tokenizer = get_tokenizer(name, **options)
        return tokenizers.setdefault(tokenizer.context_length, Remembering(tokenizer))

    def make(kind: str) -> OnSameWeights:
        folder = make_checkpoint(tmp_path_factory.mktemp("same") / kind, kind)
        threads = torch.get_num_threads()
        # Of so small a tower they would only wait for each other.
        torch.set_num_threads(1)
        try:
            with pytest.MonkeyPatch.context() as patch, torch.no_grad():
                patch.setattr(open_clip, "get_tokenizer", remembering)
                name = f"local-dir:{folder}"
                ours = label_vectors(imagenet(), TextModel(ModelSpec(name, device="cpu")))
                model = open_clip.create_model(name).eval()
                classifier = open_clip.build_zero_shot_classifier(
                    model, remembering(name), IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
                )
        finally:
            torch.set_num_threads(threads)
        return OnSameWeights(ours, classifier, model)

    return lambda kind: made.get(kind) or made.setdefault(kind, make(kind))


@pytest.mark.parametrize("kind", ["vit", "siglip", "coca"])
def test_imagenets_vectors_and_scores_are_open_clips(kind, of_imagenet):
    ours, classifier, model = of_imagenet(kind)
    assert ours.vectors.shape == (1000, 32)
    assert ours.names == tuple(IMAGENET_CLASSNAMES)
    assert ours.vectors == pytest.approx(classifier.numpy().T, abs=1e-6)

    random = np.random.default_rng(0)
    embeddings = random.normal(size=(8000, 32)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    # Two pairs of classes have one name: rounding alone decides between them, and between others
    # that are as close.
    exact = np.sort(embeddings.astype(np.float64) @ classifier.numpy().astype(np.float64), axis=1)
    embeddings = embeddings[exact[:, -1] - exact[:, -2] > 1e-6][:5000]
    assert len(embeddings) == 5000

    with torch.no_grad():
        similarity = torch.from_numpy(embeddings) @ classifier
        logits = model.logit_scale.exp() * similarity
        if kind == "siglip":
            ours = replace(ours, activation="sigmoid")
            expected = torch.sigmoid(logits + model.logit_bias)
        else:
            expected = torch.softmax(logits, dim=-1)
    found = scores(similarities(embeddings, ours), ours)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    best = select(found, replace(ours, top_k=1))[:, 0]
    assert (best == similarity.argmax(dim=-1).numpy()).all()
    assert len(set(best.tolist())) > 50
