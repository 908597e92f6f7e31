"""Batches to vectors: the maths around the model; no Beam.

What a model needs around it on a long run: batches cut in halves when they do not fit or do not go
through, long texts in windows, two halves of one item in one vector, and no vector that is none.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.imagetower import DeviceClock, is_out_of_memory
from transforms.progress import progress
from transforms.records import (
    Batch,
    DecodedMedia,
    EmbeddedBatch,
    Failure,
    Reason,
    RunSpec,
    Stage,
)
from transforms.schemas import embeddings_schema

logger = logging.getLogger("beamtag")

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """What the handler needs of a model."""

    def encode_images(self, pixels: Pixels) -> Vectors:
        """`float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels."""

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """`float32[N, D]` L2-normalised vectors of sentences."""

    def text_windows(self, text: str) -> list[str]:
        """The text in parts that fit into the model's context."""


def embed_batch(
    batch: Batch, model: Encoder, dim: int, run: RunSpec, text_weight: float = 0.5
) -> EmbeddedBatch:
    """Embed a decoded batch; items that the model cannot take become failures.

    A text's vector is the normalised mean of its windows' vectors; an item of picture and text has
    the normalised weighted sum of both, or that of the one that has a vector. Raises the model's
    own exception when nothing of several items goes through: then it is the model or its device
    that is broken, and the items are not to blame.
    """
    clock = DeviceClock()
    size = len(batch)
    pictured = [row for row, item in enumerate(batch.media) if item.width is not None]
    texts = {row: item.text for row, item in enumerate(batch.media) if item.text is not None}
    windows, refused = _windows(texts, model)
    image = _Half(size, dim, pictured, *_encode_or_bisect(batch.pixels, model.encode_images, dim))
    encoded = _encode_or_bisect(list(windows.values()), _by_windows(model), dim)
    text = _Half(size, dim, list(windows), *encoded, refused)
    errors = [*image.errors.values(), *text.errors.values()]
    # Items, not halves: one pair that fails in both may be to blame itself.
    several = len({*image.errors, *text.errors}) > 1
    if several and len(errors) == len(pictured) + len(texts):
        raise errors[0]

    vectors = np.where(image.there[:, None], image.vectors, text.vectors)
    both = image.there & text.there
    vectors[both] = _weighted_sum(image.vectors[both], text.vectors[both], text_weight)
    good = np.flatnonzero(image.there | text.there).tolist()
    lost = {
        row: half.lost(row)
        for half in (text, image)  # of two that are lost, the picture's reason is the item's
        for row in half.rows
        if not half.there[row]
    }
    failures = [
        Failure(batch.media[row].ref, Stage.EMBED, *lost[row])
        for row in range(size)
        if row in lost and not (image.there[row] or text.there[row])
    ]
    media = [
        replace(item, unused=f"{'text' if image.there[row] else 'image'}: {lost[row][0]}")
        if row in lost
        else item
        for row, item in enumerate(batch.media)
    ]
    rows = _rows(
        [media[row] for row in good],
        vectors[good],
        [_modality(image.there[row], text.there[row]) for row in good],
        [len(windows[row]) if text.there[row] else None for row in good],
        run,
    )
    progress.add(embedded=len(good), failed=len(failures))
    effort = batch.effort.on_device(*clock.spent())
    return EmbeddedBatch(batch.position, rows, (*batch.failures, *failures), effort, batch.counts)


class _Half:
    """The pictures of a batch, or its texts: their vectors in the rows of their items.

    `vectors` is `float32[B, D]`, NaN where `there` is False: no such half, or none that the model
    could take. `refused` are rows that did not come as far as the model.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        rows: Sequence[int],
        some: Vectors,
        failed: Mapping[int, Exception],
        refused: Mapping[int, Exception] = MappingProxyType({}),
    ) -> None:
        self.rows = [*rows, *refused]
        self.vectors: Vectors = np.full((size, dim), np.nan, dtype=np.float32)
        self.vectors[list(rows)] = some
        self.there: npt.NDArray[np.bool_] = np.isfinite(self.vectors).min(axis=1)
        self.errors = {**{rows[index]: error for index, error in failed.items()}, **refused}

    def lost(self, row: int) -> tuple[Reason, str]:
        """Why this row has no vector."""
        error = self.errors.get(row)
        if error is None:
            return Reason.NOT_FINITE, "the model gave a vector with NaN or infinity"
        reason = Reason.OUT_OF_MEMORY if is_out_of_memory(error) else Reason.MODEL_ERROR
        return reason, str(error) or type(error).__name__


def _modality(image: bool, text: bool) -> str:
    return "pair" if image and text else "image" if image else "text"


def _weighted_sum(image: Vectors, text: Vectors, text_weight: float) -> Vectors:
    """The normalised weighted sum; the picture's where both cancel out, to rounding."""
    sums = np.float32(1 - text_weight) * image + np.float32(text_weight) * text
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    mixed = image.copy()
    np.divide(sums, lengths, where=lengths > 1e-6, out=mixed)
    return mixed


def _windows(
    texts: Mapping[int, str], model: Encoder
) -> tuple[dict[int, list[str]], dict[int, Exception]]:
    """The windows of each text that the model's tokenizer takes; of the others, why not."""
    windows: dict[int, list[str]] = {}
    refused: dict[int, Exception] = {}
    for row, text in texts.items():
        try:
            windows[row] = model.text_windows(text)
        # Each kind of tokenizer has its own exceptions, and only this text is to blame.
        except Exception as error:
            refused[row] = error
    return windows, refused


def _by_windows(model: Encoder) -> Callable[[Sequence[Sequence[str]]], Vectors]:
    """Texts, each in windows, to the normalised means of the windows' vectors."""

    def encode(texts: Sequence[Sequence[str]]) -> Vectors:
        encoded = model.encode_texts([window for windows in texts for window in windows])
        starts = np.cumsum([0, *(len(windows) for windows in texts)])[:-1]
        # Of a sum or of a mean, the direction is the same.
        sums: Vectors = np.add.reduceat(encoded, starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        means = np.full_like(sums, np.nan)
        np.divide(sums, lengths, where=lengths > 0, out=means)
        return means

    return encode


def _encode_or_bisect(
    items: Any, encode: Callable[[Any], Vectors], dim: int
) -> tuple[Vectors, dict[int, Exception]]:
    """Vectors of all items, NaN for those in the second result, which tells why they failed.

    A part that fails, for want of memory or otherwise, is cut in halves down to single items.
    """
    vectors = np.full((len(items), dim), np.nan, dtype=np.float32)
    failed: dict[int, Exception] = {}
    parts = [(0, len(items))] if len(items) else []
    while parts:
        start, end = parts.pop()
        try:
            vectors[start:end] = encode(items[start:end])
        except RuntimeError as error:  # torch's, out-of-memory included
            if end - start == 1:
                failed[start] = error
                continue
            logger.warning("%d items failed together, trying halves: %s", end - start, error)
            middle = (start + end) // 2
            parts += [(middle, end), (start, middle)]
    return vectors, failed


def _rows(
    media: Sequence[DecodedMedia],
    vectors: Vectors,
    modalities: Sequence[str],
    windows: Sequence[int | None],
    run: RunSpec,
) -> pa.RecordBatch:
    schema = embeddings_schema(vectors.shape[1], run.carry)
    now = datetime.datetime.now(datetime.UTC)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
    columns = {
        "uri": [item.ref.uri for item in media],
        "version": [item.ref.version for item in media],
        "id": [item.ref.id for item in media],
        "modality": modalities,
        "content_sha256": [item.content_sha256 for item in media],
        "width": [item.width for item in media],
        "height": [item.height for item in media],
        "text_windows": windows,
        "unused": [item.unused for item in media],
        "bytes": [item.size for item in media],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        "run_id": [run.run_id] * len(media),
        "embedded_at": [now] * len(media),
        **{
            # Items of a folder or a tar without such a value carry nothing.
            name: [item.ref.carried[place] if item.ref.carried else None for item in media]
            for place, name in enumerate(run.carry)
        },
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns.values(), schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
