"""Tables of an output, written by hand: rows of embeddings and of failures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.publishing import publish
from transforms.schemas import embeddings_schema, failures_schema
from transforms.writing import parquet_bytes, table_file

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
Item = tuple[str, str, str | None]
"""Its uri, its version, its id."""

_FILL = {
    "modality": "image", "content_sha256": "ab" * 32, "bytes": 1, "embedded_at": NOW,
    "failed_at": NOW, "stage": "read", "reason": "empty", "message": "", "model": "m",
    "retryable": False, "run_id": "r",
}  # fmt: skip


def embeddings(
    output: object,
    items: Sequence[Item],
    *,
    model: str = "m",
    shard: str = "0",
    dt: str = "2026-01-02",
    footer: Mapping[bytes, bytes] = {},
    vectors: npt.NDArray[np.float32] | None = None,
    carried: Mapping[str, Sequence[str]] = {},
) -> str:
    """A file of vectors of these items, and of columns that are carried; its URL."""
    vectors = np.tile(np.float32([0.6, 0.8]), (len(items), 1)) if vectors is None else vectors
    schema = embeddings_schema(vectors.shape[1], tuple(carried))
    uris, versions, ids = zip(*items, strict=True) if items else ((), (), ())
    own = {
        "uri": uris, "version": versions, "id": ids, **carried,
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=schema.field("embedding").type
        ),
    }  # fmt: skip
    columns = [own.get(name, [_FILL.get(name)] * len(items)) for name in schema.names]
    url = table_file(str(output), shard, "embeddings", f"model={model}", f"dt={dt}")
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    publish(url, parquet_bytes(pa.table(arrays, schema=schema), footer))
    return url


def failures(
    output: object,
    rows: Sequence[tuple[Item, Mapping[str, Any]]],
    *,
    shard: str = "0",
    dt: str = "2026-01-02",
    without: Sequence[str] = (),
) -> str:
    """A file of failures of these items, each with values that are its own; its URL."""
    told = [
        {**_FILL, **dict(zip(("uri", "version", "id"), item, strict=True)), **own}
        for item, own in rows
    ]
    table = pa.Table.from_pylist(told, schema=failures_schema()).drop_columns(list(without))
    url = table_file(str(output), shard, "failures", f"dt={dt}")
    publish(url, parquet_bytes(table))
    return url
