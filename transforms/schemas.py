"""The Arrow schemas of the tables: the contract with the warehouse.

Partition columns (`model`, `label_set`, `dt`) stand in the paths, Hive style, not in the files.
"""

from __future__ import annotations

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")


def embeddings_schema(dim: int) -> pa.Schema:
    """`embeddings`: one row per embedded item; `embedding` has `dim` float32, L2-normalised."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("content_sha256", pa.string(), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field(
                "embedding",
                pa.list_(pa.field("element", pa.float32(), nullable=False), dim),
                nullable=False,
            ),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("embedded_at", TIMESTAMP, nullable=False),
        ]
    )


PREDICTIONS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        # Null, with rank 0, says "looked at, no label above its threshold".
        pa.field("label", pa.string()),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("similarity", pa.float32()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("tagged_at", TIMESTAMP, nullable=False),
    ]
)

FAILURES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("retryable", pa.bool_(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("failed_at", TIMESTAMP, nullable=False),
    ]
)
