"""A label set in a model's space: what its words, and its example pictures, come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transforms.adapters import Adapter
from transforms.labels import LabelSet, Resource
from transforms.records import LabelVectors

PROMPTS_AT_ONCE = 2048
"""About how many prompts' vectors are in memory at a time, whatever the number of labels."""

Vectors = npt.NDArray[np.float32]


class TextEncoder(Protocol):
    """What label vectors need of a model."""

    logit_scale: float
    logit_bias: float

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """`float32[N, D]` L2-normalised vectors of sentences."""


def label_vectors(
    label_set: LabelSet,
    model: TextEncoder,
    examples: Mapping[Resource, Vectors] | None = None,
    adapter: Adapter | None = None,
) -> LabelVectors:
    """A label set in the model's space.

    The words of a label are the normalised mean of its prompts' normalised embeddings, as in
    open_clip's `build_zero_shot_classifier`; its examples the normalised mean of theirs, of which
    `examples` has the vectors `float32[D]`; its vector is the normalised sum of both, weighted. An
    `adapter` takes the place of both for the labels that it knows. Raises ValueError for a label
    without a direction.
    """
    labels = label_set.labels
    words = means(model, [label_set.prompts_of(label) for label in labels])
    rows = []
    for label, of_words in zip(labels, words, strict=True):
        weight = label_set.example_weight_of(label) if label.examples else 0.0
        parts = []
        what = f"label {label.name!r}"
        if of_words is not None:
            parts.append((1 - weight) * _direction(of_words, what))
        if weight:
            shown = np.mean([(examples or {})[example] for example in label.examples], axis=0)
            parts.append(weight * _direction(shown, what))
        rows.append(_direction(np.sum(parts, axis=0, dtype=np.float32), what))
    opposed = tuple(place for place, label in enumerate(labels) if label.against)
    speaking = [labels[place].against for place in opposed]
    others = means(model, [*speaking, *((prompt,) for prompt in label_set.background)])
    of_others = [f"not of label {labels[place].name!r}" for place in opposed]
    of_others += [f"background {prompt!r}" for prompt in label_set.background]
    lengths = np.ones(len(labels), np.float32)
    biases = np.log(np.array([label.weight for label in labels], np.float32))
    if adapter is not None:
        learned = {key: place for place, key in enumerate(adapter.keys)}
        for place, label in enumerate(labels):
            if (known := learned.get(label.key)) is not None:
                lengths[place] = np.linalg.norm(adapter.vectors[known])
                rows[place] = _direction(adapter.vectors[known], f"label {label.name!r}")
                biases[place] += adapter.biases[known]
    return LabelVectors(
        label_set_id=label_set.label_set_id,
        names=tuple(label.name for label in labels),
        ids=tuple(label.key for label in labels),
        paths=label_set.paths,
        parents=label_set.parents,
        vectors=np.stack([*rows, *map(_direction, others, of_others)]),
        opposed=opposed,
        lengths=lengths,
        biases=biases,
        thresholds=tuple(label_set.threshold_of(label) for label in labels),
        logit_scale=1 / label_set.temperature if label_set.temperature else model.logit_scale,
        logit_bias=model.logit_bias,
        top_k=label_set.top_k,
        activation=label_set.activation,
        levels=label_set.levels,
    )


def means(model: TextEncoder, prompts: Sequence[Sequence[str]]) -> list[Vectors | None]:
    """The mean of each group's embeddings, None for a group of none."""
    found: list[Vectors | None] = []
    for part in _parts(prompts):
        texts = [prompt for group in part for prompt in group]
        encoded = model.encode_texts(texts) if texts else np.empty((0, 0), np.float32)
        ends = np.cumsum([len(group) for group in part]).tolist()
        found += [
            encoded[start:end].mean(axis=0) if start < end else None
            for start, end in zip([0, *ends], ends, strict=False)
        ]
    return found


def _parts(groups: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Groups in order, so many at a time that their prompts are about `PROMPTS_AT_ONCE`."""
    part: list[Sequence[str]] = []
    size = 0
    for group in groups:
        part.append(group)
        size += len(group)
        if size >= PROMPTS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _direction(vector: Vectors | None, what: str) -> Vectors:
    length = np.float32(0) if vector is None else np.linalg.norm(vector)
    if vector is None or not length > 0:
        raise ValueError(f"{what} has no vector: the embeddings that stand for it cancel out")
    return np.asarray(vector / length, dtype=np.float32)
