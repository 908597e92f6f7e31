"""Vectors against label vectors: pure numpy, and the stage that does it to every batch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.hierarchy import Tree, tree_of
from transforms.records import Effort, EmbeddedBatch, LabelVectors, RunSpec, TaggedBatch
from transforms.schemas import ITEM, TIMESTAMP, embeddings_schema, predictions_schema

Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

PRODUCTS_AT_ONCE = 4 * 1024 * 1024
"""How many similarities one product gives, 16 MB: of smaller ones its threads wait for each other
longer than they work, most of all where the machine has more to do."""

SCORES_AT_ONCE = 256 * 1024
"""How many of them become scores at a time: what fits a core's cache."""

_PASSES = 16
"""Up to how many best labels one pass over the scores for each is faster than sorting them."""


def similarities(embeddings: Vectors, labels: LabelVectors) -> Vectors:
    """Cosine similarities `[N, V]` of L2-normalised `embeddings[N, D]` with every vector."""
    return embeddings @ labels.vectors.T


def scores(similarity: Vectors, labels: LabelVectors, tree: Tree | None = None) -> Vectors:
    """Scores `[N, L]` of similarities `[N, V]`: what thresholds are compared with.

    `softmax`: softmax over the labels and the background of the logits (Radford et al. 2021, CLIP),
    a label above others having all of theirs beside its own; `sigmoid`: of the logit (Zhai et al.
    2023, SigLIP), and `cosine`: the similarity itself, a label above others having at least theirs.
    Of a label that something speaks against, the score is multiplied by its share of a softmax of
    the two; its cosine is less by how much the other is greater.
    """
    tree = tree or tree_of(labels.parents)
    count = len(labels.names)
    own = similarity[:, :count]
    opposed = list(labels.opposed)
    # Negative where what speaks against a label is more alike than the label.
    lead = own[:, opposed] - similarity[:, count : count + len(opposed)]
    if labels.activation == "cosine":
        score = own.copy()
        score[:, opposed] += np.minimum(lead, 0)
        return tree.at_least_below(score)
    logits = own * (np.float32(labels.logit_scale) * labels.lengths)
    logits += np.float32(labels.logit_bias) + labels.biases
    if labels.activation == "sigmoid":
        score = _sigmoid(logits)
    else:
        behind = similarity[:, count + len(opposed) :]
        background = np.float32(labels.logit_scale) * behind + np.float32(labels.logit_bias)
        most = logits.max(axis=1, keepdims=True)
        if background.shape[1]:
            most = np.maximum(most, background.max(axis=1, keepdims=True))
        score = np.exp(np.subtract(logits, most, out=logits), out=logits)
        total = score.sum(axis=1, keepdims=True)
        total += np.exp(background - most).sum(axis=1, keepdims=True)
        score /= total
    score[:, opposed] *= _sigmoid(np.float32(labels.logit_scale) * lead)
    return tree.sum_below(score) if labels.activation == "softmax" else tree.at_least_below(score)


def _sigmoid(logits: Vectors) -> Vectors:
    # exp of a non-positive number in both branches: no overflow however large the logit.
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)


def best(score: Vectors, top_k: int) -> Places:
    """Column indices `[N, min(top_k, L)]` of the best scores, best first, ties by label order.

    -1 in place of those whose score is minus infinity.
    """
    count = min(top_k, score.shape[1])
    rows = np.arange(len(score))[:, None]
    if count > _PASSES:
        found = np.argsort(-score, axis=1, kind="stable")[:, :count]
        return np.where(score[rows, found] > -np.inf, found, -1)
    left = score.copy()
    found = np.empty((len(score), count), np.int64)
    for rank in range(count):
        places = left.argmax(axis=1)[:, None]
        found[:, rank] = np.where(left[rows, places] > -np.inf, places, -1)[:, 0]
        left[rows, places] = -np.inf
    return found


def select(score: Vectors, labels: LabelVectors, tree: Tree | None = None) -> Places:
    """Tags `[N, K]` of scores: places of labels, best first, -1 where there is none.

    The ends of an item are the labels that reach their threshold and have none below them that
    does; where no label has a threshold, those with nothing below them. The `top_k` best ends are
    tags and, with `levels` of "every", behind each of them what is above it.
    """
    return _select(score, labels, tree or tree_of(labels.parents), _least_scores(labels))


def _least_scores(labels: LabelVectors) -> Vectors | None:
    """Each label's threshold, minus infinity for one without; None where none has one."""
    if all(threshold is None for threshold in labels.thresholds):
        return None
    return np.array(
        [-np.inf if threshold is None else threshold for threshold in labels.thresholds],
        np.float32,
    )


