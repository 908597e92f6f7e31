"""Where a label set's labels lie in a model's space, and what that means for their tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from transforms.hierarchy import Tree, tree_of
from transforms.labellines import LabelLines, seen_from
from transforms.labels import Label, LabelSet
from transforms.labelvectors import PROMPTS_AT_ONCE, TextEncoder
from transforms.latest import Items
from transforms.linting import Finding, Kind
from transforms.records import LabelVectors
from transforms.scoring import SCORES_AT_ONCE, scores, select, similarities

MOST_TOLD = 1000
"""How many pairs of near-synonyms are told, the nearest."""

NEAREST = 3
"""How many of a label's near-synonyms are told by name."""

SIMILARITIES_AT_ONCE = 4 * 1024 * 1024
"""How many are in memory at a time, whatever the number of labels."""

UNRELATED = (
    "a dog", "a railway bridge", "a bowl of soup", "a birth certificate", "a violin",
    "a thunderstorm", "a football match", "a bathroom", "a king", "a tractor",
)  # fmt: skip
"""Sentences that have nothing to do with each other: how alike any two are to a model."""

Pairs = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


def near_synonyms(labels: LabelVectors, bound: float) -> tuple[Pairs, Vectors, int]:
    """Pairs of labels `[P, 2]` with at least this similarity, and their similarities `[P]`.

    The nearest `MOST_TOLD`, nearest first, and how many there are. A label and what is above it
    may be as alike as they want.
    """
    count = len(labels.names)
    vectors = labels.vectors[:count]
    above = tree_of(labels.parents).above
    pairs, found = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    total = 0
    rows = max(1, SIMILARITIES_AT_ONCE // count)
    for start in range(0, count, rows):
        similarity = vectors[start : start + rows] @ vectors[start:].T
        near = np.argwhere(np.triu(similarity >= bound, 1))
        values = similarity[near[:, 0], near[:, 1]]
        near += start
        related = (above[near[:, 0]] == near[:, 1:]).any(axis=1)
        related |= (above[near[:, 1]] == near[:, :1]).any(axis=1)
        near, values = near[~related], values[~related]
        total += len(near)
        pairs, found = np.concatenate([pairs, near]), np.concatenate([found, values])
        order = np.argsort(-found, kind="stable")[:MOST_TOLD]
        pairs, found = pairs[order], found[order]
    return pairs, found, total


def greatest_scores(labels: LabelVectors) -> Vectors:
    """Of each label a score `[L]` that no vector can have more of.

    For `softmax`, by Cauchy and Schwarz: the logits of two labels differ by no more than
    logit_scale times the distance of their vectors, plus the difference of their biases.
    """
    count = len(labels.names)
    if labels.activation == "cosine":
        return np.ones(count, np.float32)
    scale = np.float32(labels.logit_scale)
    if labels.activation == "sigmoid":
        most = _sigmoid(scale * labels.lengths + np.float32(labels.logit_bias) + labels.biases)
    else:
        most = _greatest_shares(labels)
    opposed = list(labels.opposed)
    apart = labels.vectors[opposed] - labels.vectors[count : count + len(opposed)]
    most[opposed] *= _sigmoid(scale * np.linalg.norm(apart, axis=1))
    tree = tree_of(labels.parents)
    together = tree.sum_below if labels.activation == "softmax" else tree.at_least_below
    return np.asarray(np.minimum(together(most[None])[0], 1), np.float32)


def _greatest_shares(labels: LabelVectors) -> Vectors:
    count = len(labels.names)
    behind = labels.vectors[count + len(labels.opposed) :]
    vectors = np.concatenate([labels.vectors[:count] * labels.lengths[:, None], behind])
    biases = np.concatenate([labels.biases, np.zeros(len(behind), np.float32)])
    squares = (vectors * vectors).sum(axis=1)
    scale = np.float32(labels.logit_scale)
    most = np.empty(count, np.float32)
    rows = max(1, SIMILARITIES_AT_ONCE // len(vectors))
    for start in range(0, count, rows):
        here = slice(start, min(start + rows, count))
        square = squares[here, None] + squares - 2 * (vectors[here] @ vectors.T)
        lead = scale * np.sqrt(np.maximum(square, 0)) + biases[here, None] - biases
        number = np.arange(here.stop - start)
        lead[number, number + start] = np.inf  # the label itself
        # Where one leads by less than nothing, exp is large, and infinite at worst.
        with np.errstate(over="ignore"):
            most[here] = 1 / (1 + np.exp(-lead).sum(axis=1))
    return most


def _sigmoid(logits: Vectors) -> Vectors:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def check_vectors(
    label_set: LabelSet, labels: LabelVectors, lines: LabelLines, bound: float
) -> Iterator[Finding]:
    """Find labels that lie so close to something else that chance decides, or can never be tags."""
    keys = [label.key for label in label_set.labels]
    yield from _near_labels(labels, keys, lines, bound)
    yield from _near_others(label_set, labels, lines, bound)
    if any(threshold is not None for threshold in labels.thresholds):
        most = greatest_scores(labels).tolist()
        for key, name, threshold, score in zip(
            keys, labels.names, labels.thresholds, most, strict=True
        ):
            if threshold is not None and score < threshold - 1e-5:
                yield Finding(
                    lines.key(key, "threshold"),
                    Kind.IMPOSSIBLE,
                    f"{name!r} can never be a tag: its threshold is {threshold}, and with its "
                    f"weight, and labels as near as these, no score is above {score:.3g}",
                )


def _near_labels(
    labels: LabelVectors, keys: Sequence[str], lines: LabelLines, bound: float
) -> Iterator[Finding]:
    """Find near-synonyms, a label's nearest ones told at the label that stands behind them."""
    pairs, values, total = near_synonyms(labels, bound)
    nearest: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (first, second), value in zip(pairs.tolist(), values.tolist(), strict=True):
        nearest[second].append((first, value))
    for place, others in nearest.items():
        where = lines.label(keys[place])
        told = ", ".join(
            f"{labels.names[other]!r} ({seen_from(lines.label(keys[other]), where)}, {value:.3f})"
            for other, value in others[:NEAREST]
        )
        more = f" and {len(others) - NEAREST} more" if len(others) > NEAREST else ""
        yield Finding(
            where,
            Kind.NEAR_SYNONYM,
            f"to this model {labels.names[place]!r} is nearly the same as {told}{more}",
        )
    if total > len(pairs):
        message = f"{total - len(pairs):,} more pairs of labels are nearly the same"
        yield Finding(lines.source, Kind.NEAR_SYNONYM, message)


def _near_others(
    label_set: LabelSet, labels: LabelVectors, lines: LabelLines, bound: float
) -> Iterator[Finding]:
    """Find `background` and `not` that are nearly a label themselves."""
    count = len(labels.names)
    others = labels.vectors[count:]
    behind = others[len(labels.opposed) :]
    for place, other in zip(labels.opposed, others, strict=False):
        label = label_set.labels[place]
        if (value := float(labels.vectors[place] @ other)) >= bound:
            yield Finding(
                lines.key(label.key, "not"),
                Kind.NEAR_NOT,
                f"to this model what speaks against {label.name!r} is nearly the same as the label "
                f"itself: similarity {value:.3f}",
            )
    for prompt, vector in zip(label_set.background, behind, strict=True):
        similarity = labels.vectors[:count] @ vector
        nearest = int(similarity.argmax())
        if similarity[nearest] >= bound:
            where = lines.word("", prompt)
            seen = seen_from(lines.label(label_set.labels[nearest].key), where)
            yield Finding(
                where,
                Kind.NEAR_BACKGROUND,
                f"to this model background {prompt!r} is nearly the same as "
                f"{labels.names[nearest]!r} ({seen}), whose items it takes: similarity "
                f"{similarity[nearest]:.3f}",
            )


def check_agreement(
    label_set: LabelSet, model: TextEncoder, lines: LabelLines
) -> Iterator[Finding]:
    """Find labels whose own prompts have less to do with each other than unrelated things have.

    The measure is the mean similarity of any two of a label's sentences, and the bound that of
    `UNRELATED`. Labels of templates alone are left out.
    """
    bound = _agreements(model.encode_texts(UNRELATED)).mean()
    for group in _groups(label_set):
        vectors = model.encode_texts([text for _, sentences in group for text in sentences])
        start = 0
        for label, sentences in group:
            agreements = _agreements(vectors[start : start + len(sentences)])
            start += len(sentences)
            if (value := agreements.mean()) < bound:
                odd = sentences[int(agreements.argmin())]
                yield Finding(
                    lines.word(label.key, odd),
                    Kind.DISAGREEING_PROMPTS,
                    f"to this model the sentences of {label.name!r} have less in common "
                    f"(similarity {value:.3f}) than unrelated things ({bound:.3f}), {odd!r} least",
                )


def _groups(label_set: LabelSet) -> Iterator[list[tuple[Label, tuple[str, ...]]]]:
    """Labels that say more than templates do, and their sentences, some at a time."""
    group: list[tuple[Label, tuple[str, ...]]] = []
    size = 0
    for label in label_set.labels:
        sentences = label_set.prompts_of(label)
        if len(sentences) < 2 or not (label.prompts or label.translations):
            continue
        group.append((label, sentences))
        size += len(sentences)
        if size >= PROMPTS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _agreements(vectors: Vectors) -> Vectors:
    """Of each of N unit vectors the mean similarity `[N]` with the others."""
    return np.asarray((vectors @ vectors.sum(axis=0) - 1) / (len(vectors) - 1))


def check_wins(
    label_set: LabelSet, labels: LabelVectors, items: Iterable[Items], lines: LabelLines
) -> Iterator[Finding]:
    """Find labels that are the best tag of no item, nor is any that is below them."""
    tree = tree_of(labels.parents)
    count = len(labels.names)
    wins, tagged = np.zeros(count, np.int64), np.zeros(count, np.int64)
    most = np.full(count, -np.inf, np.float32)
    total = 0
    rows = max(1, SCORES_AT_ONCE // len(labels.vectors))
    for some in items:
        for start in range(0, len(some.uris), rows):
            score = scores(similarities(some.vectors[start : start + rows], labels), labels, tree)
            places = select(score, labels, tree)
            wins += _with_below(places[:, :1], tree, count)
            tagged += np.bincount(places[places >= 0], minlength=count)
            most = np.maximum(most, score.max(axis=0))
            total += len(score)
    never: list[int] = np.flatnonzero(wins == 0).tolist() if total else []
    for place in never:
        label, threshold = label_set.labels[place], labels.thresholds[place]
        least = "" if threshold is None else f", its threshold {threshold}"
        yield Finding(
            lines.label(label.key),
            Kind.NEVER_WINS,
            f"{label.name!r} is the best tag of none of {total:,} items, and a tag of "
            f"{tagged[place]:,}; its highest score is {most[place]:.3g}{least}",
        )


def _with_below(places: Pairs, tree: Tree, count: int) -> Pairs:
    """How often each label is among these, or has one of them below it."""
    ways = tree.with_above(places) if tree.levels else places
    return np.bincount(ways[ways >= 0], minlength=count)
