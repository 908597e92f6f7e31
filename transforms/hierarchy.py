"""Labels above labels: what scores and tags below a label mean for it; pure numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class _Level(NamedTuple):
    """Labels of one depth, ordered by what is above them; `starts` has each parent's first."""

    children: Places
    starts: Places
    parents: Places


@dataclass(frozen=True, slots=True)
class Tree:
    """The hierarchy of L labels. `levels` are the deepest first, and none where there is none.

    `above[L, A]` has the places of what is above each label, the nearest first, then -1.
    """

    levels: tuple[_Level, ...]
    is_leaf: Mask
    above: Places

    def sum_below(self, score: Scores) -> Scores:
        """To each label's score that of all that is below it, in place."""
        for level, values in self._upwards(score, np.add.reduceat):
            score[:, level.parents] += values
        return score

    def at_least_below(self, score: Scores) -> Scores:
        """Each label's score, or a better one from below it, in place."""
        for level, values in self._upwards(score, np.maximum.reduceat):
            score[:, level.parents] = np.maximum(score[:, level.parents], values)
        return score

    def any_below(self, chosen: Mask) -> Mask:
        """Whether something below a label is chosen, however deep: `[N, L]`."""
        below = np.zeros_like(chosen)
        for level in self.levels:
            either = (chosen | below)[:, level.children]
            below[:, level.parents] = np.logical_or.reduceat(either, level.starts, axis=1)
        return below

    def _upwards(
        self, score: Scores, together: Callable[..., Scores]
    ) -> Iterator[tuple[_Level, Scores]]:
        for level in self.levels:
            yield level, together(score[:, level.children], level.starts, axis=1)

    def with_above(self, places: Places) -> Places:
        """Tags `[N, K]`, each with what is above it behind it, each once: `[N, K * (1 + A)]`."""
        ways = np.concatenate([np.arange(len(self.above))[:, None], self.above], axis=1)
        # -1 stands for none: the last row.
        ways = np.concatenate([ways, np.full((1, ways.shape[1]), -1)])
        found = ways[places].reshape(len(places), -1)
        for column in range(1, found.shape[1]):
            repeated = (found[:, :column] == found[:, column, None]).any(axis=1)
            found[repeated, column] = -1
        return found


@functools.lru_cache(maxsize=8)
def tree_of(parents: Sequence[int]) -> Tree:
    """The tree in which label i is below label `parents[i]`, or below none where that is -1."""
    above = np.array(parents, np.int64)
    if not (above >= 0).any():
        return Tree((), np.ones(len(above), bool), np.empty((len(above), 0), np.int64))
    ways = [above]
    while (ways[-1] >= 0).any():
        ways.append(np.where(ways[-1] >= 0, above[ways[-1]], -1))
    way = np.stack(ways[:-1], axis=1)
    depths = (way >= 0).sum(axis=1)
    levels = []
    for depth in range(int(depths.max()), 0, -1):
        children = np.flatnonzero(depths == depth)
        children = children[np.argsort(above[children], kind="stable")]
        parents_here, starts = np.unique(above[children], return_index=True)
        levels.append(_Level(children, starts, parents_here))
    is_leaf = np.ones(len(above), bool)
    is_leaf[above[above >= 0]] = False
    return Tree(tuple(levels), is_leaf, way)
