"""Thresholds that a share of an archive's items reaches: histograms of scores, as they stream by.

A guess: that a label is right for about that share is the user's word, and nothing of it is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transforms.hierarchy import Tree, tree_of
from transforms.latest import Items
from transforms.records import Activation, LabelVectors
from transforms.scoring import SCORES_AT_ONCE, scores, similarities
from transforms.thresholds import number_between

LIMIT = 17.0
"""Beyond these log odds a score is 0 or 1, as float32 has it."""

BINS = 680
"""Of a label's scores, by their log odds: of 50,000 labels they take 136 MB."""

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]


class Shares(NamedTuple):
    """Of L labels the `thresholds[L]` that `wanted[L]` of `items` reach, or about so many."""

    items: int
    thresholds: list[float]
    wanted: Floats


def find_shares(items: Iterable[Items], labels: LabelVectors, share: float) -> Shares:
    """For each label the threshold that about this share of the items reaches.

    Of a label above others it is as many shares as there are labels without others below it. Keeps
    `BINS` counts a label, whatever the number of items. Raises ValueError where there are none.
    """
    tree = tree_of(labels.parents)
    histogram = ScoreHistogram(len(labels.names), labels.activation)
    rows = max(1, SCORES_AT_ONCE // len(labels.vectors))
    for some in items:
        for start in range(0, len(some.uris), rows):
            vectors = some.vectors[start : start + rows]
            histogram.add(scores(similarities(vectors, labels), labels, tree))
    wanted = np.minimum(1.0, share * _leaves(tree, len(labels.names)))
    return Shares(histogram.items, histogram.thresholds(wanted), wanted)


def _leaves(tree: Tree, count: int) -> Floats:
    """How many labels with nothing below them are at or below each label."""
    leaves = tree.is_leaf.astype(np.float32).reshape(1, count)
    summed: Floats = tree.sum_below(leaves)[0].astype(np.float64)
    return summed


class ScoreHistogram:
    """Counts of scores, label by label: evenly by log odds, or by the score itself for `cosine`."""

    def __init__(self, labels: int, activation: Activation) -> None:
        self._is_linear = activation == "cosine"
        self._limit = 1.0 if self._is_linear else LIMIT
        self._counts = np.zeros((labels, BINS), np.int32)
        self.items = 0

    def add(self, score: Scores) -> None:
        """Count scores `[N, L]`."""
        self.items += len(score)
        at = score
        if not self._is_linear:
            with np.errstate(divide="ignore"):
                at = np.log(score) - np.log1p(-score)
        width = 2 * self._limit / BINS
        place = ((np.clip(at, -self._limit, self._limit) + self._limit) / width).astype(np.int64)
        place = np.minimum(place, BINS - 1) + np.arange(len(self._counts)) * BINS
        np.add.at(self._counts.reshape(-1), place.reshape(-1), 1)

    def thresholds(self, shares: Floats) -> list[float]:
        """The score that a share `[L]` of the items reaches, interpolated in its bin."""
        if not self.items:
            raise ValueError("no scores were counted")
        return [
            self._threshold(counts, share * self.items)
            for counts, share in zip(self._counts, shares.tolist(), strict=True)
        ]

    def _threshold(self, counts: npt.NDArray[np.int32], wanted: float) -> float:
        # above[b]: how many are in bin b or above it.
        above = np.cumsum(counts[::-1], dtype=np.int64)[::-1]
        place = int(np.flatnonzero(above >= min(wanted, self.items))[-1])
        missing = min(wanted, self.items) - (above[place] - counts[place])
        width = 2 * self._limit / BINS
        # Bin by bin upwards from -limit; within one, evenly.
        at = (place + 1 - missing / counts[place]) * width - self._limit
        low, high = (np.float32(self._score(at + part * width)) for part in (-0.05, 0.05))
        return number_between(low, high) if low < high else float(high)

    def _score(self, at: float) -> float:
        return at if self._is_linear else float(1 / (1 + np.exp(-at)))
