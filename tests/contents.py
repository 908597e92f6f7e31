"""Batches whose items are of the same bytes, the way they go past what is known, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeModel
from test_scoring import label_vectors

from transforms.duplicates import embed_once
from transforms.encoding import embed_batch
from transforms.knownvectors import KnownVectors
from transforms.records import (
    Batch,
    BatchPosition,
    ContentKey,
    DecodedMedia,
    EmbeddedBatch,
    MediaRef,
    RunSpec,
)
from transforms.scoring import tag_batch
from transforms.writing import write_shard

LABELS = {"set-0": label_vectors(np.eye(3), names=("a", "b", "c"))}
Told = tuple[str, int | None, str | None]
"""A name, the colour of its picture, its text."""


def sha(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def image(colour: int) -> ContentKey:
    return ContentKey("image", sha(colour))


def batch(told: Sequence[Told], shard: str = "s", seq: int = 0, *, last: bool = True) -> Batch:
    """Decoded items; what tells a colour is in one corner, so that the means differ."""
    colours = [colour for _, colour, _ in told if colour is not None]
    pixels = np.zeros((len(colours), 4, 4, 3), dtype=np.uint8)
    for row, colour in enumerate(colours):
        pixels[row, 0, 0] = (colour, colour // 2, 255 - colour)
    media = tuple(
        DecodedMedia(
            MediaRef(uri, f"version of {uri}", id=f"id of {uri}", carried=(f"owner of {uri}",)),
            sha(text if colour is None else colour), 7,
            *((None, None) if colour is None else (10, 20)), text,
        )
        for uri, colour, text in told
    )  # fmt: skip
    return Batch(BatchPosition(shard, seq, last), media, pixels)


def pictures(colours: Sequence[int], shard: str = "s", start: int = 0, seq: int = 0) -> Batch:
    told: list[Told] = [(f"u{start + row:03d}", colour, None) for row, colour in enumerate(colours)]
    return batch(told, shard, seq)


def reread(decoded: Batch, known: KnownVectors) -> Batch:
    """The batch as it is read when its pictures may be known: those are not decoded."""
    media, kept = [], []
    for row, item in enumerate(decoded.media):
        content = ContentKey("image", item.content_sha256)
        if known.has(content):
            item = replace(item, width=None, height=None, embedded=content)
        else:
            kept.append(row)
        media.append(item)
    return replace(decoded, media=tuple(media), pixels=decoded.pixels[kept])


RUN = RunSpec("run", "2026-01-31", "/nowhere", ("owner",))


def once(decoded: Batch, known: KnownVectors, model: FakeModel, run: RunSpec = RUN):
    return embed_once(decoded, model, 3, run, 0.5, known)


def write(parts: Sequence[EmbeddedBatch], output: str, known: KnownVectors | None) -> str:
    run = replace(RUN, output=output)
    account = write_shard([tag_batch(part, LABELS, "run") for part in parts], run, "m-1", known)
    return account.files[0]


def same_rows(embedded: EmbeddedBatch, decoded: Batch) -> None:
    """Rows are those that the model alone would give, in their order, but for the time."""
    alone = embed_batch(decoded, FakeModel(), 3, RUN).embeddings
    found = embedded.embeddings
    assert found.schema.equals(alone.schema)
    for name in alone.schema.names:
        if name == "embedding":
            ours, theirs = (rows.column(name).flatten().to_numpy() for rows in (found, alone))
            assert ours == pytest.approx(theirs, abs=1e-6)
        elif name != "embedded_at":
            assert found.column(name).to_pylist() == alone.column(name).to_pylist(), name
