"""What is learnt of labels from a few items: against scikit-learn, and against the scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transforms.adapters import adapter_bytes, parse_adapter
from transforms.adapting import (
    BAD_WORDS,
    GOOD_WORDS,
    NothingToCheckError,
    adapt,
    adapted,
    choose_strength,
    learn,
    measure,
)
from transforms.calibration import negative_log_likelihood
from transforms.hierarchy import tree_of
from transforms.labels import Label, LabelSet
from transforms.labelvectors import label_vectors
from transforms.probing import Probe, Strength
from transforms.records import LabelVectors
from transforms.scoring import scores, similarities
from transforms.splitting import Labelled

DIM = 16
NAMES = tuple("abcdefg")
TREE = (-1, 0, 0, 1, -1, 4, 4)
FLAT = (-1,) * 7


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def space(activation: str = "softmax", parents: tuple[int, ...] = FLAT, extra: int = 0):
    """Seven labels at random, and `extra` of background."""
    random = np.random.default_rng(0)
    return LabelVectors(
        label_set_id="x-1",
        names=NAMES,
        ids=NAMES,
        paths=NAMES,
        parents=parents,
        vectors=unit(random.normal(size=(7 + extra, DIM))),
        opposed=(),
        lengths=np.ones(7, np.float32),
        biases=np.log(random.uniform(0.5, 2, 7)).astype(np.float32),
        thresholds=(None,) * 7,
        logit_scale=10.0,
        logit_bias=-3.0 if activation == "sigmoid" else 0.0,
        top_k=7,
        activation=activation,
        levels="every",
    )


def shown(
    count: int, kinds: str = "abcdefg", several: bool = False, noise: float = 0.2, seed: int = 1
) -> Labelled:
    """`count` items of each kind around directions that no word has, in one cone as CLIP's are."""
    random = np.random.default_rng(seed)
    means = np.random.default_rng(5).normal(size=(7, DIM))
    one_hot = np.eye(7, dtype=bool)[[NAMES.index(kind) for kind in kinds]]
    stated = np.tile(one_hot, (count, 1))
    if several:
        stated |= one_hot[random.integers(0, len(kinds), len(stated))]
    inside = stated @ means + noise * random.normal(size=(len(stated), DIM)) + 3
    return Labelled(unit(inside), stated)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("parents", "extra"), [(FLAT, 0), (TREE, 2)])
@pytest.mark.parametrize("strength", [Strength(0, 0), Strength(10, 0), Strength(5, 100)])
def test_what_is_made_likely_are_the_scores_of_what_is_true(several, parents, extra, strength):
    labels = space("softmax", parents, extra)
    # Labels f and g have no items.
    items = shown(6, kinds="abcde", several=several)
    probe = Probe(labels, items)
    rows = np.arange(len(items.stated))
    fit = probe.fit(rows, strength)
    after = adapted(labels, probe.adapter(fit, "m", {}))
    tree = tree_of(parents)
    score = scores(similarities(items.vectors, after), after, tree)
    likely = negative_log_likelihood(score, items.stated, labels, tree)
    assert probe.loss(fit, rows) / len(rows) == pytest.approx(likely, rel=1e-3, abs=1e-4)
    some = rows[::3]
    part = negative_log_likelihood(score[some], items.stated[some], labels, tree)
    assert probe.loss(fit, some) / len(some) == pytest.approx(part, rel=1e-3, abs=1e-4)


def test_of_a_sigmoid_each_label_is_a_question_of_its_own():
    labels = space("sigmoid")
    items = shown(8, several=True)
    probe = Probe(labels, items)
    rows = np.arange(len(items.stated))
    fit = probe.fit(rows, Strength(0, 30))
    after = adapted(labels, probe.adapter(fit, "m", {}))
    tree = tree_of(FLAT)
    score = scores(similarities(items.vectors, after), after, tree)
    likely = negative_log_likelihood(score, items.stated, labels, tree)
    assert probe.loss(fit, rows) / items.stated.size == pytest.approx(likely, rel=1e-3)
    assert measure(after, items, "mAP") > measure(labels, items, "mAP")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_without_words_to_start_from_it_is_scikit_learns_logistic_regression(activation):
    items = shown(9, noise=0.8)
    labels = space(activation)
    # As good as no words: what they add to a logit is nothing.
    labels = replace(labels, logit_scale=1e-7, logit_bias=0.0, biases=np.zeros(7, np.float32))
    learnt = adapted(labels, learn(labels, items, "m", Strength(0, 4)))
    score = scores(similarities(items.vectors, learnt), learnt)
    spread = items.vectors - items.vectors.mean(axis=0)
    spread /= np.sqrt((spread**2).sum(axis=1).mean())
    kinds = items.stated.argmax(axis=1)
    if activation == "softmax":
        peer = LogisticRegression(C=4, fit_intercept=False, tol=1e-8, max_iter=2000)
        wanted = peer.fit(spread, kinds).predict_proba(spread)
    else:
        peer = LogisticRegression(C=4, tol=1e-8, max_iter=2000)
        wanted = np.stack(
            [peer.fit(spread, kinds == kind).predict_proba(spread)[:, 1] for kind in range(7)], 1
        )
    assert score == pytest.approx(wanted, abs=2e-3)


