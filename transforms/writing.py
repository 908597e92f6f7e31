"""WriteShards: a shard's batches become one whole file per table. WriteRunRecord: the account."""

from __future__ import annotations

import datetime
import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.accounting import EXAMPLES, Account, Example, finished, merge_accounts
from transforms.records import RETRYABLE, Effort, Failure, RunSpec, TaggedBatch
from transforms.schemas import failures_schema
from transforms.storage import StorageOptions, publish, use_storage_options
from transforms.tabletext import escaped

ROW_GROUP_ROWS = 64 * 1024


@dataclass
class WriteShards(beam.PTransform[beam.PCollection[TaggedBatch], beam.PCollection[Account]]):
    """Tagged batches to the files of their shards; gives each shard's account.

    Every shard has a file in every table, without rows where it has none: a reader's pattern
    always matches, and a shard that is done again leaves nothing of its first try.
    """

    run: RunSpec
    model_id: str
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[TaggedBatch]) -> beam.PCollection[Account]:
        """Wire the writer."""
        accounts: beam.PCollection[Account] = pcoll | "WriteFiles" >> beam.ParDo(
            _WriteWholeShards(self.run, self.model_id, self.storage_options)
        )
        return accounts


class _WriteWholeShards(beam.DoFn):
    """A DoFn for the batches that wait for the rest of their shard."""

    def __init__(self, run: RunSpec, model_id: str, storage_options: StorageOptions) -> None:
        self._run = run
        self._model_id = model_id
        self._storage_options = storage_options

    def setup(self) -> None:
        use_storage_options(self._storage_options)

    def start_bundle(self) -> None:
        self._waiting: dict[str, list[TaggedBatch]] = {}

    def process(self, batch: TaggedBatch) -> Iterator[Account]:
        position = batch.embedded.position
        batches = self._waiting.setdefault(position.shard_id, [])
        batches.append(batch)
        final = max(batches, key=lambda batch: batch.embedded.position.seq).embedded.position
        if final.last and len(batches) == final.seq + 1:
            yield write_shard(self._waiting.pop(position.shard_id), self._run, self._model_id)

    def finish_bundle(self) -> None:
        if self._waiting:
            # The stages above are fused with this one; where an engine would not fuse them, a
            # shard must not end as a part of itself.
            raise RuntimeError(f"batches of shards {sorted(self._waiting)} did not arrive together")


def write_shard(batches: Sequence[TaggedBatch], run: RunSpec, model_id: str) -> Account:
    """Write a whole shard, embeddings before predictions, and account for it. Raises OSError."""
    started = time.perf_counter()
    batches = sorted(batches, key=lambda batch: batch.embedded.position.seq)
    shard_id = batches[0].embedded.position.shard_id
    failures = [failure for batch in batches for failure in batch.embedded.failures]
    embeddings = pa.Table.from_batches([batch.embedded.embeddings for batch in batches])
    account = Account(
        listed=sum(batch.embedded.listed for batch in batches),
        embedded=embeddings.num_rows,
        bytes=pc.sum(embeddings.column("bytes")).as_py() or 0,
        modalities=Counter(embeddings.column("modality").to_pylist()),
        failures=Counter(str(failure.reason) for failure in failures),
    )
    for batch in batches:
        account.spend(batch.embedded.effort)
        account.spend(batch.effort)

    def write(table: pa.Table, *partitions: str) -> None:
        url = table_file(run.output, shard_id, *partitions, f"dt={run.run_date}")
        publish(url, parquet_bytes(table))
        account.files.append(url)

    write(embeddings, "embeddings", f"model={model_id}")
    for label_set_id in batches[0].predictions:
        predictions = pa.Table.from_batches([batch.predictions[label_set_id] for batch in batches])
        write(predictions, "predictions", f"label_set={label_set_id}", f"model={model_id}")
        best = predictions.filter(pc.field("rank") == 1)
        account.labels[label_set_id] = Counter(best.column("label").to_pylist())
        if not account.examples:
            account.examples = _examples(best)
    write(failure_rows(failures, run), "failures")
    account.spend(Effort({"write": time.perf_counter() - started}))
    return account


def _examples(best: pa.Table) -> list[Example]:
    # Spread over the shard: its beginning is often all of one folder.
    rows = [best.num_rows * place // EXAMPLES for place in range(EXAMPLES)]
    columns = best.select(["uri", "label", "score"]).take(
        pa.array(sorted({*rows} if best.num_rows else []), pa.int64())
    )
    return [Example(row["uri"], row["label"], row["score"]) for row in columns.to_pylist()]


def table_file(output: str, shard_id: str, *partitions: str) -> str:
    """The URL of a shard's file in a table: `OUTPUT/table/key=value/.../shard-<id>.parquet`."""
    return "/".join([output.rstrip("/"), *partitions, f"shard-{shard_id}.parquet"])


def failure_rows(failures: Sequence[Failure], run: RunSpec) -> pa.Table:
    """Rows of `failures`."""
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        {
            "uri": failure.ref.uri,
            "version": failure.ref.version,
            "id": failure.ref.id,
            "stage": str(failure.stage),
            "reason": str(failure.reason),
            # Stores and servers answer in bytes of their own.
            "message": escaped(failure.message),
            "retryable": failure.reason in RETRYABLE,
            "run_id": run.run_id,
            "failed_at": now,
            **dict(zip(run.carry, failure.ref.carried, strict=False)),
        }
        for failure in failures
    ]
    return pa.Table.from_pylist(rows, schema=failures_schema(run.carry))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file: zstd, statistics on every column but the vectors."""
    vectors = "embedding"
    columns = [name for name in table.schema.names if name != vectors]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=columns,
        # Bounds of a vector's components prune nothing and cost a pass over them.
        write_statistics=columns,
        # `list.element`, which BigQuery's list inference wants.
        use_compliant_nested_type=True,
    )
    return buffer.getvalue()


@dataclass
class WriteRunRecord(beam.PTransform[beam.PCollection[Account], beam.PCollection[str]]):
    """Accounts of listing and of shards to `runs/<run_id>.json`; gives the record's URL.

    `header` is what is known before anything ran; it stands first in the record.
    """

    url: str
    header: Mapping[str, Any]
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[Account]) -> beam.PCollection[str]:
        """Merge, then write once."""
        record: beam.PCollection[str] = (
            pcoll
            | "MergeAccounts" >> beam.CombineGlobally(merge_accounts)
            | "WriteRecord"
            >> beam.Map(write_run_record, self.url, self.header, self.storage_options)
        )
        return record


def write_run_record(
    account: Account,
    url: str,
    header: Mapping[str, Any],
    storage_options: StorageOptions | None = None,
) -> str:
    """Write a finished run's record and give its URL."""
    use_storage_options(storage_options or {})
    publish_record(url, {**header, **finished(account, header["started_at"])})
    return url


def publish_record(url: str, record: Mapping[str, Any]) -> None:
    """Write a record as JSON that a person can read."""
    publish(url, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
