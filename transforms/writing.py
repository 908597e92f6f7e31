"""WriteShards: a shard's batches become one whole file per table."""

from __future__ import annotations

import datetime
import io
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import (
    EXAMPLES,
    Account,
    Example,
    MaxFailures,
    TooManyFailuresError,
)
from transforms.knownvectors import KnownVectors, shared_vectors
from transforms.ledger import TAR_END, LedgerSpec
from transforms.progress import progress
from transforms.publishing import PublishError, publish
from transforms.records import (
    RETRYABLE,
    BatchPosition,
    Counts,
    Effort,
    Failure,
    RunSpec,
    TaggedBatch,
)
from transforms.runlock import check_place
from transforms.schemas import SCHEMA_VERSION, VERSION_KEY, embeddings_schema, failures_schema
from transforms.storage import StorageOptions, use_storage_options
from transforms.tabletext import escaped

ROW_GROUP_ROWS = 64 * 1024

SHARDS_AHEAD = 2
"""How many shards may wait until they are written, before the stages above wait for one."""

_NOTHING: Mapping[bytes, bytes] = MappingProxyType({})


@dataclass
class WriteShards(beam.PTransform[beam.PCollection[TaggedBatch], beam.PCollection[Account]]):
    """Tagged batches to the files of their shards; gives each shard's account.

    A shard's files stand in every table, without rows where it has none: a reader's pattern always
    matches, and a shard that is done again leaves nothing of its first try. Shards that are stored
    already get the predictions that they lack, beside their embeddings. With `abort_after`, which
    is for runs of one process, more failures than that raise `TooManyFailuresError`.
    """

    run: RunSpec
    model_id: str
    storage_options: StorageOptions = field(default_factory=dict)
    ledger: LedgerSpec | None = None
    abort_after: MaxFailures | None = None

    def expand(self, pcoll: beam.PCollection[TaggedBatch]) -> beam.PCollection[Account]:
        """Wire the writer, and a second one for shards whose batches did not arrive together."""
        written = pcoll | "WriteFiles" >> beam.ParDo(_WriteWholeShards(self)).with_outputs(
            "parts", main="accounts"
        )
        # Empty where the stages above are fused with this one. Where an engine has not fused them,
        # vectors and tags cross a shuffle here, and a shard still ends as one file.
        late = (
            written.parts
            | "GroupParts" >> beam.GroupByKey()
            | "WriteGrouped" >> beam.ParDo(_WriteGrouped(self))
        )
        accounts: beam.PCollection[Account] = (written.accounts, late) | "Written" >> beam.Flatten()
        return accounts


