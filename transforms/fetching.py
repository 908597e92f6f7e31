"""Whole objects from any store: concurrent, bounded in bytes, tried again where that can help.

The clients' own retries are switched off or gone around, so that ours are the only ones: they are
counted, end at the object's deadline, and know what is worth another try.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO, NamedTuple, cast

import aiohttp
import tenacity
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from transforms.ahead import Ahead, ahead
from transforms.records import MediaError, MediaRef, Reason
from transforms.storage import locate, version_of
from transforms.storeerrors import RefusedError, describe, reason_of, transient

TRIES = 10
CONNECT_TRIES = 3
"""A web server that is not there rarely comes back; an archive of links has many of them."""
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0
STALL_SHARE = 0.25
"""A try is given up after this share of the object's deadline without a byte."""
BLOCK_BYTES = 8 * 1024 * 1024

Span = tuple[int, int]
"""First byte, and the byte after the last."""


class Fetched(NamedTuple):
    """An object's bytes, the version that the store says they are of, and the tries it took."""

    data: bytes
    version: str = ""
    retries: int = 0


class LargerError(Exception):
    """The object has more bytes than are allowed for it now: `size`, None where not told."""

    def __init__(self, size: int | None) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


Collect = Callable[[AsyncIterator[bytes], int | None], Coroutine[Any, Any, bytes]]


class Fetcher:
    """Reads objects with retries: jittered exponential backoff, up to `deadline_s` an object.

    Tried again are 408, 425, 429, 5xx, timeouts, resets and bodies that break off; not 403, not
    404. `connections` is how many calls at a time the clients are made ready for.
    """

    def __init__(self, deadline_s: float, connections: int) -> None:
        self._deadline_s = deadline_s
        self._connections = connections
        self._abandoned = threading.Event()
        self._running: set[Future[Fetched]] = set()

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
        return self._persist(uri, lambda left_s: self._once(uri, allowance, None, left_s))

    def open(self, ref: MediaRef) -> BinaryIO:
        """The object as a stream to be read once, front to back; blocks are fetched ahead.

        Reading it raises `MediaError`.
        """
        filesystem, path = self._locate(ref.uri)
        if isinstance(filesystem, LocalFileSystem):
            with _as_media_errors():
                return open(path, "rb")
        if ref.size is None or _ranged(filesystem) is None:
            with _as_media_errors():
                return cast(BinaryIO, filesystem.open(path, "rb"))
        stream = _Stream(ahead(self._blocks(ref.uri, ref.size), 2))
        return cast(BinaryIO, io.BufferedReader(stream, 1024 * 1024))

    def _blocks(self, uri: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, BLOCK_BYTES):
            span = (start, min(start + BLOCK_BYTES, size))
            once = functools.partial(self._once, uri, BLOCK_BYTES, span)
            yield self._persist(uri, once).data

    def _persist(self, uri: str, once: Callable[[float], Fetched]) -> Fetched:
        end = time.monotonic() + self._deadline_s
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_another_try),
            wait=tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
            stop=_TriedEnough()
            | tenacity.stop_before_delay(self._deadline_s)
            | tenacity.stop_when_event_set(self._abandoned),
            sleep=tenacity.sleep_using_event(self._abandoned),
            reraise=True,
        )
        try:
            fetched: Fetched = tries(lambda: once(end - time.monotonic()))
        except (LargerError, MediaError):
            raise
        # Every store's client has its own; each is told apart by `reason_of`.
        except Exception as error:
            made = int(tries.statistics.get("attempt_number", 1))
            after = f" (after {made} tries)" if made > 1 else ""
            message = f"{describe(error)}{after}"
            raise MediaError(reason_of(error), message, retries=made - 1) from error
        return fetched._replace(retries=int(tries.statistics["attempt_number"]) - 1)

    def _once(self, uri: str, allowance: int, span: Span | None, left_s: float) -> Fetched:
        filesystem, path = self._locate(uri)
        if isinstance(filesystem, LocalFileSystem):
            # Not through fsspec's file object: among many threads it cost a whole job a tenth.
            with open(path, "rb") as file:
                data = file.read(allowance + 1)
            if len(data) > allowance:
                raise LargerError(None)
            return Fetched(data)
        if not isinstance(filesystem, AsyncFileSystem):
            return _read_sync(filesystem, path, allowance)
        ranged = _ranged(filesystem)

        def read(collect: Collect) -> Coroutine[Any, Any, Fetched]:
            if ranged is not None:
                return ranged(filesystem, path, span, collect)
            if isinstance(filesystem, HTTPFileSystem):
                return _read_http(filesystem, path, collect)
            return _read_async(filesystem, path, allowance)

        reading = _patiently(read, allowance, self._deadline_s * STALL_SHARE)
        running = asyncio.run_coroutine_threadsafe(reading, filesystem.loop)
        self._running.add(running)
        try:
            return running.result(0 if self._abandoned.is_set() else left_s)
        finally:
            self._running.discard(running)
            running.cancel()

    def _locate(self, uri: str) -> tuple[Any, str]:
        scheme = uri.partition("://")[0]
        try:
            if scheme in ("s3", "s3a"):
                filesystem, path = locate(uri, **_s3_arguments(self._connections))
                filesystem.retries = 1
                return filesystem, path
            return locate(uri)
        except (ValueError, ImportError) as error:
            raise MediaError(Reason.UNSUPPORTED_URI, str(error)) from error


