"""ReadMedia: shards of references to decoded batches, concurrent, bounded, and ahead of the model.

Fetching and decoding happen in threads while the stages below work on earlier batches. The
look-ahead crosses from one shard to the next, so the model does not wait at a shard's end.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.utils.windowed_value import WindowedValue

from transforms import names
from transforms.ahead import ahead
from transforms.decoding import ImageDecoder
from transforms.imagetower import pixel_memory
from transforms.items import Item, ItemReader, Known
from transforms.knownvectors import shared_vectors
from transforms.ledger import LedgerSpec, key_of, shared_ledger
from transforms.processes import cores, machine
from transforms.progress import progress
from transforms.readingthreads import ReadingThreads
from transforms.records import (
    Batch,
    BatchPosition,
    ContentKey,
    Counts,
    DecodedMedia,
    Effort,
    Failure,
    Held,
    MediaError,
    MediaRef,
    ReadLimits,
    Shard,
)
from transforms.storage import StorageOptions, use_storage_options
from transforms.tars import TarSample, read_samples

BATCHES_AHEAD = 3
"""How many batches may be in reading or waiting before the model has taken the first."""

SAMPLES_AHEAD = 64
"""How many samples of a tar may be read before there is a batch to put them in."""


@dataclass
class ReadMedia(beam.PTransform[beam.PCollection[Shard], beam.PCollection[Batch]]):
    """Shards to decoded batches of up to `batch_size` items.

    A shard of references ends as one shard; a tar as one or more, of up to `shard_size` samples.
    What cannot be read or decoded travels on as failures of its batch. What the `ledger` holds,
    which of a tar's members and of unlisted versions only shows here, is left out and counted;
    with `joined` the references know of it themselves. Of a tar no more than `samples_of_tar` are
    read, where that is told. So many `processes` share the machine's cores.
    """

    decode: ImageDecoder
    limits: ReadLimits
    batch_size: int
    shard_size: int
    run_id: str = ""
    carry: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)
    ledger: LedgerSpec | None = None
    joined: bool = False
    samples_of_tar: int | None = None
    processes: int = 1

    def expand(self, pcoll: beam.PCollection[Shard]) -> beam.PCollection[Batch]:
        """Wire the reader."""
        batches: beam.PCollection[Batch] = pcoll | "ReadBatches" >> beam.ParDo(
            _ReadBatches(self)
        ).with_output_types(Batch)
        return batches


class _Pending:
    """A batch in reading: a row of pixels reserved for each of up to `capacity` items."""

    def __init__(self, shard_id: str, seq: int, capacity: int, reader: _ReadBatches) -> None:
        size = reader.settings.decode.preprocess.size
        self._shard_id = shard_id
        self._seq = seq
        self._reader = reader
        # Rows that no picture comes for are never touched, and take no memory.
        self._pixels = pixel_memory((capacity, *size, 3))
        self._encoded: dict[int, npt.NDArray[np.uint8]] = {}
        self._results: list[Future[Item]] = []
        self._listed = 0
        self._began = time.time()
        self.last = False
        self.end = False

    def __len__(self) -> int:
        return len(self._results)

    def add(self, source: MediaRef | TarSample) -> None:
        """Begin to read one more item."""
        self._listed += isinstance(source, TarSample)
        read = partial(self._read_one, len(self), source, self._reader.items)
        self._results.append(self._reader.threads.submit(read))

    def _read_one(self, row: int, source: MediaRef | TarSample, items: ItemReader) -> Item:
        item = items.read(source)
        if item.pixels is None:
            return item
        if item.pixels.ndim == 1:
            self._encoded[row] = item.pixels
            return item
        self._pixels[row] = item.pixels
        return item._replace(pixels=self._pixels[row])

    def cancel(self) -> None:
        for result in self._results:
            result.cancel()

    def wait(self) -> Batch:
        """The batch once all of its items are read, its failures apart."""
        items = [result.result() for result in self._results]
        known = [item.outcome for item in items if isinstance(item.outcome, Known)]
        failures = tuple(item.outcome for item in items if isinstance(item.outcome, Failure))
        media = tuple(item.outcome for item in items if isinstance(item.outcome, DecodedMedia))
        count = len(items)
        rows = [row for row, item in enumerate(items) if item.pixels is not None]
        progress.add(failed=len(failures), listed=self._listed - len(known))
        counts = Counts(
            listed=self._listed,
            reused=sum(item.reason is None for item in known),
            known_failures=Counter(item.reason for item in known if item.reason is not None),
        )
        return Batch(
            position=BatchPosition(self._shard_id, self._seq, self.last, self.end),
            media=media,
            pixels=self._pixels[:count] if len(rows) == count else self._pixels[rows],
            failures=failures,
            effort=Effort(began=self._began).plus(*(item.effort for item in items)),
            counts=counts,
            encoded={
                place: self._encoded[row] for place, row in enumerate(rows) if row in self._encoded
            },
        )


class _Already:
    """What the output holds, as far as this worker can tell."""

    def __init__(self, spec: LedgerSpec, *, joined: bool) -> None:
        # Not before it is asked: of several processes, only that which lists has it already.
        self._ledger = None if joined else partial(shared_ledger, spec)
        self._vectors = shared_vectors(spec)

    def state(self, ref: MediaRef) -> str | bool:
        for held in ref.held:
            if held.version == ref.version:
                return held.reason or True
        return self._ledger().state(key_of(ref)) if self._ledger else False

    def embedded(self, content: ContentKey) -> bool:
        return self._vectors.has(content)


class _ReadBatches(beam.DoFn):
    """A DoFn for its threads, and for the batches that are read ahead across shards."""

    def __init__(self, settings: ReadMedia) -> None:
        self.settings = settings

    def setup(self) -> None:
        use_storage_options(self.settings.storage_options)
        # Threads beyond the calls at a time decode while all of those wait for their answers.
        self._cores = max(1, cores() // self.settings.processes)
        self.threads = ReadingThreads(self.settings.limits.concurrency + self._cores, self._cores)
        self._ahead: deque[tuple[_Pending, Any, Any]] = deque()
        self._worker = {f"{machine()}/{os.getpid()}": cores()}
        self._waited = 0.0
        self._stream = _StreamEffort()
        self.items = self._reader()

    def _reader(self) -> ItemReader:
        spec = self.settings.ledger
        done = _Already(spec, joined=self.settings.joined) if spec else None
        return ItemReader(self.settings.decode, self.settings.limits, done, self._cores)

    def start_bundle(self) -> None:
        if self._ahead:
            # What a failed bundle left in reading belongs to its retry.
            self._abandon()
            self.items = self._reader()

    def process(
        self,
        shard: Shard,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        # All that is done here is what the model waits for, also for the bytes of a tar.
        since = time.perf_counter()
        for pending in self._tar(shard) if shard.tar else self._refs(shard):
            self._ahead.append((pending, timestamp, window))
            if len(self._ahead) > BATCHES_AHEAD:
                yield self._next(since)
                since = time.perf_counter()
        self._waited += time.perf_counter() - since

    def _refs(self, shard: Shard) -> Iterator[_Pending]:
        capacity = max(1, min(len(shard.refs), self.settings.batch_size))
        return self._batches(shard.shard_id, shard.refs, capacity)

    def _tar(self, shard: Shard) -> Iterator[_Pending]:
        (ref,) = shard.refs
        capacity = min(self.settings.batch_size, self.settings.shard_size)
        # Of the run too: another run leaves out what this one has done, and must not overwrite it.
        run = hashlib.sha256(self.settings.run_id.encode()).hexdigest()[:6]
        some = itertools.islice(self._samples(ref), self.settings.samples_of_tar)
        with ahead(some, SAMPLES_AHEAD) as read:
            samples = _Peekable(read)
            for number, part in enumerate(_parts(samples, self.settings.shard_size)):
                shard_id = f"{shard.shard_id}-{run}-{number:04d}"
                for pending in self._batches(shard_id, part, capacity):
                    pending.end = pending.last and samples.at_end
                    yield pending

    def _batches(
        self, shard_id: str, sources: Iterable[MediaRef | TarSample], capacity: int
    ) -> Iterator[_Pending]:
        """A shard's batches, in reading; which is the last is known when no other item comes."""
        seq = 0
        pending = _Pending(shard_id, seq, capacity, self)
        for source in sources:
            if len(pending) == capacity:
                yield pending
                seq += 1
                pending = _Pending(shard_id, seq, capacity, self)
            pending.add(source)
        pending.last = True
        yield pending

    def _samples(self, tar: MediaRef) -> Iterator[TarSample]:
        """A tar's samples, each with room for its bytes; the last may say why there are no more."""
        items, limits = self.items, self.settings.limits
        pictures = frozenset(names.PICTURES)
        held = {bytes.fromhex(member.version): member.reason for member in tar.held}
        since = time.perf_counter()
        try:
            with items.fetcher.open(tar) as file:
                for sample in read_samples(
                    file, tar.uri, tar.version, self.settings.carry, limits.max_bytes, pictures
                ):
                    read = time.perf_counter()
                    items.make_room(sample)
                    self._stream.add(read - since, time.perf_counter() - read)
                    key = key_of(sample.ref)
                    if key in held:
                        known = (Held(sample.ref.version, held[key]),)
                        sample = sample._replace(ref=sample.ref._replace(held=known))
                    yield sample
                    since = time.perf_counter()
        except MediaError as error:
            yield TarSample(tar, problem=error)

    def finish_bundle(self) -> Iterator[Any]:
        while self._ahead:
            yield self._next(time.perf_counter())

    def _next(self, since: float) -> WindowedValue:
        # What is yielded belongs to the shard it came from, not to the one that is read now.
        pending, timestamp, window = self._ahead.popleft()
        batch = pending.wait()
        waited, self._waited = self._waited + time.perf_counter() - since, 0.0
        effort = Effort(waiting={"device": waited}, workers=self._worker)
        batch = replace(batch, effort=batch.effort.plus(effort, self._stream.take()))
        return WindowedValue(batch, timestamp, (window,))

    def _abandon(self) -> None:
        self.items.abandon()
        for pending, _, _ in self._ahead:
            pending.cancel()
        self._ahead.clear()

    def teardown(self) -> None:
        self._abandon()
        self.threads.shutdown()


class _StreamEffort:
    """What reading a tar takes, in its thread, until the next batch takes it along."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = self._waiting = 0.0

    def add(self, busy: float, waiting: float) -> None:
        with self._lock:
            self._busy += busy
            self._waiting += waiting

    def take(self) -> Effort:
        with self._lock:
            effort = Effort({"fetch": self._busy}, waiting={"fetch": self._waiting})
            self._busy = self._waiting = 0.0
        return effort


class _Peekable(Iterator[TarSample]):
    """Samples, of which the next can be waited for without taking it."""

    def __init__(self, samples: Iterator[TarSample]) -> None:
        self._samples = samples
        self._next: TarSample | None = None

    @property
    def at_end(self) -> bool:
        if self._next is None:
            self._next = next(self._samples, None)
        return self._next is None

    def __next__(self) -> TarSample:
        if self.at_end:
            raise StopIteration
        sample, self._next = self._next, None
        assert sample is not None
        return sample


def _parts(samples: Iterator[TarSample], size: int) -> Iterator[Iterator[TarSample]]:
    """Up to `size` at a time, to be taken in order; of none, one part without any."""
    yield itertools.islice(samples, size)
    for first in samples:
        yield itertools.chain([first], itertools.islice(samples, size - 1))
