"""The Arrow schemas of the tables: the contract with the warehouse.

Partition columns (`model`, `label_set`, `dt`) stand in the paths, Hive style, not in the files.
Columns carried over from manifests are strings, after all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from transforms.lightimports import keep_pandas_out

keep_pandas_out()

TIMESTAMP = pa.timestamp("us", tz="UTC")

SCHEMA_VERSION = 1
"""Of all tables; a change of it stands in CHANGELOG.md. Every file tells its own in its footer."""

VERSION_KEY = b"beamtag_schema"
"""Where the footer tells it."""

ITEM = ("uri", "version", "id")
"""The columns that tell one item from another."""


def carried_fields(carry: Sequence[str]) -> list[pa.Field]:
    """The columns carried over from manifests, as every table has them."""
    return [pa.field(name, pa.string()) for name in carry]


def embeddings_schema(dim: int, carry: Sequence[str] = ()) -> pa.Schema:
    """`embeddings`: one row per embedded item; `embedding` has `dim` float32, L2-normalised."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("content_sha256", pa.string(), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            # How many windows of the model's context the text took; null without text.
            pa.field("text_windows", pa.int32()),
            # The half of a pair that could not be used, and why; null where all was used.
            pa.field("unused", pa.string()),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field(
                "embedding",
                pa.list_(pa.field("element", pa.float32(), nullable=False), dim),
                nullable=False,
            ),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("embedded_at", TIMESTAMP, nullable=False),
            *carried_fields(carry),
        ]
    )


def predictions_schema(carry: Sequence[str] = ()) -> pa.Schema:
    """`predictions`: one row per tag."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            # Null, with rank 0, says "looked at, no label above its threshold".
            pa.field("label", pa.string()),
            # What stays when a label is called something else.
            pa.field("label_id", pa.string()),
            # The way from the root: animal/mammal/dog.
            pa.field("path", pa.string()),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("score", pa.float32()),
            pa.field("similarity", pa.float32()),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("tagged_at", TIMESTAMP, nullable=False),
            # As in `embeddings`: an item's latest version is the one that was embedded last.
            pa.field("embedded_at", TIMESTAMP, nullable=False),
            *carried_fields(carry),
        ]
    )


def failures_schema(carry: Sequence[str] = ()) -> pa.Schema:
    """`failures`: one row per listed item without an embedding."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("stage", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("retryable", pa.bool_(), nullable=False),
            # What one model cannot take, another may.
            pa.field("model", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("failed_at", TIMESTAMP, nullable=False),
            *carried_fields(carry),
        ]
    )


RESERVED = frozenset(
    name
    for schema in (embeddings_schema(1), predictions_schema(), failures_schema())
    for name in schema.names
) | {"model", "label_set", "dt"}
"""Names of columns, of files or of paths: none of them can be carried."""
