"""Vectors against label vectors: pure numpy, and the stage that does it to every batch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.records import Effort, EmbeddedBatch, LabelVectors, RunSpec, TaggedBatch
from transforms.schemas import ITEM, TIMESTAMP, embeddings_schema, predictions_schema

Vectors = npt.NDArray[np.float32]


def similarities(embeddings: Vectors, labels: LabelVectors) -> Vectors:
    """Cosine similarities `[N, L]` of L2-normalised `embeddings[N, D]` with every label."""
    return embeddings @ labels.vectors.T


def scores(similarity: Vectors, labels: LabelVectors) -> Vectors:
    """Scores `[N, L]` of similarities: what `threshold` is compared with.

    `softmax`: softmax over the set of logit_scale * similarity (Radford et al. 2021, CLIP);
    `sigmoid`: sigmoid of logit_scale * similarity + logit_bias (Zhai et al. 2023, SigLIP);
    `cosine`: the similarity itself.
    """
    if labels.activation == "cosine":
        return similarity
    logits = labels.logit_scale * similarity + labels.logit_bias
    if labels.activation == "sigmoid":
        # exp of a non-positive number in both branches: no overflow however large the logit.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), dtype=np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def best(score: Vectors, top_k: int) -> npt.NDArray[np.int64]:
    """Column indices `[N, min(top_k, L)]` of the best scores, best first, ties by label order."""
    count = min(top_k, score.shape[1])
    return np.argsort(-score, axis=1, kind="stable")[:, :count]


def tag(
    embeddings: pa.RecordBatch, labels: LabelVectors, run_id: str, now: datetime.datetime
) -> pa.RecordBatch:
    """The rows of `predictions` for rows of `embeddings`: best label first, item by item.

    An item with no label at or above the threshold has one row with a null label and rank 0.
    Columns carried over from a manifest stand in the rows of `embeddings` and are repeated.
    """
    vectors = embedding_matrix(embeddings)
    similarity = similarities(vectors, labels)
    score = scores(similarity, labels)
    columns = best(score, labels.top_k)
    kept_score = np.take_along_axis(score, columns, axis=1)
    kept_similarity = np.take_along_axis(similarity, columns, axis=1)
    ranks = np.broadcast_to(np.arange(1, columns.shape[1] + 1), columns.shape).copy()

    selected = np.ones(columns.shape, dtype=bool)
    if labels.threshold is not None:
        selected = kept_score >= labels.threshold
        # "Nothing found" takes the place of the best label.
        nothing = ~selected.any(axis=1)
        selected[nothing, 0] = True
        ranks[nothing, 0] = 0
    items = np.nonzero(selected)[0]
    absent = ranks[selected] == 0

    names = pa.array(labels.names, pa.string())
    chosen = pa.array(columns[selected], pa.int64(), mask=absent)
    size = len(items)
    own = embeddings_schema(1).names
    carry = [name for name in embeddings.schema.names if name not in own]
    item = embeddings.select([*ITEM, "embedded_at", *carry]).take(pa.array(items))
    return pa.RecordBatch.from_arrays(
        [
            *item.columns[:3],
            names.take(chosen),
            pa.array(ranks[selected], pa.int32()),
            pa.array(kept_score[selected], pa.float32(), mask=absent),
            pa.array(kept_similarity[selected], pa.float32(), mask=absent),
            pa.array([run_id] * size, pa.string()),
            pa.array([now] * size, TIMESTAMP),
            *item.columns[3:],
        ],
        schema=predictions_schema(carry),
    )


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
