"""How right scores and tags are, where the truth is known: pure numpy.

N items, L labels. `stated[N, L]` is the truth as somebody wrote it down; `with_above(stated)` is
the truth of every label, since a dog is an animal too; `right_answers(stated)` are the labels that
are right as an item's best. What cannot be said (the recall of a label that no item has) is NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from transforms.hierarchy import Tree

BINS = 15
"""Of the calibration error: as in Guo et al. 2017."""

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def with_above(chosen: Mask, tree: Tree) -> Mask:
    """Labels `[N, L]` and all that is above them: what is true if these are."""
    return chosen | tree.any_below(chosen)


def deepest(chosen: Mask, tree: Tree) -> Mask:
    """Those of the labels `[N, L]` that have none of them below."""
    return chosen & ~tree.any_below(chosen)


def right_answers(stated: Mask, tree: Tree) -> Mask:
    """Labels `[N, L]` that are right as an item's best: a true one, or one below it.

    Who says that a picture shows a mammal does not say that "dog" is wrong. Of a true label and
    another one below it only the lower counts.
    """
    right = deepest(stated, tree)
    for level in reversed(tree.levels):
        right[:, level.children] |= right[:, tree.above[level.children, 0]]
    return right


def ranked(scores: Scores, count: int) -> Places:
    """The best labels `[N, min(count, L)]` of scores `[N, L]`, best first, ties by their order.

    -1 in place of those whose score is minus infinity.
    """
    left = scores.copy()
    rows = np.arange(len(left))
    found = np.empty((len(left), min(count, left.shape[1])), np.int64)
    for rank in range(found.shape[1]):
        places = left.argmax(axis=1)
        found[:, rank] = np.where(left[rows, places] > -np.inf, places, -1)
        left[rows, places] = -np.inf
    return found


def best_labels(scores: Scores, tree: Tree, count: int = 1) -> Places:
    """As `ranked`, of the labels with nothing below them."""
    if not tree.levels:
        return ranked(scores, count)
    return ranked(np.where(tree.is_leaf, scores, -np.inf), count)


def are_right(best: Places, right: Mask) -> Mask:
    """Of each of an item's best labels `[N, K]` whether it is right; -1 never is."""
    return np.take_along_axis(right, np.maximum(best, 0), axis=1) & (best >= 0)


def top_k_accuracy(best: Places, right: Mask, k: int) -> float:
    """The share of items of which one of the first k of `best[N, K]` is right."""
    return _mean(np.any(are_right(best[:, :k], right), axis=1))


def class_recall(best: Places, stated: Mask, tree: Tree) -> Floats:
    """Of each label `[L]` the share of the items with it whose best label is it, or below it.

    An item has the labels that are stated of it, those above others not counted.
    """
    lowest = deepest(stated, tree)
    answered = np.zeros_like(stated)
    given = np.flatnonzero(best[:, 0] >= 0)
    answered[given, best[given, 0]] = True
    return _share((lowest & with_above(answered, tree)).sum(axis=0), lowest.sum(axis=0))


def mean_class_recall(best: Places, stated: Mask, tree: Tree) -> float:
    """The mean of `class_recall` over the labels that an item has.

    Of one label an item and no hierarchy: scikit-learn's balanced accuracy.
    """
    return mean_of(class_recall(best, stated, tree))


class TagFigures(NamedTuple):
    """Of each label `[L]` how right its tags are.

    `support` items have it, `tagged` got it, `hits` both.
    """

    support: Places
    tagged: Places
    hits: Places
    precision: Floats
    recall: Floats
    f1: Floats


def precision_recall_f1(tags: Mask, truth: Mask) -> TagFigures:
    """Precision, recall and F1 of each label's tags `[N, L]`.

    The precision of a label without tags is NaN, so is the recall of one without items.
    """
    support, tagged = truth.sum(axis=0), tags.sum(axis=0)
    hits = (tags & truth).sum(axis=0)
    return TagFigures(
        support=support,
        tagged=tagged,
        hits=hits,
        precision=_share(hits, tagged),
        recall=_share(hits, support),
        f1=_share(2 * hits, tagged + support),
    )


class Curve(NamedTuple):
    """Precision and recall of the items from each score on, the highest score first."""

    scores: Scores
    precision: Floats
    recall: Floats


def precision_recall_curve(scores: Scores, truth: Mask) -> Curve:
    """The curve of one label's scores `[N]`: a point for each different score.

    Recall is NaN where nothing is true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Items of the same score are tagged together, whatever their order.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], np.ones(min(len(ranked), 1), bool)))
    hits = np.cumsum(truth[order])[last]
    recall = _share(hits, np.full(len(last), truth.sum()))
    return Curve(ranked[last], hits / (last + 1.0), recall)


def average_precision(scores: Scores, truth: Mask) -> float:
    """The sum of precision times what recall gains, over a label's scores `[N]` downwards.

    As scikit-learn's `average_precision_score`: nothing is interpolated. NaN where nothing is true.
    """
    if not truth.any():
        return float("nan")
    curve = precision_recall_curve(scores, truth)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def average_precisions(scores: Scores, truth: Mask) -> Floats:
    """`average_precision` of each label's column `[L]`; their `mean_of` is the mAP."""
    columns = range(scores.shape[1])
    return np.array([average_precision(scores[:, i], truth[:, i]) for i in columns], np.float64)


class Bins(NamedTuple):
    """Items by how sure their best label was, in bins of equal width.

    `[B]`: how many, their mean score, and the share of them that is right (NaN in empty bins).
    """

    items: Places
    confidence: Floats
    accuracy: Floats


def calibration_bins(confidence: Scores, correct: Mask, bins: int = BINS) -> Bins:
    """Scores `[N]` of best labels, 0 to 1, in bins: the m-th is ((m - 1) / bins, m / bins].

    The first has 0 too.
    """
    sure = confidence.astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], sure, side="left")
    count = np.bincount(place, minlength=bins)
    return Bins(
        count,
        _share(np.bincount(place, weights=sure, minlength=bins), count),
        _share(np.bincount(place, weights=correct, minlength=bins), count),
    )


def expected_calibration_error(confidence: Scores, correct: Mask, bins: int = BINS) -> float:
    """How far scores `[N]` of best labels are from the share that is right, on average.

    Naeini et al. 2015, with bins as in Guo et al. 2017: the sum over bins of their share of the
    items times |accuracy - mean confidence|. NaN without items.
    """
    found = calibration_bins(confidence, correct, bins)
    if not found.items.sum():
        return float("nan")
    gaps = np.nan_to_num(np.abs(found.accuracy - found.confidence))
    return float(np.sum(found.items / found.items.sum() * gaps))


class Confusion(NamedTuple):
    """So many items have the label at `truth`, and the one at `best` as their wrong best label."""

    truth: int
    best: int
    items: int


def confusion_pairs(best: Places, stated: Mask, tree: Tree) -> list[Confusion]:
    """What is taken for what, the most frequent first, then by the labels' order.

    Of the items whose best label is wrong, each of their lowest stated labels. `best` is -1 for
    items that have none.
    """
    first = best[:, 0]
    wrong = ~are_right(best[:, :1], right_answers(stated, tree))[:, 0]
    items, places = np.nonzero(deepest(stated, tree) & wrong[:, None])
    pairs, counts = np.unique(np.stack([places, first[items]]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], pairs[0], -counts))
    return [Confusion(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order.tolist()]


def mean_of(values: Floats) -> float:
    """The mean of what is not NaN; NaN of nothing."""
    return _mean(values[~np.isnan(values)])


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """Part by whole, NaN where that is 0."""
    shares: Floats = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
