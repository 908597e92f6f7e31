"""EmbedMedia: decoded batches through Beam's RunInference with our model handler; no maths.

The handler's part is what a model needs around it on a long run: one copy per process, batches cut
in halves when they do not fit or do not go through, and no vector that is not a vector.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from transforms.labels import LabelSet
from transforms.model import OpenClipModel, shared_model
from transforms.progress import progress
from transforms.records import (
    Batch,
    DecodedMedia,
    EmbeddedBatch,
    Failure,
    LabelVectors,
    ModelSpec,
    Reason,
    RunSpec,
    Stage,
)
from transforms.schemas import embeddings_schema

logger = logging.getLogger("beamtag")

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


class ImageEncoder(Protocol):
    """What the handler needs of a model."""

    def encode_images(self, pixels: Pixels) -> Vectors:
        """`float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels."""


class OpenClipHandler(ModelHandler[Batch, EmbeddedBatch, OpenClipModel]):
    """RunInference's way to our model: a `Batch` in, one `EmbeddedBatch` out."""

    def __init__(self, model: ModelSpec, dim: int, run_id: str) -> None:
        super().__init__()
        self._spec = model
        self._dim = dim
        self._run_id = run_id

    def load_model(self) -> OpenClipModel:
        """The process's one copy of the model."""
        return shared_model(self._spec)

    def run_inference(
        self,
        batch: Sequence[Batch],
        model: OpenClipModel,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[EmbeddedBatch]:
        """Embed one batch; with `with_no_batching` what RunInference hands over is the `Batch`."""
        del inference_args
        assert isinstance(batch, Batch)
        # A list: RunInference times what it can count.
        return [embed_batch(batch, model, self._dim, self._run_id)]

    def get_num_bytes(self, batch: Sequence[Batch]) -> int:
        """The pixels' bytes; Beam's own answer pickles the whole batch to learn it."""
        assert isinstance(batch, Batch)
        return batch.pixels.nbytes

    def get_metrics_namespace(self) -> str:
        """Where RunInference's own metrics appear."""
        return "beamtag"

    def get_resource_hints(self) -> dict[str, Any]:
        """None: any hint makes a second environment and would send pixels through a shuffle."""
        return {}


@dataclass
class EmbedMedia(beam.PTransform[beam.PCollection[Batch], beam.PCollection[EmbeddedBatch]]):
    """Decoded batches to rows of `embeddings`; `dim` is the length of the model's vectors."""

    model: ModelSpec
    dim: int
    run: RunSpec

    def expand(self, pcoll: beam.PCollection[Batch]) -> beam.PCollection[EmbeddedBatch]:
        """Wire RunInference."""
        handler = OpenClipHandler(self.model, self.dim, self.run.run_id).with_no_batching()
        embedded: beam.PCollection[EmbeddedBatch] = pcoll | "RunInference" >> RunInference(handler)
        return embedded


def embed_batch(batch: Batch, model: ImageEncoder, dim: int, run_id: str) -> EmbeddedBatch:
    """Embed a decoded batch; items that the model cannot take become failures.

    Raises the model's own exception when not one of several items goes through: then it is the
    model or its device that is broken, and the items are not to blame.
    """
    started = time.perf_counter()
    vectors, failed = _encode_or_bisect(batch.pixels, model, dim)
    if len(batch) > 1 and len(failed) == len(batch):
        raise failed[0]
    finite = np.isfinite(vectors).all(axis=1)
    failures = []
    for index, error in failed.items():
        reason = Reason.OUT_OF_MEMORY if _is_out_of_memory(error) else Reason.MODEL_ERROR
        failures.append(_failure(batch.media[index], reason, str(error)))
    for index in np.flatnonzero(~finite).tolist():
        if index not in failed:
            message = "the model gave a vector with NaN or infinity"
            failures.append(_failure(batch.media[index], Reason.NOT_FINITE, message))
    good = np.flatnonzero(finite)
    rows = _rows([batch.media[index] for index in good], vectors[good], run_id)
    progress.add(embedded=len(good), failed=len(failures))
    seconds = {**batch.seconds, "embed": time.perf_counter() - started}
    return EmbeddedBatch(batch.position, rows, (*batch.failures, *failures), seconds)


def _encode_or_bisect(
    pixels: Pixels, model: ImageEncoder, dim: int
) -> tuple[Vectors, dict[int, RuntimeError]]:
    """Vectors of all items, NaN for those in the second result, which tells why they failed.

    A part that fails, for want of memory or otherwise, is cut in halves down to single items.
    """
    vectors = np.full((len(pixels), dim), np.nan, dtype=np.float32)
    failed: dict[int, RuntimeError] = {}
    parts = [(0, len(pixels))] if len(pixels) else []
    while parts:
        start, end = parts.pop()
        try:
            vectors[start:end] = model.encode_images(pixels[start:end])
        except RuntimeError as error:  # torch's, out-of-memory included
            if end - start == 1:
                failed[start] = error
                continue
            logger.warning("%d items failed together, trying halves: %s", end - start, error)
            middle = (start + end) // 2
            parts += [(middle, end), (start, middle)]
    return vectors, failed


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _failure(media: DecodedMedia, reason: Reason, message: str) -> Failure:
    return Failure(media.ref, Stage.EMBED, reason, message)


def _rows(media: Sequence[DecodedMedia], vectors: Vectors, run_id: str) -> pa.RecordBatch:
    schema = embeddings_schema(vectors.shape[1])
    now = datetime.datetime.now(datetime.UTC)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
    return pa.RecordBatch.from_arrays(
        [
            pa.array([item.ref.uri for item in media], pa.string()),
            pa.array([item.ref.version for item in media], pa.string()),
            pa.array(["image"] * len(media), pa.string()),
            pa.array([item.content_sha256 for item in media], pa.string()),
            pa.array([item.width for item in media], pa.int32()),
            pa.array([item.height for item in media], pa.int32()),
            pa.array([item.size for item in media], pa.int64()),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
            pa.array([run_id] * len(media), pa.string()),
            pa.array([now] * len(media), schema.field("embedded_at").type),
        ],
        schema=schema,
    )


@dataclass
class EmbedLabels(
    beam.PTransform[beam.PCollection[LabelSet], beam.PCollection[Mapping[str, LabelVectors]]]
):
    """Label sets to one mapping of their vectors by label-set id, computed once per run."""

    model: ModelSpec

    def expand(
        self, pcoll: beam.PCollection[LabelSet]
    ) -> beam.PCollection[Mapping[str, LabelVectors]]:
        """Encode each set where a model is, and gather."""
        vectors: beam.PCollection[Mapping[str, LabelVectors]] = (
            pcoll
            | "EncodePrompts" >> beam.ParDo(_EncodePrompts(self.model))
            | "GatherLabelSets" >> beam.combiners.ToDict()
        )
        return vectors


class _EncodePrompts(beam.DoFn):
    """A DoFn for the model's sake: it is loaded where the prompts are encoded."""

    def __init__(self, model: ModelSpec) -> None:
        self._spec = model

    def setup(self) -> None:
        self._model = shared_model(self._spec)

    def process(self, label_set: LabelSet) -> Iterable[tuple[str, LabelVectors]]:
        yield label_set.label_set_id, label_vectors(label_set, self._model)


class TextEncoder(Protocol):
    """What label vectors need of a model."""

    logit_scale: float
    logit_bias: float

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """`float32[N, D]` L2-normalised vectors of sentences."""


def label_vectors(label_set: LabelSet, model: TextEncoder) -> LabelVectors:
    """A label set in the model's space.

    A label's vector is the normalised mean of its prompts' normalised embeddings, as in
    open_clip's `build_zero_shot_classifier`. Raises ValueError for a label without a direction.
    """
    prompts = [label_set.prompts_of(label) for label in label_set.labels]
    encoded = model.encode_texts([prompt for of_label in prompts for prompt in of_label])
    ends = np.cumsum([len(of_label) for of_label in prompts])
    means = np.stack([part.mean(axis=0) for part in np.split(encoded, ends[:-1])])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not (lengths > 0).all():
        empty = label_set.labels[int(np.argmin(lengths > 0))].name
        raise ValueError(f"label {empty!r} has no vector: its prompts' embeddings cancel out")
    vectors = means / lengths
    return LabelVectors(
        label_set_id=label_set.label_set_id,
        names=tuple(label.name for label in label_set.labels),
        vectors=vectors.astype(np.float32),
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        top_k=label_set.top_k,
        threshold=label_set.threshold,
        activation=label_set.activation,
    )
