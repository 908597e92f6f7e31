"""ReadMedia: shards of references to decoded batches, concurrent, bounded, and ahead of the model.

Fetching and decoding happen in threads while the stages below work on earlier batches. The
look-ahead crosses from one shard to the next, so the model does not wait at a shard's end.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.utils.windowed_value import WindowedValue

from transforms.decoding import ImageDecoder
from transforms.progress import progress
from transforms.records import (
    Batch,
    BatchPosition,
    DecodedMedia,
    Failure,
    MediaError,
    MediaRef,
    Reason,
    Shard,
    Stage,
)
from transforms.storage import read_object

BATCHES_AHEAD = 3
"""How many batches may be in reading or waiting before the model has taken the first."""

PIXELS_AT_ONCE = 256_000_000
"""How many pixels of originals may be in decoding at a time: a gigabyte of RGBA."""


@dataclass
class ReadMedia(beam.PTransform[beam.PCollection[Shard], beam.PCollection[Batch]]):
    """Shards to decoded batches of up to `batch_size` items.

    `concurrency` objects are fetched at a time; decoding among them is bounded by the
    pixels of their originals (`PIXELS_AT_ONCE`). An object of more than `max_bytes` is not
    fetched. What cannot be read or decoded travels on as failures of its batch.
    """

    decode: ImageDecoder
    batch_size: int
    concurrency: int
    max_bytes: int

    def expand(self, pcoll: beam.PCollection[Shard]) -> beam.PCollection[Batch]:
        """Wire the reader."""
        reader = _ReadBatches(self.decode, self.batch_size, self.concurrency, self.max_bytes)
        batches: beam.PCollection[Batch] = pcoll | "ReadBatches" >> beam.ParDo(
            reader
        ).with_output_types(Batch)
        return batches


def read_bytes(ref: MediaRef, max_bytes: int) -> bytes:
    """The bytes of an object. Raises `MediaError`; one listed as too big is not fetched."""
    if ref.size is not None and ref.size > max_bytes:
        raise MediaError(Reason.TOO_MANY_BYTES, f"{ref.size} bytes, more than {max_bytes} allowed")
    try:
        data = read_object(ref.uri)
    except FileNotFoundError as error:
        raise MediaError(Reason.NOT_FOUND, str(error)) from error
    except PermissionError as error:
        raise MediaError(Reason.PERMISSION_DENIED, str(error)) from error
    # Every store's client has errors of its own; at this edge they all mean "not read".
    except Exception as error:
        raise MediaError(Reason.READ_ERROR, f"{type(error).__name__}: {error}") from error
    if len(data) > max_bytes:
        raise MediaError(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, more than {max_bytes} allowed")
    return data


class _PixelRoom:
    """Bounds the decoded originals in memory by their pixels: only large pictures ever wait.

    A bound on the number of decoders instead, as many as there are cores, left one idle at every
    handing-over: decoding alone took 12 to 22 % longer.
    """

    def __init__(self, pixels: int) -> None:
        self._limit = self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room for a picture; one larger than all the room waits for all of it."""
        pixels = min(pixels, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


class _Pending:
    """A batch whose items are being read: a row of pixels reserved for each of them."""

    def __init__(
        self, position: BatchPosition, refs: Sequence[MediaRef], reader: _ReadBatches
    ) -> None:
        size = reader.decode.preprocess.size
        self._position = position
        self._pixels: npt.NDArray[np.uint8] = np.empty((len(refs), *size, 3), np.uint8)
        self._seconds = {"fetch": 0.0, "decode": 0.0}
        self._adding = threading.Lock()
        self._results: list[Future[DecodedMedia | Failure]] = [
            reader.pool.submit(self._read_one, row, ref, reader) for row, ref in enumerate(refs)
        ]

    def _read_one(self, row: int, ref: MediaRef, reader: _ReadBatches) -> DecodedMedia | Failure:
        started = fetched = time.perf_counter()
        try:
            data = read_bytes(ref, reader.max_bytes)
            fetched = time.perf_counter()
            image = reader.decode(data, reader.room.take)
            self._pixels[row] = image.pixels
            digest = hashlib.sha256(data).hexdigest()
        except MediaError as error:
            stage = Stage.READ if fetched == started else Stage.DECODE
            fetched = max(fetched, time.perf_counter()) if stage is Stage.READ else fetched
            return Failure(ref, stage, error.reason, str(error))
        finally:
            self._spend(fetched - started, time.perf_counter() - fetched)
        return DecodedMedia(ref, digest, image.width, image.height, len(data))

    def _spend(self, fetch: float, decode: float) -> None:
        with self._adding:
            self._seconds["fetch"] += fetch
            self._seconds["decode"] += decode

    def cancel(self) -> None:
        for result in self._results:
            result.cancel()

    def wait(self) -> Batch:
        """The batch once all of its items are read, its failures apart."""
        results = [result.result() for result in self._results]
        media = {
            row: result for row, result in enumerate(results) if isinstance(result, DecodedMedia)
        }
        failures = tuple(result for result in results if isinstance(result, Failure))
        progress.add(failed=len(failures))
        return Batch(
            position=self._position,
            media=tuple(media.values()),
            pixels=self._pixels[list(media)] if failures else self._pixels,
            failures=failures,
            seconds=self._seconds,
        )


class _ReadBatches(beam.DoFn):
    """A DoFn for its thread pool, and for the batches that are read ahead across shards."""

    def __init__(
        self, decode: ImageDecoder, batch_size: int, concurrency: int, max_bytes: int
    ) -> None:
        self.decode = decode
        self.max_bytes = max_bytes
        self._batch_size = batch_size
        self._concurrency = concurrency

    def setup(self) -> None:
        self.room = _PixelRoom(PIXELS_AT_ONCE)
        self.pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="beamtag-read")
        self._ahead: deque[tuple[_Pending, Any, Any]] = deque()

    def start_bundle(self) -> None:
        # What a failed bundle left in reading belongs to its retry.
        self._abandon()

    def process(
        self,
        shard: Shard,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        count = max(1, -(-len(shard.refs) // self._batch_size))
        for seq in range(count):
            refs = shard.refs[seq * self._batch_size : (seq + 1) * self._batch_size]
            pending = _Pending(BatchPosition(shard.shard_id, seq, count), refs, self)
            self._ahead.append((pending, timestamp, window))
            if len(self._ahead) > BATCHES_AHEAD:
                yield self._next()

    def finish_bundle(self) -> Iterator[Any]:
        while self._ahead:
            yield self._next()

    def _next(self) -> WindowedValue:
        # What is yielded belongs to the shard it came from, not to the one that is read now.
        pending, timestamp, window = self._ahead.popleft()
        return WindowedValue(pending.wait(), timestamp, (window,))

    def _abandon(self) -> None:
        for pending, _, _ in self._ahead:
            pending.cancel()
        self._ahead.clear()

    def teardown(self) -> None:
        self._abandon()
        self.pool.shutdown(wait=False, cancel_futures=True)
