"""embed_once: the same bytes under many names are embedded once.

Every name has rows of its own, with one vector.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from transforms.encoding import Encoder, embed_batch
from transforms.imagetower import DeviceClock
from transforms.knownvectors import KnownVectors
from transforms.progress import progress
from transforms.records import (
    Batch,
    ContentKey,
    DecodedMedia,
    EmbeddedBatch,
    Failure,
    MediaRef,
    RunSpec,
)
from transforms.schemas import ITEM


def content_of(item: DecodedMedia) -> ContentKey | None:
    """What an item is embedded by, where that is one thing: None for a pair."""
    if item.embedded or item.unused:
        return item.embedded
    if item.text is None:
        return ContentKey("image", item.content_sha256)
    return ContentKey("text", item.content_sha256) if item.width is None else None


def embed_once(
    batch: Batch,
    model: Encoder,
    dim: int,
    run: RunSpec,
    text_weight: float,
    known: KnownVectors,
) -> EmbeddedBatch:
    """As `embed_batch`, but bytes that have a vector, or come twice, do not go to the model.

    One whose first failed fails with it. Raises RuntimeError for a vector that reading knew of and
    that is gone: what was not decoded cannot be embedded.
    """
    clock = DeviceClock()
    shard_id = batch.position.shard_id
    contents = [content_of(item) for item in batch.media]
    found = known.find(content for content in contents if content is not None)
    promised = {item.embedded for item in batch.media if item.embedded is not None}
    if lacking := promised - found.keys():
        # Of a file that the worker which has read the batch has seen, and this one has not.
        known.look_again()
        found.update(known.find(lacking))
        if lost := lacking - found.keys():
            raise RuntimeError(f"shard {shard_id}: {len(lost)} stored vectors are gone; try again")
    firsts: dict[ContentKey, DecodedMedia] = {}
    fresh: list[int] = []
    repeats: list[int] = []
    for row, (item, content) in enumerate(zip(batch.media, contents, strict=True)):
        if content is None:
            fresh.append(row)
        elif content in found or content in firsts:
            repeats.append(row)
        else:
            firsts[content] = item
            fresh.append(row)
    if not repeats:
        embedded = embed_batch(batch, model, dim, run, text_weight)
        known.add(shard_id, embedded.embeddings)
        return embedded

    embedded = embed_batch(_only(batch, fresh), model, dim, run, text_weight)
    known.add(shard_id, embedded.embeddings)
    found.update(known.find(firsts))
    failed = {failure.ref: failure for failure in embedded.failures}
    rows = [row for row in fresh if batch.media[row].ref not in failed]
    copies: list[tuple[MediaRef, pa.Table]] = []
    failures: list[Failure] = []
    for row in repeats:
        ref, content = batch.media[row].ref, contents[row]
        assert content is not None
        if content in found:
            rows.append(row)
            copies.append((ref, found[content]))
        else:
            failures.append(replace(failed[firsts[content].ref], ref=ref))
    progress.add(embedded=len(copies), failed=len(failures))
    effort = batch.effort.on_device(*clock.spent())
    embeddings, duplicates = _with_copies(embedded.embeddings, copies, run)
    return replace(
        embedded,
        # In their order: a shard that is done again, of which all is known then, is the same.
        embeddings=embeddings.take(pa.array(np.argsort(rows), pa.int64())),
        failures=(*embedded.failures, *failures),
        effort=effort,
        counts=replace(embedded.counts, duplicates=duplicates),
    )


def _only(batch: Batch, rows: Sequence[int]) -> Batch:
    """The part of a batch that the model is to see."""
    pictured = [row for row, item in enumerate(batch.media) if item.width is not None]
    kept = set(rows)
    places = [place for place, row in enumerate(pictured) if row in kept]
    return replace(
        batch,
        media=tuple(batch.media[row] for row in rows),
        pixels=batch.pixels if len(places) == len(batch.pixels) else batch.pixels[places],
    )


def _with_copies(
    embeddings: pa.RecordBatch, copies: Sequence[tuple[MediaRef, pa.Table]], run: RunSpec
) -> tuple[pa.RecordBatch, int]:
    """The rows and after them those of the copies; and how many are of other items' bytes."""
    if not copies:
        return embeddings, 0
    schema = embeddings.schema
    now = datetime.datetime.now(datetime.UTC)
    content = pa.concat_tables([row for _, row in copies])
    own: Mapping[str, Sequence[object]] = {
        "uri": [ref.uri for ref, _ in copies],
        "version": [ref.version for ref, _ in copies],
        "id": [ref.id for ref, _ in copies],
        "unused": [None] * len(copies),
        "run_id": [run.run_id] * len(copies),
        "embedded_at": [now] * len(copies),
        **{
            name: [ref.carried[place] if ref.carried else None for ref, _ in copies]
            for place, name in enumerate(run.carry)
        },
    }
    rows = pa.table(
        [
            pa.array(own[field.name], field.type)
            if field.name in own
            else content.column(field.name).cast(field.type)
            for field in schema
        ],
        schema=schema,
    )
    # One that a bundle which was broken off had embedded is its own.
    firsts = zip(*(content.column(name).to_pylist() for name in ITEM), strict=True)
    items = zip(*(own[name] for name in ITEM), strict=True)
    duplicates = sum(first != item for first, item in zip(firsts, items, strict=True))
    together = pa.concat_tables([pa.Table.from_batches([embeddings]), rows]).combine_chunks()
    batches = together.to_batches()
    assert len(batches) == 1
    return batches[0], duplicates
