"""ReadStored: files of stored vectors to batches that only have to be scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from transforms.ledger import Unscored
from transforms.progress import progress
from transforms.records import BatchPosition, EmbeddedBatch
from transforms.schemas import ITEM, embeddings_schema
from transforms.storage import StorageOptions, use_storage_options
from transforms.stored import open_held

ROWS_AT_ONCE = 4096
"""Rows that are read at a time. Of how many there are similarities at a time, `scoring` decides."""


@dataclass
class ReadStored(beam.PTransform[beam.PCollection[Unscored], beam.PCollection[EmbeddedBatch]]):
    """Embeddings files that lack predictions to batches of the columns that scoring needs."""

    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[Unscored]) -> beam.PCollection[EmbeddedBatch]:
        """Wire the reading."""
        batches: beam.PCollection[EmbeddedBatch] = (
            pcoll
            | "ShuffleStored" >> beam.Reshuffle()
            | "ReadFiles" >> beam.FlatMap(_read_unscored, self.storage_options)
        )
        return batches


def _read_unscored(unscored: Unscored, storage_options: StorageOptions) -> Iterator[EmbeddedBatch]:
    use_storage_options(storage_options)
    yield from read_stored(unscored)


def read_stored(unscored: Unscored) -> Iterator[EmbeddedBatch]:
    """A file's rows as a shard's batches. Raises `DamagedError` and what the store raises."""
    file = unscored.file
    needed = {*ITEM, "embedding", "embedded_at"}
    with open_held(file.url) as parquet:
        schema = parquet.schema_arrow
        dim = schema.field("embedding").type.list_size
        own = set(embeddings_schema(dim).names)
        columns = [name for name in schema.names if name in needed or name not in own]
        left = parquet.metadata.num_rows
        empty = pa.RecordBatch.from_pylist([], pa.schema([schema.field(name) for name in columns]))
        rows = parquet.iter_batches(ROWS_AT_ONCE, columns=columns) if left else iter([empty])
        for seq, batch in enumerate(rows):
            left -= batch.num_rows
            position = BatchPosition(file.shard_id, seq, last=not left, dt=file.dt)
            progress.add(scored=batch.num_rows)
            yield EmbeddedBatch(position, batch, label_sets=unscored.label_sets)