class Words:
    """A text tower that knows one letter a label."""

    logit_scale = 10.0
    logit_bias = 0.0

    def encode_texts(self, texts) -> np.ndarray:
        return space().vectors[[NAMES.index(text) for text in texts]]


def test_an_adapter_means_in_a_label_file_what_it_meant_when_it_was_learnt():
    label_set = LabelSet(
        "x", tuple(Label(name, weight=1.5) for name in NAMES), templates=("{}",), top_k=7
    )
    words = label_vectors(label_set, Words())
    adapter = learn(words, shown(6, kinds="abcde"), "m", Strength(10, 10), {"items": 30})
    read = parse_adapter(adapter_bytes(adapter), "m")
    assert (read.keys, read.told) == (tuple("abcde"), {"items": 30})
    laid = label_vectors(label_set, Words(), adapter=read)
    here = adapted(words, adapter)
    for name in ("vectors", "lengths", "biases"):
        assert np.allclose(getattr(laid, name), getattr(here, name), atol=1e-6)
    # Labels without items keep their words.
    assert np.array_equal(laid.vectors[5:], words.vectors[5:])
    assert laid.lengths[5:].tolist() == [1, 1]
    assert not np.allclose(laid.vectors[:5], words.vectors[:5], atol=0.1)


def test_it_is_better_on_items_that_it_has_not_seen_and_learnt_from_all_in_the_end():
    labels = space("softmax", TREE, 1)
    # Labels with nothing below them: for others there is no best one but those below.
    items = shown(12, "cdfg")
    found = adapt(labels, items, "m", share=0.25, seed=3)
    assert found.metric == "top-1"
    assert found.fitted + found.checked == 48
    assert found.checked == pytest.approx(12, abs=4)
    assert found.is_better
    assert found.after > 0.9
    fresh = shown(20, "cdfg", seed=77)
    assert measure(adapted(labels, found.adapter), fresh, "top-1") > 0.9
    assert found.adapter.told["after"] == found.after
    # The same seed gives the same bytes, another one other items.
    again = adapt(labels, items, "m", share=0.25, seed=3)
    assert adapter_bytes(again.adapter) == adapter_bytes(found.adapter)
    assert adapt(labels, items, "m", share=0.25, seed=4).before != found.before


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "cosine"])
def test_every_kind_of_score_gets_better_for_one_label_an_item_and_for_several(activation):
    labels = space(activation)
    assert adapt(labels, shown(10), "m").is_better
    several = adapt(labels, shown(10, several=True), "m")
    assert several.metric == "mAP"
    assert several.is_better


def test_neither_good_words_nor_bad_ones_stand_in_the_way():
    items = shown(8)
    kinds = items.stated.argmax(axis=1)
    common = items.vectors.mean(axis=0)
    of_kinds = [items.vectors[kinds == kind].mean(axis=0) - common for kind in range(7)]
    good = replace(space(), vectors=unit(np.stack(of_kinds)), logit_scale=40.0)
    fresh = shown(20, seed=9)
    for words in (good, space()):
        learnt = adapted(words, learn(words, items, "m", choose_strength(words, items, "top-1")))
        assert measure(learnt, fresh, "top-1") > 0.95
    # Of one item each nothing can be held out to choose by, but the words can be asked.
    single = shown(1)
    assert choose_strength(good, single, "top-1") == GOOD_WORDS
    assert choose_strength(space(), single, "top-1") == BAD_WORDS


def test_labels_at_random_teach_nothing_and_single_items_cannot_be_checked():
    items = shown(8)
    mixed = Labelled(items.vectors, np.random.default_rng(0).permutation(items.stated))
    found = adapt(space(), mixed, "m")
    assert found.after < 0.4
    assert found.is_better == (found.after > found.before)
    assert not replace(found, after=found.before).is_better
    with pytest.raises(NothingToCheckError):
        adapt(space(), shown(1), "m")
