"""Logistic regression on stored embeddings that starts from, and is pulled to, words; torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from transforms import metrics
from transforms.adapters import Adapter
from transforms.hierarchy import tree_of
from transforms.records import LabelVectors
from transforms.scoring import similarities
from transforms.splitting import Labelled

FREEDOM_OF_BIAS = 1e4
ITERATIONS = 60
LOGITS_AT_ONCE = 4 * 2**20
ALONE = 10**8
"""Up to how many multiplications a step is made by one thread."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class Fit(NamedTuple):
    """What is added to the logits: `change[K, D]` times centred embeddings, and `bias[K]`."""

    change: torch.Tensor
    bias: torch.Tensor


class Strength(NamedTuple):
    """How far a label goes from its words.

    `means`: what the direction of its items' mean adds to its logit, about. `freedom`: the variance
    of what the regression adds to that; with 0 there is none.
    """

    means: float
    freedom: float


class Probe:
    """The regression on labelled items: what stays of the logits, and what the items are.

    Learnt are the K labels that are the lowest stated ones of some item. The logits of the other
    labels and of the background stay; for the softmax one number for all of them (`_others`) is
    enough of each item, and one for those that are below a label of the item (`_below`).
    """

    def __init__(self, labels: LabelVectors, items: Labelled) -> None:
        tree = tree_of(labels.parents)
        lowest = metrics.deepest(items.stated, tree)
        self._labels = labels
        self._places: Places = np.flatnonzero(lowest.any(axis=0))
        vectors = items.vectors.astype(np.float64)
        # Embeddings have a large part in common, which tells none from another (Liang et al. 2022,
        # the cone effect); what a label is changed by is measured from there. The bias makes up for
        # it, and `cosine` has none.
        is_cosine = labels.activation == "cosine"
        self._centre = vectors.mean(axis=0) * (not is_cosine)
        spread = vectors - self._centre
        self._size = math.sqrt(float((spread**2).sum(axis=1).mean())) or 1.0
        self._inputs = torch.from_numpy(spread / self._size)
        self._is_sigmoid = labels.activation == "sigmoid"
        truth = metrics.with_above(items.stated, tree)[:, self._places]
        self._truth = torch.from_numpy(truth.astype(np.float64))
        # Pairs of an item and a lowest label of it; those of one item weigh 1 together.
        self._rows, own = np.nonzero(lowest[:, self._places])
        self._own = torch.from_numpy(own)
        self._weights = torch.from_numpy(1 / lowest.sum(axis=1)[self._rows])
        under = _under(self._places, tree.above)
        self._masks = torch.from_numpy(under[:, self._places][own])
        self._fix(items, under, own)

    def _fix(self, items: Labelled, under: Mask, own: Places) -> None:
        labels, count = self._labels, len(items.vectors)
        starts = np.empty((count, len(self._places)))
        others, below = np.empty(count), np.empty(len(self._rows))
        step = max(1, LOGITS_AT_ONCE // len(labels.vectors))
        for start in range(0, count, step):
            here = slice(start, start + step)
            logits = _logits(items.vectors[here], labels)
            starts[here] = logits[:, self._places]
            logits[:, self._places] = -np.inf
            others[here] = _log_sum(logits)
            pairs = np.flatnonzero((self._rows >= start) & (self._rows < start + step))
            of_labels = logits[self._rows[pairs] - start, : len(labels.names)]
            below[pairs] = _log_sum(np.where(under[own[pairs]], of_labels, -np.inf))
        self._starts = torch.from_numpy(starts)
        self._others = torch.from_numpy(others)
        self._below = torch.from_numpy(below)

    def fit(self, rows: Places, strength: Strength, start: Fit | None = None) -> Fit:
        """What is best on these items, found from `start` if told."""
        at = torch.from_numpy(rows)
        pairs = torch.from_numpy(np.isin(self._rows, rows))
        anchor = strength.means * self._means(at, pairs)
        fit = start or Fit(anchor, torch.zeros(len(self._places)).double())
        fit = Fit(*(part.clone().requires_grad_() for part in fit))
        learnt = [fit.bias] if self._is_sigmoid else []
        learnt += [fit.change] if strength.freedom else []
        if not learnt:
            return Fit(*(part.detach() for part in fit))
        optimizer = torch.optim.LBFGS(
            learnt,
            max_iter=ITERATIONS,
            # Of a sum over the items: far below what any score would show.
            tolerance_grad=1e-3,
            tolerance_change=1e-6,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self._loss(fit, at, pairs) + (fit.bias**2).sum() / (2 * FREEDOM_OF_BIAS)
            if strength.freedom:
                loss = loss + ((fit.change - anchor) ** 2).sum() / (2 * strength.freedom)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with self._threads():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return Fit(*(part.detach() for part in fit))

    def _means(self, rows: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """The direction `[K, D]` of each label's items, and nothing where these rows have none."""
        of_label = torch.zeros(len(self._inputs), len(self._places)).double()
        of_label[torch.from_numpy(self._rows)[pairs], self._own[pairs]] = 1
        summed = of_label[rows].T @ self._inputs[rows]
        return torch.nn.functional.normalize(summed, dim=1)

    def loss(self, fit: Fit, rows: Places) -> float:
        """The negative log-likelihood of these items, summed."""
        pairs = torch.from_numpy(np.isin(self._rows, rows))
        with self._threads():
            return float(self._loss(fit, torch.from_numpy(rows), pairs))

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """One thread, where more would wait for each other: on a busy machine 15 times as long."""
        before = torch.get_num_threads()
        if self._inputs.numel() * len(self._places) < ALONE:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _loss(self, fit: Fit, rows: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        if self._is_sigmoid:
            logits = self._starts[rows] + self._inputs[rows] @ fit.change.T + fit.bias
            return torch.nn.functional.binary_cross_entropy_with_logits(
                logits, self._truth[rows], reduction="sum"
            )
        at = torch.from_numpy(self._rows)[pairs]
        logits = self._starts[at] + self._inputs[at] @ fit.change.T
        whole = torch.cat([self._others[at, None], logits], dim=1).logsumexp(dim=1)
        mine = logits.masked_fill(~self._masks[pairs], -math.inf)
        mine = torch.cat([self._below[pairs, None], mine], dim=1).logsumexp(dim=1)
        return ((whole - mine) * self._weights[pairs]).sum()

    def adapter(self, fit: Fit, model_id: str, told: dict[str, object]) -> Adapter:
        """The labels' vectors and biases with what was learnt."""
        labels = self._labels
        change = fit.change.numpy() / self._size
        start = labels.vectors[self._places] * labels.lengths[self._places, None]
        return Adapter(
            model_id=model_id,
            keys=tuple(labels.ids[place] for place in self._places.tolist()),
            vectors=(start + change / labels.logit_scale).astype(np.float32),
            biases=(fit.bias.numpy() - change @ self._centre).astype(np.float32),
            told=told,
        )


def _under(places: Places, above: Places) -> Mask:
    """Which labels `[K, L]` are at, or below, those at `places`; `above[L, A]` is a tree's."""
    count = len(above)
    under = np.zeros((len(places), count), bool)
    under[np.arange(len(places)), places] = True
    # The last one is for -1, which stands for none.
    number = np.full(count + 1, -1)
    number[places] = np.arange(len(places))
    for column in above.T:
        of = number[column]
        under[of[of >= 0], np.flatnonzero(of >= 0)] = True
    return under


def _logits(vectors: npt.NDArray[np.float32], labels: LabelVectors) -> Floats:
    """Of all labels, then of the background. What speaks against a label is left out here."""
    count, opposed = len(labels.names), len(labels.opposed)
    similarity = similarities(vectors, labels).astype(np.float64)
    own = similarity[:, :count] * labels.logit_scale * labels.lengths + labels.biases
    behind = similarity[:, count + opposed :] * labels.logit_scale
    return np.concatenate([own, behind], axis=1) + labels.logit_bias


def _log_sum(logits: Floats) -> Floats:
    """The logarithm of the sum of exponentials of each row; minus infinity of nothing."""
    most = logits.max(axis=1, keepdims=True)
    most[most == -np.inf] = 0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(logits - most).sum(axis=1)) + most[:, 0])