def _s3_arguments(connections: int) -> dict[str, Any]:
    """A client of its own for reading: no retries but ours, and as many connections as we use.

    botocore's own default of 10 connections would be the bound on everything.
    """
    import fsspec

    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    once = {"retries": {"total_max_attempts": 1}, "max_pool_connections": connections}
    return {"config_kwargs": {**once, **given}}


def _ranged(filesystem: Any) -> Callable[..., Coroutine[Any, Any, Fetched]] | None:
    """How to read all or a part of an object, on the stores that we know how to ask."""
    protocols = filesystem.protocol
    if "gs" in protocols:
        return _read_gcs
    if "s3" in protocols:
        return _read_s3
    return None


async def _read_gcs(fs: Any, path: str, span: Span | None, collect: Collect) -> Fetched:
    # The session itself: gcsfs's own call tries six times, and tells nobody.
    await fs._set_session()
    async with fs.session.get(
        fs.url(path), headers=fs._get_headers(_range(span)), params=fs._get_params({})
    ) as response:
        if response.status >= 400:
            raise RefusedError(response.status, await response.content.read(2000))
        data = await collect(response.content.iter_any(), response.content_length)
        return Fetched(data, response.headers.get("x-goog-generation", ""))


async def _read_s3(fs: Any, path: str, span: Span | None, collect: Collect) -> Fetched:
    bucket, key, version = fs.split_path(path)
    which = {"VersionId": version} if version else {}
    response = await fs._call_s3("get_object", Bucket=bucket, Key=key, **which, **_range(span))
    body = response["Body"]
    try:
        data = await collect(body.iter_chunks(1024 * 1024), response.get("ContentLength"))
        return Fetched(data, response.get("ETag", "").strip('"'))
    finally:
        body.close()


async def _read_http(fs: Any, url: str, collect: Collect) -> Fetched:
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), **fs.kwargs) as response:
        if response.status >= 400:
            raise RefusedError(response.status, await response.content.read(2000))
        data = await collect(response.content.iter_any(), response.content_length)
        headers = response.headers
        return Fetched(data, headers.get("ETag", headers.get("Last-Modified", "")).strip('"'))


async def _read_async(fs: Any, path: str, allowance: int) -> Fetched:
    details = await fs._info(path)
    _refuse_larger(details, allowance)
    return Fetched(await fs._cat_file(path), version_of(details))


def _read_sync(fs: Any, path: str, allowance: int) -> Fetched:
    details = fs.info(path)
    _refuse_larger(details, allowance)
    return Fetched(fs.cat_file(path), version_of(details))


def _refuse_larger(details: dict[str, Any], allowance: int) -> None:
    size = details.get("size")
    if size is not None and size > allowance:
        raise LargerError(size)


def _range(span: Span | None) -> dict[str, str]:
    return {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}


async def _patiently(
    reading: Callable[[Collect], Coroutine[Any, Any, Fetched]], allowance: int, stall_s: float
) -> Fetched:
    """Read within the allowance, and never `stall_s` without a byte; raises TimeoutError."""
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(stall_s) as patience:

        async def collect(chunks: AsyncIterator[bytes], length: int | None) -> bytes:
            if length is not None and length > allowance:
                raise LargerError(length)
            parts = []
            total = 0
            async for chunk in chunks:
                total += len(chunk)
                if total > allowance:
                    raise LargerError(None)
                parts.append(chunk)
                patience.reschedule(clock() + stall_s)
            return b"".join(parts)

        return await reading(collect)


def _worth_another_try(error: BaseException) -> bool:
    return not isinstance(error, (LargerError, MediaError)) and transient(error)


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
