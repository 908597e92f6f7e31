"""Items whose labels are known, parted into those to learn from and those to check with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

# Steps of the golden ratio lie evenly in 0 to 1, a few of them too: each kind has its share.
_STEP = (5**0.5 - 1) / 2


class Labelled(NamedTuple):
    """N items: their `vectors[N, D]`, and which labels are `stated[N, L]` of each."""

    vectors: Vectors
    stated: Mask

    def part(self, rows: Places) -> Labelled:
        """Some of them."""
        return Labelled(self.vectors[rows], self.stated[rows])


def split(stated: Mask, share: float, seed: int = 0) -> tuple[Places, Places]:
    """The items `[N, L]` to learn from and, about `share` of them, those held out, at random.

    Of the items that have the same labels the share is the same, as far as it goes. The only item
    of its kind is learnt from: nothing could be learnt about it otherwise.
    """
    learnt, held_out = _parted(stated, [1 - share, share], seed)
    return learnt, held_out


def folds(stated: Mask, count: int, seed: int = 0) -> list[tuple[Places, Places]]:
    """For cross-validation, each time other items: those to learn from, and the others.

    The only item of its kind is always learnt from.
    """
    parts = _parted(stated, [0.0, *[1 / count] * count], seed)
    everything = np.arange(len(stated))
    return [(np.setdiff1d(everything, part), part) for part in parts[1:] if len(part)]


def _parted(stated: Mask, shares: Sequence[float], seed: int) -> list[Places]:
    """Places of items in parts of these shares; the first has the only ones of their kind too."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(stated))
    # Items of one kind behind each other, in random order.
    kinds = np.unique(np.packbits(stated, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = order[np.argsort(kinds[order], kind="stable")]
    alone = np.bincount(kinds)[kinds[order]] == 1
    rest = order[~alone]
    place = (np.arange(len(rest)) * _STEP + random.random()) % 1
    part = np.searchsorted(np.cumsum(shares)[:-1], place, side="right")
    parts = [np.sort(rest[part == number]) for number in range(len(shares))]
    parts[0] = np.sort(np.concatenate([parts[0], order[alone]]))
    return parts