class _WriteWholeShards(beam.DoFn):
    """A DoFn for the batches that wait for the rest of their shard, and for a thread that writes.

    While a shard is written the stages above work on the next.
    """

    def __init__(self, settings: WriteShards) -> None:
        self._settings = settings

    def setup(self) -> None:
        use_storage_options(self._settings.storage_options)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beamtag-write")
        self._writing: deque[tuple[Future[Account], Any, Any]] = deque()

    def start_bundle(self) -> None:
        self._waiting: dict[tuple[str | None, str], list[tuple[TaggedBatch, Any, Any]]] = {}
        # Of a bundle that failed: its retry writes the same files again, and must not meet these.
        self._stop_writing()

    def process(
        self,
        batch: TaggedBatch,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        position = batch.embedded.position
        key = (position.dt, position.shard_id)
        parts = self._waiting.setdefault(key, [])
        parts.append((batch, timestamp, window))
        if is_whole([part[0] for part in parts]):
            del self._waiting[key]
            whole = [part[0] for part in parts]
            writing = self._pool.submit(_write, whole, self._settings)
            self._writing.append((writing, timestamp, window))
        while self._writing and (self._writing[0][0].done() or len(self._writing) > SHARDS_AHEAD):
            yield self._next()

    def finish_bundle(self) -> Iterator[Any]:
        while self._writing:
            yield self._next()
        for (dt, shard_id), parts in self._waiting.items():
            for batch, timestamp, window in parts:
                keyed = (f"{dt or ''}/{shard_id}", batch)
                yield beam.pvalue.TaggedOutput("parts", WindowedValue(keyed, timestamp, (window,)))

    def _next(self) -> WindowedValue:
        writing, timestamp, window = self._writing.popleft()
        try:
            return WindowedValue(writing.result(), timestamp, (window,))
        except Exception:
            # The run ends by it, and is to leave whole files.
            self._stop_writing()
            raise

    def _stop_writing(self) -> None:
        for writing, _, _ in self._writing:
            writing.cancel()
        wait([writing for writing, _, _ in self._writing])
        self._writing.clear()

    def teardown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _WriteGrouped(beam.DoFn):
    """A DoFn for its set-up: the parts of a shard, wherever they were made, to its files."""

    def __init__(self, settings: WriteShards) -> None:
        self._settings = settings

    def setup(self) -> None:
        use_storage_options(self._settings.storage_options)

    def process(self, shard: tuple[str, Iterable[TaggedBatch]]) -> Iterator[Account]:
        name, parts = shard
        # One that an engine gives twice is one part of the shard.
        batches = list({batch.embedded.position.seq: batch for batch in parts}.values())
        if not is_whole(batches):
            raise RuntimeError(f"shard {name}: only {len(batches)} of its batches have arrived")
        yield _write(batches, self._settings)


def is_whole(batches: Sequence[TaggedBatch]) -> bool:
    """Whether these are all batches of a shard."""
    positions = [batch.embedded.position for batch in batches]
    return any(position.last and position.seq + 1 == len(positions) for position in positions)


def _write(batches: Sequence[TaggedBatch], settings: WriteShards) -> Account:
    run = settings.run
    if settings.ledger is None:
        account = write_shard(batches, run, settings.model_id)
    else:
        # Whoever has taken this run's place writes these rows too.
        check = partial(check_place, run.output, run.run_id)
        known = shared_vectors(settings.ledger)
        try:
            account = write_shard(batches, run, settings.model_id, known, check)
        except PublishError:
            check()  # It removes what this run has aside, which is then the cause.
            raise
    progress.add(shards=1)
    if settings.abort_after is not None:
        too_many = settings.abort_after.passed(progress.failed, progress.listed)
        if too_many:
            raise TooManyFailuresError(too_many)
    return account


def write_shard(
    batches: Sequence[TaggedBatch],
    run: RunSpec,
    model_id: str,
    known: KnownVectors | None = None,
    check: Callable[[], None] | None = None,
) -> Account:
    """Write a whole shard, embeddings before predictions, and account for it.

    Nothing is written of a shard of which everything was done already. `check` is asked before each
    file. Raises PublishError.
    """
    started = time.perf_counter()
    stored = 0.0
    batches = sorted(batches, key=lambda batch: batch.embedded.position.seq)
    last = batches[-1].embedded.position
    failures = [failure for batch in batches for failure in batch.embedded.failures]
    embeddings = _embeddings(batches)
    account = _account(last, [batch.embedded.counts for batch in batches], embeddings, failures)
    for batch in batches:
        account.spend(batch.embedded.effort)
        account.spend(batch.effort)
    # A part of a tar is written all the same: a tar is done when a run has all of its parts.
    if not embeddings.num_rows and not failures and last.dt is None and "-" not in last.shard_id:
        return account

    def write(table: pa.Table, *partitions: str, footer: Mapping[bytes, bytes] = _NOTHING) -> None:
        dt = run.run_date if last.dt is None else last.dt
        url = table_file(run.output, last.shard_id, *partitions, f"dt={dt}")
        content = parquet_bytes(table, footer)
        begun = time.perf_counter()
        publish(url, content, run.run_id, check)
        nonlocal stored
        stored += time.perf_counter() - begun
        account.files.append(url)

    failed = failure_rows(failures, run, model_id)
    of_tar = "-" in last.shard_id
    if of_tar and last.dt is None:
        # A tar is done when it has all its embeddings files, and is then not read for failures.
        write(failed, "failures")
    if last.dt is None:
        footer = {TAR_END: b""} if last.end else {}
        write(embeddings, "embeddings", f"model={model_id}", footer=footer)
        if known is not None:
            known.written(last.shard_id, account.files[-1], embeddings)
    for label_set_id in batches[0].predictions:
        predictions = pa.Table.from_batches([batch.predictions[label_set_id] for batch in batches])
        write(predictions, "predictions", f"label_set={label_set_id}", f"model={model_id}")
        best = predictions.filter(pc.field("rank") == 1)
        account.labels[label_set_id] = Counter(best.column("label").to_pylist())
        if not account.examples:
            account.examples = _examples(best)
    if last.dt is None and not of_tar:
        write(failed, "failures")
    busy = time.perf_counter() - started - stored
    account.spend(Effort({"write": busy}, waiting={"write": stored}))
    return account


def _embeddings(batches: Sequence[TaggedBatch]) -> pa.Table:
    """The rows of a shard. What crossed a shuffle was pickled, which loses what a list holds."""
    table = pa.Table.from_batches([batch.embedded.embeddings for batch in batches])
    place = table.schema.get_field_index("embedding")
    vectors = table.column(place)
    field = embeddings_schema(vectors.type.list_size).field("embedding")
    chunks = [
        pa.FixedSizeListArray.from_arrays(chunk.flatten(), type=field.type)
        for chunk in vectors.chunks
    ]
    return table.set_column(place, field, pa.chunked_array(chunks, field.type))


def _account(
    position: BatchPosition,
    counts: Sequence[Counts],
    embeddings: pa.Table,
    failures: Sequence[Failure],
) -> Account:
    if position.dt is not None:
        return Account(scored=embeddings.num_rows)
    duplicates = sum(count.duplicates for count in counts)
    account = Account(
        listed=sum(count.listed for count in counts),
        reused=sum(count.reused for count in counts),
        duplicates=duplicates,
        embedded=embeddings.num_rows - duplicates,
        bytes=pc.sum(embeddings.column("bytes")).as_py() or 0,
        modalities=Counter(embeddings.column("modality").to_pylist()),
        failures=Counter(str(failure.reason) for failure in failures),
    )
    for count in counts:
        account.known_failures.update(count.known_failures)
    done = account.written + account.reused + account.known_failures.total()
    if missing := account.listed - done:
        # Of a shard of references, which the listing has counted: there the sum is nothing.
        account.shards[position.shard_id] = missing
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


def failure_rows(failures: Sequence[Failure], run: RunSpec, model_id: str) -> pa.Table:
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
            "model": model_id,
            "run_id": run.run_id,
            "failed_at": now,
            **dict(zip(run.carry, failure.ref.carried, strict=False)),
        }
        for failure in failures
    ]
    return pa.Table.from_pylist(rows, schema=failures_schema(run.carry))


def parquet_bytes(table: pa.Table, footer: Mapping[bytes, bytes] = _NOTHING) -> bytes:
    """A table as a Parquet file: zstd, checksums, statistics on every column but the vectors.

    `footer` is told in the file's metadata, beside the version of the schema and what the table's
    own schema has of it.
    """
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), VERSION_KEY: str(SCHEMA_VERSION).encode(), **footer}
    )
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
        # For `verify`: of a byte that has changed in a vector nothing else tells.
        write_page_checksum=True,
        # `list.element`, which BigQuery's list inference wants.
        use_compliant_nested_type=True,
    )
    return buffer.getvalue()
