"""Answers against the truth: all figures of an evaluation, and the items that it got wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms import metrics
from transforms.answers import Answers
from transforms.hierarchy import tree_of
from transforms.labels import LabelSet
from transforms.truth import Truth

WORST = 48
"""How many of the worst mistakes are kept."""

MISSING = 10
"""How many items without an answer are named."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelResult:
    """How right the tags of one label are; None for what cannot be said.

    `items` have it, `tagged` got it as a tag, `hits` both. `recall_best` is the share of the items
    with it whose best label is it, or one below it.
    """

    label: str
    path: str
    items: int
    tagged: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None
    recall_best: float | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Items whose best label's score is above `low` and at most `high`."""

    low: float
    high: float
    items: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Mixed:
    """So many items of the label `truth` have `best` as their best; None where they have none."""

    truth: str
    best: str | None
    items: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """An item whose best label is wrong, with that label's score."""

    uri: str
    truth: tuple[str, ...]
    best: str
    score: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that is found out; labels stand by their paths. None is what cannot be said.

    Of the `uris` with truth, `missing` have no answer; `items` are those that have (an uri may be
    several). `precision`, `recall` and `f1` are means over the labels that some item has, of tags;
    `mean_average_precision` likewise, of scores. `calibration_error` is None for scores that are
    no probabilities, and leaves out items without a tag.
    """

    uris: int
    items: int
    missing: int
    missing_uris: tuple[str, ...]
    left_out: int
    untagged: int
    multi_label: bool
    top_1: float
    top_5: float
    mean_class_recall: float
    mean_average_precision: float
    calibration_error: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    labels: tuple[LabelResult, ...]
    calibration: tuple[Bin, ...]
    confusion: tuple[Mixed, ...]
    worst: tuple[Mistake, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def evaluate(answers: Answers, truth: Truth, label_set: LabelSet) -> Evaluation:
    """Compare answers (at least one) with the truth of their items."""
    tree = tree_of(label_set.parents)
    paths = label_set.paths
    stated = truth.stated(answers.uris, label_set)
    right = metrics.right_answers(stated, tree)
    is_true = metrics.with_above(stated, tree)
    tags = metrics.precision_recall_f1(answers.tags, is_true)
    averages = metrics.average_precisions(answers.scores, is_true)
    recalls = metrics.class_recall(answers.best, stated, tree)
    first = answers.best[:, 0]
    found = first >= 0
    correct = metrics.are_right(answers.best[:, :1], right)[:, 0]
    confidence = np.take_along_axis(answers.scores, np.maximum(first, 0)[:, None], axis=1)[:, 0]
    has_items = tags.support > 0
    known = set(answers.uris)
    missing = [uri for uri in truth.labels if uri not in known]
    sure = (confidence[found], correct[found])
    is_probability = label_set.activation != "cosine"
    return Evaluation(
        uris=len(truth.labels),
        items=len(answers.uris),
        missing=len(missing),
        missing_uris=tuple(sorted(missing)[:MISSING]),
        left_out=truth.left_out,
        untagged=int((~answers.tags.any(axis=1)).sum()),
        multi_label=truth.is_multi,
        top_1=metrics.top_k_accuracy(answers.best, right, 1),
        top_5=metrics.top_k_accuracy(answers.best, right, 5),
        mean_class_recall=metrics.mean_of(recalls),
        mean_average_precision=metrics.mean_of(averages),
        calibration_error=(
            _told(metrics.expected_calibration_error(*sure)) if is_probability else None
        ),
        precision=_told(metrics.mean_of(tags.precision[has_items])),
        recall=_told(metrics.mean_of(tags.recall[has_items])),
        f1=_told(metrics.mean_of(tags.f1[has_items])),
        labels=tuple(
            LabelResult(
                label.key,
                paths[place],
                int(tags.support[place]),
                int(tags.tagged[place]),
                int(tags.hits[place]),
                _told(tags.precision[place]),
                _told(tags.recall[place]),
                _told(tags.f1[place]),
                _told(averages[place]),
                _told(recalls[place]),
            )
            for place, label in enumerate(label_set.labels)
        ),
        calibration=tuple(_bins(*sure)) if is_probability else (),
        confusion=tuple(
            Mixed(paths[pair.truth], None if pair.best < 0 else paths[pair.best], pair.items)
            for pair in metrics.confusion_pairs(answers.best, stated, tree)
        ),
        worst=tuple(_worst(answers, confidence, found & ~correct, stated, paths)),
    )


def _bins(confidence: metrics.Scores, correct: Mask) -> Iterator[Bin]:
    found = metrics.calibration_bins(confidence, correct)
    for place, count in enumerate(found.items.tolist()):
        yield Bin(
            place / metrics.BINS,
            (place + 1) / metrics.BINS,
            count,
            _told(found.confidence[place]),
            _told(found.accuracy[place]),
        )


def _worst(
    answers: Answers,
    confidence: metrics.Scores,
    wrong: Mask,
    stated: Mask,
    paths: tuple[str, ...],
) -> Iterator[Mistake]:
    """The wrong items with the highest scores, then by their names."""
    items = np.flatnonzero(wrong).tolist()
    items.sort(key=lambda item: (-confidence[item], answers.uris[item]))
    for item in items[:WORST]:
        yield Mistake(
            answers.uris[item],
            tuple(paths[place] for place in np.flatnonzero(stated[item]).tolist()),
            paths[answers.best[item, 0]],
            float(confidence[item]),
        )


def _told(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
