"""Manifests of every kind, made of rows, and what is read of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.manifestfiles import read_rows
from transforms.records import MediaRef

GS = "gs://bucket/lists/m"
KINDS = ["csv", "tsv", "jsonl", "parquet"]
"""Those that have columns."""


def read(content: bytes, kind: str, carry: tuple[str, ...] = (), url: str = GS) -> list[MediaRef]:
    return list(read_rows(io.BytesIO(content), kind, url, carry))


def parquet(columns: dict, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def uris(refs: list[MediaRef]) -> list[str]:
    return [ref.uri for ref in refs]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def told(kind: str, rows: list[dict]) -> bytes:
    """The same rows in each kind of manifest that has columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        return parquet({name: [row.get(name) for row in rows] for name in names})
    text = io.StringIO()
    writer = csv.DictWriter(text, names, delimiter="," if kind == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def check_problem(ref: MediaRef, row: int, *said: str) -> None:
    assert ref.uri == f"{GS}#{row}"
    # Of the row itself: one that is mended is another version.
    assert re.fullmatch("row-[0-9a-f]{8}", ref.version)
    assert not ref.fetched
    assert ref.problem
    assert "\n" not in ref.problem
    for part in said:
        assert part in ref.problem
    json.dumps(ref).encode("utf-8")
