"""Whole objects from any store: concurrent, within a deadline, tried again where that can help."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO, NamedTuple, cast

import aiohttp
import tenacity
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from transforms.ahead import Ahead, ahead
from transforms.records import MediaError, MediaRef, Reason
from transforms.storeerrors import describe, reason_of, transient
from transforms.storereads import (
    LargerError,
    NoRangesError,
    Span,
    gives_ranges,
    locate_for_reading,
    read_async,
    read_local,
    read_sync,
)
from transforms.tabletext import printable

TRIES = 10
CONNECT_TRIES = 3
"""A web server that is not there rarely comes back; an archive of links has many of them."""
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0
STALL_SHARE = 0.25
"""A try is given up after this share of the object's deadline without a byte."""
BLOCK_BYTES = 8 * 1024 * 1024


class Fetched(NamedTuple):
    """An object's bytes, the version that the store says they are of, and the tries it took."""

    data: bytes
    version: str = ""
    retries: int = 0


class Fetcher:
    """Reads objects with retries: jittered exponential backoff, up to `deadline_s` an object.

    Tried again are 408, 425, 429, 5xx, timeouts, resets and bodies that break off; not 403, not
    404. `connections` is how many calls at a time the clients are made ready for.
    """

    def __init__(self, deadline_s: float, connections: int) -> None:
        self._deadline_s = deadline_s
        self._connections = connections
        self._abandoned = threading.Event()
        self._running: set[Future[str]] = set()

    def abandon(self) -> None:
        """Break off what is being read, and what will be: nobody waits for it any more."""
        self._abandoned.set()
        for running in list(self._running):
            running.cancel()

    def fetch(self, uri: str, allowance: int) -> Fetched:
        """The whole object, its name taken literally.

        Raises `LargerError`, before the body is transferred where the store tells its length, and
        `MediaError`.
        """
        if uri.startswith("/"):
            # Among many threads, every lock and object on the way counts: a tenth of a whole job.
            with contextlib.suppress(OSError):
                return Fetched(read_local(uri, allowance))
        return self._persist(lambda left_s: self._whole(uri, allowance, None, left_s))

    def open(self, ref: MediaRef) -> BinaryIO:
        """The object as a stream to be read once, front to back; blocks are fetched ahead.

        Raises `MediaError`, when it is opened or read.
        """
        filesystem, path = self._locate(ref.uri)
        if isinstance(filesystem, AsyncFileSystem):
            blocks = self._blocks(ref.uri, ref.size, gives_ranges(filesystem))
        else:
            blocks = _blocks_of(filesystem, path)
        return cast(BinaryIO, io.BufferedReader(_Stream(ahead(blocks, 2)), 1024 * 1024))

    def _blocks(self, uri: str, size: int | None, ranged: bool) -> Iterator[bytes]:
        given = 0
        if ranged and size:
            with contextlib.suppress(NoRangesError):
                while given < size:
                    span = (given, min(given + BLOCK_BYTES, size))
                    once = functools.partial(self._whole, uri, BLOCK_BYTES, span)
                    yield self._persist(once).data
                    given = span[1]
                return
        # All of it, to a disk: it may be of any length, and a try may break off.
        with tempfile.TemporaryFile(prefix="beamtag-") as file:
            self._persist(lambda left_s: self._download(uri, file, left_s), unbounded=True)
            file.seek(given)
            while block := file.read(BLOCK_BYTES):
                yield block

    def _persist(self, once: Callable[[float], Fetched], unbounded: bool = False) -> Fetched:
        deadline_s = float("inf") if unbounded else self._deadline_s
        end = time.monotonic() + deadline_s
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_another_try),
            wait=tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
            stop=_TriedEnough()
            | tenacity.stop_before_delay(deadline_s)
            | tenacity.stop_when_event_set(self._abandoned),
            sleep=tenacity.sleep_using_event(self._abandoned),
            reraise=True,
        )
        try:
            fetched: Fetched = tries(lambda: once(end - time.monotonic()))
        except (LargerError, NoRangesError, MediaError):
            raise
        # Every store's client has its own; each is told apart by `reason_of`.
        except Exception as error:
            made = int(tries.statistics.get("attempt_number", 1))
            after = f" (after {made} tries)" if made > 1 else ""
            message = f"{describe(error)}{after}"
            raise MediaError(reason_of(error), message, retries=made - 1) from error
        return fetched._replace(retries=int(tries.statistics["attempt_number"]) - 1)

    def _whole(self, uri: str, allowance: int, span: Span | None, left_s: float) -> Fetched:
        """One try to read an object, or a part of it, into memory."""
        filesystem, path = self._locate(uri)
        if isinstance(filesystem, LocalFileSystem):
            return Fetched(read_local(path, allowance))
        if not isinstance(filesystem, AsyncFileSystem):
            data, version = read_sync(filesystem, path, allowance)
            return Fetched(data, version)
        parts: list[bytes] = []
        version = self._transfer(filesystem, path, span, allowance, parts.append, left_s)
        return Fetched(b"".join(parts), printable(version))

    def _download(self, uri: str, file: Any, left_s: float) -> Fetched:
        """One try to copy an object of any length into a file."""
        file.seek(0)
        file.truncate()
        filesystem, path = self._locate(uri)
        self._transfer(filesystem, path, None, sys.maxsize, file.write, left_s)
        return Fetched(b"")

    def _transfer(
        self,
        filesystem: Any,
        path: str,
        span: Span | None,
        allowance: int,
        accept: Callable[[bytes], Any],
        left_s: float,
    ) -> str:
        stall_s = self._deadline_s * STALL_SHARE
        running = asyncio.run_coroutine_threadsafe(
            _patiently(filesystem, path, span, allowance, accept, stall_s), filesystem.loop
        )
        self._running.add(running)
        try:
            if self._abandoned.is_set():
                running.cancel()
            return running.result(None if left_s == float("inf") else left_s)
        finally:
            self._running.discard(running)
            running.cancel()

    def _locate(self, uri: str) -> tuple[Any, str]:
        try:
            return locate_for_reading(uri, self._connections)
        except (ValueError, ImportError) as error:
            raise MediaError(Reason.UNSUPPORTED_URI, str(error)) from error