def _select(score: Vectors, labels: LabelVectors, tree: Tree, least: Vectors | None) -> Places:
    wanted = score
    if least is not None:
        passed = score >= least
        ends = passed & ~tree.any_below(passed) if tree.levels else passed
        if labels.levels == "leaves":
            ends = ends & tree.is_leaf
        wanted = np.where(ends, score, -np.inf)
    elif tree.levels:
        wanted = np.where(tree.is_leaf, score, -np.inf)
    chosen = best(wanted, labels.top_k)
    return tree.with_above(chosen) if tree.levels and labels.levels == "every" else chosen


def tag(
    embeddings: pa.RecordBatch, labels: LabelVectors, run_id: str, now: datetime.datetime
) -> pa.RecordBatch:
    """The rows of `predictions` for rows of `embeddings`: best label first, item by item.

    An item with no label at or above its threshold has one row with a null label and rank 0.
    Columns carried over from a manifest stand in the rows of `embeddings` and are repeated.
    """
    vectors = embedding_matrix(embeddings)
    parts = list(_tags(vectors, labels))
    if not parts:
        none = np.empty(0, np.int64)
        parts = [(none, none, none, np.empty(0, np.float32), np.empty(0, np.float32))]
    items, places, ranks, score, similarity = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    absent = places < 0
    chosen = pa.array(places, mask=absent)
    own = embeddings_schema(1).names
    carry = [name for name in embeddings.schema.names if name not in own]
    item = embeddings.select([*ITEM, "embedded_at", *carry]).take(pa.array(items))
    size = len(items)
    return pa.RecordBatch.from_arrays(
        [
            *item.columns[:3],
            *(
                pa.array(texts, pa.string()).take(chosen)
                for texts in (labels.names, labels.ids, labels.paths)
            ),
            pa.array(ranks, pa.int32()),
            pa.array(score, pa.float32(), mask=absent),
            pa.array(similarity, pa.float32(), mask=absent),
            pa.repeat(run_id, size).cast(pa.string()),
            pa.repeat(pa.scalar(now, TIMESTAMP), size),
            *item.columns[3:],
        ],
        schema=predictions_schema(carry),
    )


def _tags(
    vectors: Vectors, labels: LabelVectors
) -> Iterator[tuple[Places, Places, Places, Vectors, Vectors]]:
    """Item, label, rank, score and similarity of every tag, some items at a time."""
    tree = tree_of(labels.parents)
    least = _least_scores(labels)
    for start, similarity in _similarities(vectors, labels):
        score = scores(similarity, labels, tree)
        places = _select(score, labels, tree, least)
        taken = places >= 0
        # "Nothing found" takes the place of the best label.
        nothing = ~taken.any(axis=1)
        ranks = np.cumsum(taken, axis=1, dtype=np.int64)
        taken[nothing, 0] = True
        items, columns = np.nonzero(taken)
        chosen = places[items, columns]
        yield (
            items.astype(np.int64) + start,
            chosen,
            ranks[items, columns],
            score[items, chosen],
            similarity[items, chosen],
        )


def _similarities(vectors: Vectors, labels: LabelVectors) -> Iterator[tuple[int, Vectors]]:
    """Those of some items at a time, and which is the first of them."""
    width = len(labels.vectors)
    together, rows = max(1, PRODUCTS_AT_ONCE // width), max(1, SCORES_AT_ONCE // width)
    for start in range(0, len(vectors), together):
        product = similarities(vectors[start : start + together], labels)
        for first in range(0, len(product), rows):
            yield start + first, product[first : first + rows]


def embedding_matrix(embeddings: pa.RecordBatch) -> Vectors:
    """The `embedding` column as `float32[N, D]`, without a copy."""
    column = embeddings.column("embedding")
    flat: Vectors = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(-1, column.type.list_size)


@dataclass
class ScoreLabels(beam.PTransform[beam.PCollection[EmbeddedBatch], beam.PCollection[TaggedBatch]]):
    """Embedded batches to tagged ones: every batch against every label set.

    `label_vectors` is a collection of one mapping, label-set id to `LabelVectors`.
    """

    label_vectors: beam.PCollection[Mapping[str, LabelVectors]]
    run: RunSpec

    def expand(self, pcoll: beam.PCollection[EmbeddedBatch]) -> beam.PCollection[TaggedBatch]:
        """Wire the side input."""
        tagged: beam.PCollection[TaggedBatch] = pcoll | "TagBatches" >> beam.Map(
            tag_batch, beam.pvalue.AsSingleton(self.label_vectors), self.run.run_id
        )
        return tagged


def tag_batch(
    batch: EmbeddedBatch, label_vectors: Mapping[str, LabelVectors], run_id: str
) -> TaggedBatch:
    """One batch against every label set that it is to be scored against."""
    started = time.perf_counter()
    now = datetime.datetime.now(datetime.UTC)
    predictions = {
        label_set_id: tag(batch.embeddings, labels, run_id, now)
        for label_set_id, labels in label_vectors.items()
        if batch.label_sets is None or label_set_id in batch.label_sets
    }
    effort = Effort({"score": time.perf_counter() - started})
    return TaggedBatch(batch, predictions, effort)
