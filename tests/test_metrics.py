"""Figures of rightness, against scikit-learn's and against plain loops."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from transforms import metrics
from transforms.hierarchy import tree_of

SEEDS = range(60)
NEAR = {"rtol": 1e-9, "atol": 1e-12}


def case(seed: int):
    """Scores with ties in most cases, and the truth, in which some labels are no item's."""
    random = np.random.default_rng(seed)
    items, labels = int(random.integers(1, 60)), int(random.integers(3, 9))
    scores = random.random((items, labels), np.float32)
    if seed % 3:
        scores = np.round(scores * (seed % 5 + 1)) / np.float32(seed % 5 + 1)
    return random, scores, labels


@pytest.mark.parametrize("seed", SEEDS)
def test_one_label_an_item_agrees_with_scikit_learn(seed):
    random, scores, count = case(seed)
    tree = tree_of((-1,) * count)
    # Of some cases the last labels are nobody's.
    truth = random.integers(0, count - seed % 2, len(scores))
    stated = np.eye(count, dtype=bool)[truth]
    best = metrics.best_labels(scores, tree, 5)
    right = metrics.right_answers(stated, tree)
    every = list(range(count))
    for k in (1, 2, 5):
        # Of equal scores theirs takes the last label, ours the first.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sk.top_k_accuracy_score(
                count - 1 - truth, scores[:, ::-1], k=min(k, count), labels=every
            )
        assert metrics.top_k_accuracy(best, right, k) == pytest.approx(theirs, abs=1e-12)
    first = best[:, 0]
    np.testing.assert_array_equal(first, scores.argmax(axis=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sk.balanced_accuracy_score(truth, first)
    assert metrics.mean_class_recall(best, stated, tree) == pytest.approx(theirs, abs=1e-12)
    matrix = sk.confusion_matrix(truth, first, labels=every)
    pairs = metrics.confusion_pairs(best, stated, tree)
    assert {pair[:2]: pair.items for pair in pairs} == {
        (row, column): matrix[row, column]
        for row, column in zip(*np.nonzero(matrix), strict=True)
        if row != column
    }
    assert pairs == sorted(pairs, key=lambda pair: (-pair.items, pair.truth, pair.best))


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_an_item_agree_with_scikit_learn(seed):
    random, scores, count = case(seed)
    truth = random.random(scores.shape) < (0.02, 0.3, 0.9)[seed % 3]
    tags = scores >= random.random(count)
    found = metrics.precision_recall_f1(tags, truth)
    theirs = sk.precision_recall_fscore_support(truth, tags, average=None, zero_division=np.nan)
    ours = (found.precision, found.recall, found.f1, found.support)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, **NEAR)
    np.testing.assert_array_equal(found.tagged, tags.sum(axis=0))
    averages = metrics.average_precisions(scores, truth)
    np.testing.assert_array_equal(np.isnan(averages), ~truth.any(axis=0))
    has = truth.any(axis=0)
    if not has.any():
        assert np.isnan(metrics.mean_of(averages))
        return
    theirs = sk.average_precision_score(truth[:, has], scores[:, has], average=None)
    np.testing.assert_allclose(averages[has], theirs, **NEAR)
    assert metrics.mean_of(averages) == pytest.approx(np.mean(theirs), abs=1e-12)
    place = int(np.flatnonzero(has)[0])
    curve = metrics.precision_recall_curve(scores[:, place], truth[:, place])
    precision, recall, least = sk.precision_recall_curve(truth[:, place], scores[:, place])
    np.testing.assert_allclose(curve.precision[::-1], precision[:-1], **NEAR)
    np.testing.assert_allclose(curve.recall[::-1], recall[:-1], **NEAR)
    np.testing.assert_array_equal(curve.scores[::-1], least)


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_agrees_with_scikit_learn_and_with_the_papers_sum(seed):
    random, scores, _ = case(seed)
    sure = scores.max(axis=1)
    sure[0] = seed % 2  # The edges: 0 is in the first bin, 1 in the last.
    correct = random.random(len(sure)) < sure
    found = metrics.calibration_bins(sure, correct)
    filled = found.items > 0
    share, confidence = calibration_curve(correct, sure, n_bins=15, strategy="uniform")
    np.testing.assert_allclose(found.accuracy[filled], share, **NEAR)
    np.testing.assert_allclose(found.confidence[filled], confidence, **NEAR)
    error = 0.0
    for m in range(1, 16):
        inside = [
            i
            for i, score in enumerate(sure.tolist())
            if (m - 1) / 15 < score <= m / 15 or (m == 1 and score == 0)
        ]
        if inside:
            gap = np.mean(correct[inside]) - np.mean(sure[inside], dtype=np.float64)
            error += len(inside) / len(sure) * abs(gap)
    assert metrics.expected_calibration_error(sure, correct) == pytest.approx(error, abs=1e-12)


def test_of_nothing_nothing_can_be_said():
    none = np.empty(0, np.float32), np.empty(0, bool)
    assert np.isnan(metrics.expected_calibration_error(*none))
    assert np.isnan(metrics.average_precision(*none))
    tree = tree_of((-1, -1))
    empty = np.empty((0, 2), bool)
    best = metrics.best_labels(empty.astype(np.float32), tree)
    assert np.isnan(metrics.top_k_accuracy(best, empty, 1))
    assert metrics.confusion_pairs(best, empty, tree) == []


# animal > mammal > (dog, cat); animal > bird; landscape
NAMES = ("dog", "animal", "mammal", "cat", "bird", "landscape")
TREE = tree_of((2, -1, 1, 2, 1, -1))


def named(*labels: str) -> np.ndarray:
    return np.isin(NAMES, labels)[None]


@pytest.mark.parametrize(
    ("stated", "true", "right"),
    [
        (["dog"], ["dog", "mammal", "animal"], ["dog"]),
        (["mammal"], ["mammal", "animal"], ["mammal", "dog", "cat"]),
        (["animal"], ["animal"], ["animal", "mammal", "dog", "cat", "bird"]),
        # What is said of the mammal says nothing more than the dog does.
        (["dog", "mammal"], ["dog", "mammal", "animal"], ["dog"]),
        (["mammal", "bird"], ["mammal", "bird", "animal"], ["mammal", "dog", "cat", "bird"]),
        (["landscape"], ["landscape"], ["landscape"]),
        ([], [], []),
    ],
)
def test_in_a_hierarchy_what_is_above_is_true_and_what_is_below_is_right(stated, true, right):
    np.testing.assert_array_equal(metrics.with_above(named(*stated), TREE), named(*true))
    np.testing.assert_array_equal(metrics.right_answers(named(*stated), TREE), named(*right))


def test_the_best_label_of_a_hierarchy_has_nothing_below_it():
    scores = np.array([[0.2, 0.9, 0.6, 0.4, 0.3, 0.1], [0.1, 0.5, 0.2, 0.1, 0.3, 0.5]], np.float32)
    best = metrics.best_labels(scores, TREE, 5)
    assert [[NAMES[i] if i >= 0 else "" for i in row] for row in best.tolist()] == [
        ["cat", "bird", "dog", "landscape", ""],
        ["landscape", "bird", "dog", "cat", ""],
    ]
    stated = np.concatenate([named("mammal"), named("animal")])
    right = metrics.right_answers(stated, TREE)
    assert metrics.top_k_accuracy(best, right, 1) == 0.5
    assert metrics.top_k_accuracy(best, right, 2) == 1.0
    recall = metrics.class_recall(best, stated, TREE)
    np.testing.assert_array_equal(recall, [np.nan, 0, 1, np.nan, np.nan, np.nan])
    (pair,) = metrics.confusion_pairs(best, stated, TREE)
    assert (NAMES[pair.truth], NAMES[pair.best], pair.items) == ("animal", "landscape", 1)


def test_an_item_without_a_best_label_is_wrong_and_is_told_as_such():
    tree = tree_of((-1, -1))
    best, stated = np.array([[-1], [0]]), np.array([[True, False], [True, False]])
    assert metrics.top_k_accuracy(best, stated, 1) == 0.5
    assert metrics.confusion_pairs(best, stated, tree) == [metrics.Confusion(0, -1, 1)]
