"""One call to a store for an object or a part of it, through the store's own client.

The clients' own retries are switched off or gone around: those of `fetching` are the only ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from errno import EINVAL, EISDIR
from typing import Any

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem

from transforms.storage import locate, version_of
from transforms.storeerrors import RefusedError

Span = tuple[int, int]
"""First byte, and the byte after the last."""

Take = Callable[[AsyncIterator[bytes], int | None], Coroutine[Any, Any, None]]
"""Takes the chunks of a body, of whose length it is told, or None."""

# Deadlines are ours; aiohttp's own would end a large object after five minutes.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
_CHUNK = 1024 * 1024


class LargerError(Exception):
    """The object has more bytes than are allowed for it now: `size`, None where not told."""

    def __init__(self, size: int | None) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class NoRangesError(Exception):
    """A part was asked for, and the answer was all of it."""


def read_local(path: str, allowance: int) -> bytes:
    """A local file's content. Raises OSError, also for what is no file, and `LargerError`."""
    # Without waiting: a pipe that somebody listed would be waited for without end. And without a
    # file object: each of its calls lets go of the interpreter, and waits to have it back.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        details = os.fstat(file)
        if not stat.S_ISREG(details.st_mode):
            kind = EISDIR if stat.S_ISDIR(details.st_mode) else EINVAL
            raise OSError(kind, "not a regular file", path)
        if details.st_size > allowance:
            raise LargerError(details.st_size)
        # One more, by which the end is seen.
        data = os.read(file, details.st_size + 1)
        while len(data) != details.st_size and (more := os.read(file, _CHUNK)):
            data += more
        return data
    finally:
        os.close(file)


def locate_for_reading(uri: str, connections: int) -> tuple[Any, str]:
    """`locate`, with a client of S3 that makes no retries and so many connections at a time.

    botocore's own default of 10 connections would be the bound on everything.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return locate(uri)
    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    once = {"retries": {"total_max_attempts": 1}, "max_pool_connections": connections}
    filesystem, path = locate(uri, config_kwargs={**once, **given})
    filesystem.retries = 1
    return filesystem, path


def gives_ranges(filesystem: Any) -> bool:
    """Whether the store can be asked for a part of an object."""
    return _protocol(filesystem) in ("gs", "s3", "http")


def read_sync(filesystem: Any, path: str, allowance: int) -> tuple[bytes, str]:
    """The bytes and the version of an object of a store whose client is not asynchronous."""
    details = filesystem.info(path)
    _refuse_larger(details, allowance)
    return filesystem.cat_file(path), version_of(details)


async def read_async(
    filesystem: AsyncFileSystem, path: str, span: Span | None, allowance: int, take: Take
) -> str:
    """Hand the body to `take`; gives the version of the object, empty where none is told."""
    match _protocol(filesystem):
        case "gs":
            return await _read_gcs(filesystem, path, span, take)
        case "s3":
            return await _read_s3(filesystem, path, span, take)
        case "http":
            return await _read_http(filesystem, path, span, take)
    details = await filesystem._info(path)
    _refuse_larger(details, allowance)
    data = await filesystem._cat_file(path)
    await take(_only(data), len(data))
    return version_of(details)


def _protocol(filesystem: Any) -> str:
    protocols = filesystem.protocol
    if isinstance(filesystem, HTTPFileSystem):
        return "http"
    return next((known for known in ("gs", "s3") if known in protocols), "")


async def _read_gcs(fs: Any, path: str, span: Span | None, take: Take) -> str:
    # The session itself: gcsfs's own call tries six times, and tells nobody.
    await fs._set_session()
    headers, params = fs._get_headers(_range(span)), fs._get_params({})
    async with fs.session.get(
        fs.url(path), headers=headers, params=params, timeout=_NO_TIMEOUT
    ) as response:
        await _take_body(response, span, take)
        return str(response.headers.get("x-goog-generation", ""))


async def _read_s3(fs: Any, path: str, span: Span | None, take: Take) -> str:
    bucket, key, version = fs.split_path(path)
    which = {"VersionId": version} if version else {}
    response = await fs._call_s3("get_object", Bucket=bucket, Key=key, **which, **_range(span))
    body = response["Body"]
    try:
        if span is not None and not response.get("ContentRange"):
            raise NoRangesError
        await take(body.iter_chunks(_CHUNK), response.get("ContentLength"))
        return str(response.get("ETag", "")).strip('"')
    finally:
        body.close()


async def _read_http(fs: Any, url: str, span: Span | None, take: Take) -> str:
    session = await fs.set_session()
    options = {"timeout": _NO_TIMEOUT, **fs.kwargs}
    options["headers"] = {**options.get("headers", {}), **_range(span)}
    async with session.get(fs.encode_url(url), **options) as response:
        await _take_body(response, span, take)
        headers = response.headers
        return version_of(headers) if "ETag" in headers else headers.get("Last-Modified", "")


async def _take_body(response: Any, span: Span | None, take: Take) -> None:
    if span is not None and response.status == 200:
        raise NoRangesError
    if response.status != (200 if span is None else 206):
        raise RefusedError(response.status, await response.content.read(2000))
    # What is packed comes out longer than the length that is told.
    packed = "Content-Encoding" in response.headers
    await take(response.content.iter_any(), None if packed else response.content_length)


async def _only(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _refuse_larger(details: dict[str, Any], allowance: int) -> None:
    size = details.get("size")
    if size is not None and size > allowance:
        raise LargerError(size)


def _range(span: Span | None) -> dict[str, str]:
    return {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
