"""Thresholds on scores, of best F1 or of a wanted precision, from items whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transforms import metrics
from transforms.hierarchy import tree_of
from transforms.labels import LabelSet
from transforms.records import LabelVectors
from transforms.scoring import scores, similarities
from transforms.splitting import Labelled, folds

LEAST = 5
"""How many items a label has at least that gets a threshold of its own."""

PULLS = (0.0, 10.0, 30.0, 100.0, 1000.0)
"""How many items of its own a label needs until its best threshold counts as the common one."""

FOLDS = 5

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_TINY = 1e-38


class Thresholds(NamedTuple):
    """By label key; `of_set` is for the others, and None where none was found.

    Of `few` labels there are too few items, of `unreached` ones no threshold is precise enough.
    """

    own: Mapping[str, float]
    of_set: float | None
    few: tuple[str, ...]
    unreached: tuple[str, ...]


def with_thresholds(label_set: LabelSet, found: Thresholds) -> LabelSet:
    """The set with other thresholds. Those of labels that are not among them stay."""
    return replace(
        label_set,
        threshold=label_set.threshold if found.of_set is None else found.of_set,
        labels=tuple(
            replace(label, threshold=found.own.get(label.key, label.threshold))
            for label in label_set.labels
        ),
    )


def find_thresholds(
    labels: LabelVectors,
    items: Labelled,
    precision: float | None = None,
    least: int = LEAST,
    editable: frozenset[str] | None = None,
    seed: int = 0,
) -> Thresholds:
    """A threshold for each label, of best F1 or of a wanted precision.

    The set's is found from all labels that some item has, together; labels with fewer than `least`
    items have no other. The threshold of best F1 on few items is a matter of luck (Lipton et al.
    2014, the winner's curse), so a label's is pulled to the set's: it is the mean of both, weighted
    by the label's items and a constant of `PULLS` that is chosen by cross-validation. For a wanted
    precision nothing is pulled.
    """
    tree = tree_of(labels.parents)
    score = scores(similarities(items.vectors, labels), labels, tree)
    truth = metrics.with_above(items.stated, tree)
    of_set = _together(score, truth, precision)
    best = [best_threshold(score[:, at], truth[:, at], precision) for at in range(len(labels.ids))]
    support = truth.sum(axis=0)
    pull = 0.0
    if precision is None:
        pull = _choose_pull(score, truth, folds(items.stated, FOLDS, seed), least)
    own: dict[str, float] = {}
    few, unreached = [], []
    for key, found, count in zip(labels.ids, best, support.tolist(), strict=True):
        if editable is not None and key not in editable:
            continue
        if count < least:
            few.append(key)
        elif found is None:
            unreached.append(key)
        else:
            own[key] = _pulled(found, of_set, count, pull)
    return Thresholds(own, of_set, tuple(few), tuple(unreached))


def _together(score: Scores, truth: Mask, precision: float | None) -> float | None:
    known = truth.any(axis=0)
    return best_threshold(score[:, known].ravel(), truth[:, known].ravel(), precision)


def _pulled(own: float, of_set: float | None, count: int, pull: float) -> float:
    if not pull or of_set is None:
        return own
    return float(f"{(count * own + pull * of_set) / (count + pull):.4g}")


def _choose_pull(
    score: Scores, truth: Mask, parts: list[tuple[Places, Places]], least: int
) -> float:
    """The pull of the best mean F1, of items whose thresholds were found on others."""
    if not parts:
        return PULLS[-1]
    tags = np.zeros((len(PULLS), *truth.shape), bool)
    for fitted, checked in parts:
        of_set = _together(score[fitted], truth[fitted], None)
        for at, count in enumerate(truth[fitted].sum(axis=0).tolist()):
            column, known = score[fitted, at], truth[fitted, at]
            found = best_threshold(column, known) if count >= least else of_set
            for place, pull in enumerate(PULLS):
                if found is not None:
                    reached = np.float32(_pulled(found, of_set, count, pull))
                    tags[place, checked, at] = score[checked, at] >= reached
    seen = np.concatenate([part for _, part in parts])
    means = []
    for of_pull in tags:
        figures = metrics.precision_recall_f1(of_pull[seen], truth[seen])
        means.append(metrics.mean_of(figures.f1[figures.support > 0]))
    return PULLS[int(np.argmax(means))]


def best_threshold(score: Scores, truth: Mask, precision: float | None = None) -> float | None:
    """The threshold on scores `[N]` that is best for what is true.

    Of best F1, the highest of them; or, where a `precision` is wanted, of the best recall that has
    it. None where nothing is true, or nothing has that precision. It stands between two scores,
    with as few digits as that takes.
    """
    curve = metrics.precision_recall_curve(score, truth)
    if not truth.any():
        return None
    if precision is None:
        # Not 0 / 0: something is true, so recall gets to 1.
        total = np.maximum(curve.precision + curve.recall, _TINY)
        place = int(np.argmax(2 * curve.precision * curve.recall / total))
    else:
        enough = np.flatnonzero((curve.precision >= precision) & (curve.recall > 0))
        if not len(enough):
            return None
        place = int(enough[-1])
        # As far up as nothing true is lost.
        place = int(np.argmax(curve.recall == curve.recall[place]))
    lower = curve.scores[place + 1] if place + 1 < len(curve.scores) else None
    return number_between(lower, curve.scores[place])


def number_between(low: np.float32 | None, high: np.float32) -> float:
    """A number of few digits above `low` and at most `high`, near their middle, as float32."""
    if low is None:
        low = np.float32(high - abs(high) * np.float32(0.01))
    middle = (float(low) + float(high)) / 2
    for digits in range(1, 18):
        number = float(f"{middle:.{digits}g}")
        if low < np.float32(number) <= high:
            return number
    return float(high)
