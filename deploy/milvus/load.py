"""Puts the latest vector of every item of a model into a Milvus collection, by Beam's own writer.

    python deploy/milvus/load.py --output=gs://bucket/tags --model_id=ViT-B-32-1a2b3c4d \\
        --milvus=http://milvus:19530 --collection=photos [--since=2026-01-02] [any Beam option]

An item (`uri` and `id`) is one entity: a new version takes the place of the one before, and a load
that is done twice changes nothing. Of the rows only places cross a shuffle, the vectors never do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.rag.ingestion.milvus_search import MilvusVectorWriterConfig, MilvusWriteConfig
from apache_beam.ml.rag.ingestion.postgres_common import ColumnSpec
from apache_beam.ml.rag.types import Content, EmbeddableItem, Embedding
from apache_beam.ml.rag.utils import MilvusConnectionParameters
from apache_beam.options.pipeline_options import PipelineOptions
from pymilvus import DataType, MilvusClient

from transforms.stored import open_parquet, stored_files

LONGEST = 65_535
"""Bytes of a text in Milvus, at most."""

TEXTS = ("uri", "version", "item_id", "modality")
ROWS_AT_ONCE = 4096

Place = tuple[str, int]
"""A row: its file's URL, its number."""


def ensure_collection(client: MilvusClient, name: str, dim: int) -> None:
    """Make the collection unless it is there."""
    if client.has_collection(name):
        return
    schema = client.create_schema(enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    for text in TEXTS:
        schema.add_field(text, DataType.VARCHAR, max_length=LONGEST, nullable=text == "item_id")
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="AUTOINDEX", metric_type="COSINE")
    client.create_collection(name, schema=schema, index_params=index)


def places(url: str) -> Iterator[tuple[str, tuple[Any, str, Place]]]:
    """Of each row of a file its item's key, and when it was embedded, its version and its place."""
    with open_parquet(url) as file:
        table = file.read(["uri", "id", "embedded_at", "version"])
    for number, row in enumerate(table.to_pylist()):
        key = hashlib.sha256(f"{row['uri']}\0{row['id'] or ''}".encode()).hexdigest()
        yield key, (row["embedded_at"], row["version"], (url, number))


def entities(rows: tuple[str, Iterable[tuple[int, str]]]) -> Iterator[EmbeddableItem]:
    """These rows of a file, with their keys, as Beam's writer takes them."""
    url, numbered = rows
    keys = dict(numbered)
    columns = ["uri", "version", "id", "modality", "embedding"]
    first = 0
    with open_parquet(url) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
            here = [number for number in range(batch.num_rows) if first + number in keys]
            wanted = batch.take(pa.array(here, pa.int64())).to_pylist()
            for number, row in zip(here, wanted, strict=True):
                row["item_id"] = row.pop("id")
                vector = Embedding(row.pop("embedding"))
                yield EmbeddableItem(
                    Content(), id=keys[first + number], embedding=vector, metadata=row
                )
            first += batch.num_rows


def _text(name: str) -> ColumnSpec:
    return ColumnSpec.text(name, lambda item: item.metadata[name])


COLUMNS = [
    ColumnSpec.text("id", lambda item: item.id),
    *map(_text, TEXTS),
    ColumnSpec.vector("embedding", lambda item: item.dense_embedding),
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, help="where the tables are")
    parser.add_argument("--model_id", required=True, help="the model= of their paths")
    parser.add_argument("--milvus", required=True, help="http://host:19530, or a file")
    parser.add_argument("--collection", required=True, help="made unless it is there")
    parser.add_argument("--since", default="", help="only days from this one on")
    options, rest = parser.parse_known_args(argv)
    files = [
        file.url
        for file in stored_files(options.output, "embeddings", model=options.model_id)
        if file.dt >= options.since
    ]
    if not files:
        parser.error(f"{options.output} has no embeddings of {options.model_id} to load")
    with open_parquet(files[0]) as file:
        dim = file.schema_arrow.field("embedding").type.list_size
    token = os.environ.get("MILVUS_TOKEN", "")
    client = MilvusClient(options.milvus, token=token)
    ensure_collection(client, options.collection, dim)
    client.close()
    writer = MilvusVectorWriterConfig(
        MilvusConnectionParameters(options.milvus, token=token),
        MilvusWriteConfig(options.collection),
        COLUMNS,
    )
    with beam.Pipeline(options=PipelineOptions(rest or ["--runner=FnApiRunner"])) as pipeline:
        _ = (
            pipeline
            | "Files" >> beam.Create(files)
            | "Shuffle" >> beam.Reshuffle()
            | "Places" >> beam.FlatMap(places)
            | "Latest" >> beam.CombinePerKey(max)
            | "ByFile" >> beam.MapTuple(lambda key, last: (last[2][0], (last[2][1], key)))
            | "GroupByFile" >> beam.GroupByKey()
            | "Entities" >> beam.FlatMap(entities)
            | "Write" >> writer.create_write_transform()
        )


if __name__ == "__main__":
    main()
