"""Temperature and thresholds of a label set from items whose labels are known; pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transforms import metrics
from transforms.hierarchy import Tree, tree_of
from transforms.labels import LabelSet
from transforms.records import LabelVectors
from transforms.scoring import scores, select, similarities
from transforms.splitting import Labelled
from transforms.thresholds import LEAST, Thresholds, find_thresholds, with_thresholds

RANGE = 100.0
"""A temperature is looked for from this part of the present one to this multiple of it."""

STEPS = 81
"""How many temperatures are tried at first; the best one's neighbourhood is searched on."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]

_TINY = 1e-38
_NEARLY = 1 - 2**-24
_GOLDEN = (math.sqrt(5) - 1) / 2


class Figures(NamedTuple):
    """How right the scores and tags of some items are.

    `precision` and `recall` are of all tags together, `f1` is the mean over the labels that some
    item has. `ece` and `nll` are NaN for scores that are no probabilities.
    """

    items: int
    nll: float
    ece: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found on one part of the items, and how it does on the other part, step by step.

    `temperature` is None where the items do not tell one. `warmed` has the temperature alone,
    `tagged` the thresholds too, which were found with the temperature that stays. Whether a step
    `helps` is for the held-out figures to say; `after` has those of what is kept.
    """

    temperature: float | None
    thresholds: Thresholds
    before: Figures
    warmed: Figures
    tagged: Figures
    after: Figures
    temperature_helps: bool
    thresholds_help: bool


def calibrate(
    label_set: LabelSet,
    labels: LabelVectors,
    fitted: Labelled,
    checked: Labelled,
    *,
    precision: float | None = None,
    least: int = LEAST,
    editable: frozenset[str] | None = None,
    force: bool = False,
) -> Calibration:
    """Find temperature and thresholds on `fitted`, and judge each of them on `checked`.

    The temperature is judged by the negative log-likelihood; thresholds by the mean F1 or, where a
    `precision` is wanted, by how much of it is missing, then by recall. What does not help is kept
    only if `force`. Labels that are not `editable` (None: all are) get no threshold of their own.
    """
    before = figures(labels, checked)
    temperature = best_temperature(labels, fitted)
    warm = labels if temperature is None else replace(labels, logit_scale=1 / temperature)
    warmed = figures(warm, checked)
    temperature_helps = temperature is not None and warmed.nll < before.nll
    base = warmed
    if not (temperature_helps or force):
        warm, base = labels, before
    found = find_thresholds(warm, fitted, precision, least, editable)
    tagging = with_thresholds(label_set, found)
    least_scores = tuple(tagging.threshold_of(label) for label in tagging.labels)
    tagged = figures(replace(warm, thresholds=least_scores), checked)
    thresholds_help = _is_better(tagged, base, precision)
    after = tagged if thresholds_help or force else base
    return Calibration(
        temperature, found, before, warmed, tagged, after, temperature_helps, thresholds_help
    )


def _is_better(after: Figures, before: Figures, precision: float | None) -> bool:
    if precision is None:
        return after.f1 > before.f1
    missing = [max(0.0, precision - _number(of.precision)) for of in (after, before)]
    return missing[0] < missing[1] or (missing[0] == missing[1] and after.recall > before.recall)


def _number(precision: float) -> float:
    # Without a tag none is wrong.
    return 1.0 if math.isnan(precision) else precision


def figures(labels: LabelVectors, items: Labelled) -> Figures:
    """How right the labels' scores and tags of some items are."""
    tree = tree_of(labels.parents)
    score = scores(similarities(items.vectors, labels), labels, tree)
    truth = metrics.with_above(items.stated, tree)
    chosen = np.zeros((len(score), score.shape[1] + 1), bool)
    np.put_along_axis(chosen, select(score, labels, tree), True, axis=1)
    # -1, for none, is the column behind the last label.
    tags = metrics.with_above(chosen[:, :-1], tree)
    of_labels = metrics.precision_recall_f1(tags, truth)
    tagged, hits, support = (int(of.sum()) for of in (tags, tags & truth, truth))
    ece = nll = math.nan
    if labels.activation != "cosine":
        nll = negative_log_likelihood(score, items.stated, labels, tree)
        first = metrics.best_labels(score, tree)
        right = metrics.are_right(first, metrics.right_answers(items.stated, tree))
        sure = np.take_along_axis(score, first, axis=1)[:, 0]
        ece = metrics.expected_calibration_error(sure, right[:, 0])
    return Figures(
        items=len(score),
        nll=nll,
        ece=ece,
        precision=hits / tagged if tagged else math.nan,
        recall=hits / support if support else math.nan,
        f1=metrics.mean_of(of_labels.f1[of_labels.support > 0]),
    )


def negative_log_likelihood(score: Scores, stated: Mask, labels: LabelVectors, tree: Tree) -> float:
    """The mean of -log score of what is true, over items with a label; scores `[N, L]`.

    `softmax`: of an item's lowest stated labels, the mean of theirs. `sigmoid`: of each label that
    some item has, whether the item has it or not (binary cross-entropy).
    """
    lowest = metrics.deepest(stated, tree)
    if labels.activation == "softmax":
        items, places = np.nonzero(lowest)
        loss = -np.log(np.maximum(score[items, places].astype(np.float64), _TINY))
        of_item = lowest.sum(axis=1)[items]
        return float(np.sum(loss / of_item) / len(np.unique(items)))
    truth = metrics.with_above(stated, tree)
    known = truth.any(axis=0)
    likely = np.clip(score[:, known].astype(np.float64), _TINY, _NEARLY)
    return float(-np.mean(np.where(truth[:, known], np.log(likely), np.log1p(-likely))))


def best_temperature(labels: LabelVectors, items: Labelled) -> float | None:
    """The temperature of the least negative log-likelihood (Guo et al. 2017), to four digits.

    None where there is none in `RANGE`, as when all items are right: the surer the better then.
    None, too, for `cosine`, which has no temperature.
    """
    if labels.activation == "cosine":
        return None
    tree = tree_of(labels.parents)
    similarity = similarities(items.vectors, labels)

    def loss(log_temperature: float) -> float:
        there = replace(labels, logit_scale=math.exp(-log_temperature))
        return negative_log_likelihood(scores(similarity, there, tree), items.stated, labels, tree)

    now, reach = -math.log(labels.logit_scale), math.log(RANGE)
    tried = np.linspace(now - reach, now + reach, STEPS).tolist()
    place = int(np.argmin([loss(at) for at in tried]))
    if place in (0, STEPS - 1):
        return None
    best = math.exp(_minimum(loss, tried[place - 1], tried[place + 1]))
    return float(f"{best:.4g}")


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, to 1e-4 (golden section)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return (low + high) / 2
