"""Label vectors learnt from a few labelled items: a linear probe that starts from the words.

Logistic regression on stored embeddings, as the linear probe of Radford et al. 2021 (CLIP). It is
pulled, by a ridge, to the labels' words with the mean of their items added: words and class means
are blended as in LP++ (Huang et al. 2024), and what is learnt is kept near to zero-shot weights as
in WiSE-FT (Wortsman et al. 2022). How much there is of each is for cross-validation to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from transforms import metrics
from transforms.adapters import Adapter
from transforms.hierarchy import tree_of
from transforms.probing import Fit, Probe, Strength
from transforms.records import LabelVectors
from transforms.scoring import scores, similarities
from transforms.splitting import Labelled, folds, split

MEANS = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FREEDOMS = (1.0, 10.0, 100.0, 1000.0)
"""What is tried: see `Strength`."""

GOOD_WORDS, BAD_WORDS = Strength(3.0, 0.0), Strength(100.0, 0.0)
"""Where each label has one item only: by whether the words alone are right for most of them."""

FOLDS = 5
MANY = 5000
"""From so many items on one fold of them tells enough, and the others would take long."""

Metric = Literal["top-1", "mAP"]


class NothingToCheckError(Exception):
    """No two items have the same labels: none can be held out."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What was learnt, and what it is worth.

    `before` (by the words) and `after` are of `checked` held-out items, by an adapter that had not
    seen them; `adapter` is learnt from all items, in the same way. `metric` is `top-1`, or `mAP`
    where an item has several labels.
    """

    adapter: Adapter
    metric: Metric
    before: float
    after: float
    fitted: int
    checked: int
    strength: Strength

    @property
    def is_better(self) -> bool:
        """Whether it is worth anything."""
        return self.after > self.before


def adapt(
    labels: LabelVectors, items: Labelled, model_id: str, share: float = 0.3, seed: int = 0
) -> Adaptation:
    """Learn from labelled items, and check on the share of them that is held out meanwhile.

    `labels` are as their words (and example pictures) have them. Raises `NothingToCheckError`.
    """
    fitted, checked = split(items.stated, share, seed)
    if not len(checked):
        raise NothingToCheckError
    is_multi = bool((items.stated.sum(axis=1) > 1).any())
    metric: Metric = "mAP" if is_multi else "top-1"
    strength = choose_strength(labels, items.part(fitted), metric, seed)
    trial = adapted(labels, learn(labels, items.part(fitted), model_id, strength))
    before, after = (measure(of, items.part(checked), metric) for of in (labels, trial))
    told: dict[str, object] = {
        "label_set": labels.label_set_id,
        "items": len(items.stated),
        "metric": metric,
        "held_out": len(checked),
        "before": before,
        "after": after,
        **strength._asdict(),
    }
    adapter = learn(labels, items, model_id, strength, told)
    return Adaptation(adapter, metric, before, after, len(fitted), len(checked), strength)


def measure(labels: LabelVectors, items: Labelled, metric: Metric) -> float:
    """`top-1` or `mAP` of items, scored as everywhere."""
    tree = tree_of(labels.parents)
    score = scores(similarities(items.vectors, labels), labels, tree)
    if metric == "mAP":
        truth = metrics.with_above(items.stated, tree)
        return metrics.mean_of(metrics.average_precisions(score, truth))
    right = metrics.right_answers(items.stated, tree)
    return metrics.top_k_accuracy(metrics.best_labels(score, tree), right, 1)


def adapted(labels: LabelVectors, adapter: Adapter) -> LabelVectors:
    """The labels with an adapter over them, as `label_vectors` lays it."""
    places = {key: place for place, key in enumerate(labels.ids)}
    vectors, lengths, biases = labels.vectors.copy(), labels.lengths.copy(), labels.biases.copy()
    for key, vector, bias in zip(adapter.keys, adapter.vectors, adapter.biases, strict=True):
        if (place := places.get(key)) is not None:
            lengths[place] = np.linalg.norm(vector)
            vectors[place] = vector / lengths[place]
            biases[place] += bias
    return replace(labels, vectors=vectors, lengths=lengths, biases=biases)


def choose_strength(
    labels: LabelVectors, items: Labelled, metric: Metric, seed: int = 0
) -> Strength:
    """What is best in cross-validation: by the metric, then by the likelihood.

    First how much of the items' means; then, with that and with none, how free the regression is.
    """
    parts = folds(items.stated, FOLDS, seed)
    if not parts:
        return GOOD_WORDS if measure(labels, items, metric) >= 0.5 else BAD_WORDS
    if len(items.stated) > MANY:
        parts = parts[:1]
    probe = Probe(labels, items)
    found: dict[Strength, tuple[float, float]] = {}

    def attempt(strength: Strength, fits: Sequence[Fit | None]) -> list[Fit]:
        new = [
            probe.fit(fitted, strength, fit) for (fitted, _), fit in zip(parts, fits, strict=True)
        ]
        right = loss = 0.0
        for (_, checked), fit in zip(parts, new, strict=True):
            learnt = adapted(labels, probe.adapter(fit, "", {}))
            right += len(checked) * measure(learnt, items.part(checked), metric)
            loss += probe.loss(fit, checked)
        found[strength] = (right, -loss)
        return new

    for means in MEANS:
        attempt(Strength(means, 0.0), [None] * len(parts))
    best = max(found, key=found.__getitem__)
    for means in sorted({0.0, best.means}):
        fits: Sequence[Fit | None] = [None] * len(parts)
        for freedom in FREEDOMS:
            # From where the last one came to: it is near.
            fits = attempt(Strength(means, freedom), fits)
    return max(found, key=found.__getitem__)


def learn(
    labels: LabelVectors,
    items: Labelled,
    model_id: str,
    strength: Strength,
    told: dict[str, object] | None = None,
) -> Adapter:
    """An adapter for the labels that are the lowest stated ones of some item.

    The others keep what they have. For `cosine`, whose scores know no length and no bias, what is
    learnt is a direction.
    """
    probe = Probe(labels, items)
    fit = probe.fit(np.arange(len(items.stated)), strength)
    return probe.adapter(fit, model_id, told or {})