async def _patiently(
    filesystem: Any,
    path: str,
    span: Span | None,
    allowance: int,
    accept: Callable[[bytes], Any],
    stall_s: float,
) -> str:
    """Read within the allowance, and never `stall_s` without a byte; raises TimeoutError."""
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(stall_s) as patience:

        async def take(chunks: AsyncIterator[bytes], length: int | None) -> None:
            if length is not None and length > allowance:
                raise LargerError(length)
            total = 0
            async for chunk in chunks:
                total += len(chunk)
                if total > allowance:
                    raise LargerError(None)
                accept(chunk)
                patience.reschedule(clock() + stall_s)

        return await read_async(filesystem, path, span, allowance, take)


def _blocks_of(filesystem: Any, path: str) -> Iterator[bytes]:
    with _as_media_errors(), filesystem.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _worth_another_try(error: BaseException) -> bool:
    return not isinstance(error, (LargerError, NoRangesError, MediaError)) and transient(error)


class _TriedEnough(tenacity.stop.stop_base):
    """After `TRIES`, or `CONNECT_TRIES` where there is nobody to connect to."""

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        most = CONNECT_TRIES if isinstance(error, aiohttp.ClientConnectorError) else TRIES
        return retry_state.attempt_number >= most


@contextlib.contextmanager
def _as_media_errors() -> Iterator[None]:
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # as in Fetcher._persist
        raise MediaError(reason_of(error), describe(error)) from error


class _Stream(io.RawIOBase):
    """A readable file over blocks that arrive one after the other."""

    def __init__(self, blocks: Ahead[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        self._blocks.close()
        super().close()
