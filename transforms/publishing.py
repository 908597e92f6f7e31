"""How a file appears: whole or not at all, tried again where that can help, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import fsspec
import pyarrow as pa
import tenacity
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from transforms.runlock import LostPlaceError
from transforms.storage import locate
from transforms.storeerrors import RefusedError, describe, transient
from transforms.tabletext import printable

TRIES = 8
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0
PATIENCE_S = 120.0
"""No further try begins after this long, and the time that the bytes themselves may take."""
TRY_S = 60.0
"""A try that has no answer by then, and the time that its bytes may take, is given up."""
SLOWEST_BYTES_PER_S = 1_000_000
LARGEST_PUT = 5 * 2**30
"""What S3 takes in one request."""

TABLES = ("embeddings", "predictions", "failures", "runs")
_ASIDE = re.compile(r"\..+\.(?P<run>[^.]*)\.[0-9a-f]{8}\.aside", re.DOTALL)

# Of S3, with statuses that are permanent elsewhere: a body that arrived broken, another's write.
_WORTH_ANOTHER_TRY = frozenset(
    {
        "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted",
        "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
_BROKEN_ANSWERS = frozenset({"IncompleteRead", "ResponseParserError"})
# Network and FUSE mounts that cannot flush a file or folder say so in one of these ways.
_NO_FLUSHING = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


class PublishError(OSError):
    """A file could not be written; one line tells which, where and why."""


class Aside(NamedTuple):
    """A file that a publish of `run_id` has not finished; `modified` in seconds of the epoch."""

    path: str
    run_id: str
    modified: float


def publish(
    url: str,
    content: bytes | memoryview | pa.Buffer,
    run_id: str = "",
    check: Callable[[], None] | None = None,
) -> None:
    """Put `content` under `url` in one step: a reader sees the old file, or the new one, whole.

    A local file is written aside, flushed to the disk and renamed; an object store gets it in one
    request, of which nothing stays when it breaks off (on S3 up to 5 GiB). What a store may do
    when asked again is tried again, up to `TRIES`. `check` is called at the last moment before the
    file appears, and stops that by `LostPlaceError`. Raises `PublishError`.
    """
    slack_s = len(content) / SLOWEST_BYTES_PER_S
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_worth_another_try),
        wait=tenacity.wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
        stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_before_delay(PATIENCE_S + slack_s),
        reraise=True,
    )
    try:
        tries(lambda: _put(url, content, run_id, check, TRY_S + slack_s))
    except LostPlaceError:
        raise
    # Every store's client has its own errors, and they share no kind.
    except Exception as error:
        made = int(tries.statistics.get("attempt_number", 1))
        after = f" (after {made} tries)" if made > 1 else ""
        line = " ".join(f"cannot write {printable(url)}: {_why(error, url)}{after}".split())
        raise PublishError(line) from error


def asides(output: str) -> Iterator[Aside]:
    """What publishes left, or are writing now, in a local output; nothing of a store."""
    filesystem, path = locate(output)
    if not isinstance(filesystem, LocalFileSystem):
        return
    yield from _asides_in(path)
    for table in TABLES:
        for folder, _, _ in os.walk(os.path.join(path, table)):
            yield from _asides_in(folder)


def tidy(output: str, dead: Collection[str], older_than_s: float = 24 * 3600) -> int:
    """Remove what runs that are `dead` left aside, or any run that long ago; gives how many.

    What another account left, and may not be removed, stays.
    """
    long_ago = time.time() - older_than_s
    removed = 0
    for aside in asides(output):
        if aside.run_id in dead or aside.modified < long_ago:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.unlink(aside.path)
                removed += 1
    return removed


def _asides_in(folder: str) -> Iterator[Aside]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        if not (match := _ASIDE.fullmatch(entry.name)):
            continue
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                modified = entry.stat(follow_symlinks=False).st_mtime
                yield Aside(entry.path, match["run"], modified)


# One try.


def _put(
    url: str,
    content: bytes | memoryview | pa.Buffer,
    run_id: str,
    check: Callable[[], None] | None,
    patience_s: float,
) -> None:
    filesystem, path = _locate_for_writing(url)
    if isinstance(filesystem, LocalFileSystem):
        _replace(Path(path), content, run_id, check)
        return
    if check is not None:
        check()
    data = content if isinstance(content, bytes) else bytes(content)
    if not isinstance(filesystem, AsyncFileSystem):
        filesystem.pipe_file(path, data)
        return
    running = asyncio.run_coroutine_threadsafe(
        _patiently(filesystem, path, data, patience_s), filesystem.loop
    )
    try:
        running.result()
    finally:
        running.cancel()
    # Also of the client that lists: where writes have one of their own, it would not know.
    locate(url)[0].invalidate_cache(filesystem._parent(path))


def _locate_for_writing(url: str) -> tuple[Any, str]:
    """`locate`, with a client of S3 that makes no retries: those of `publish` are the only ones."""
    if not url.startswith(("s3://", "s3a://")):
        return locate(url)
    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # How long to wait for an answer is decided here too; the client's 15 s are short for 5 GiB.
    once = {"retries": {"total_max_attempts": 1}, "read_timeout": None}
    filesystem, path = locate(url, config_kwargs={**once, **given})
    filesystem.retries = 1
    return filesystem, path


def _replace(
    path: Path,
    content: bytes | memoryview | pa.Buffer,
    run_id: str,
    check: Callable[[], None] | None = None,
) -> None:
    _make_folder(path.parent)
    # Not `*.parquet`, and hidden: no reader's pattern takes it for a table's file.
    aside = path.with_name(f".{path.name}.{run_id}.{secrets.token_hex(4)}.aside")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            _flush_to_disk(file.fileno())
        if check is not None:
            # Whoever takes this run's place after that removes the file aside.
            check()
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    _flush_folder(path.parent)


def _make_folder(folder: Path) -> None:
    made = []
    place = folder
    while not place.exists():
        made.append(place)
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    folder.mkdir(parents=True, exist_ok=True)
    for place in made:
        _flush_folder(place.parent)


def _flush_folder(folder: Path) -> None:
    """Or the name of what is in it may be lost with the power."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # It can be written and not read; so it cannot be flushed either.
    try:
        _flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _flush_to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSHING:
            raise


async def _patiently(filesystem: Any, path: str, data: bytes, patience_s: float) -> None:
    """One request, within the time; raises TimeoutError."""
    protocols = filesystem.protocol
    async with asyncio.timeout(patience_s):
        if "s3" in protocols:
            # It makes one request below twice this size. Of many, the parts would stay behind.
            await filesystem._pipe_file(path, data, chunksize=LARGEST_PUT // 2)
        elif "gs" in protocols:
            await _put_gcs(filesystem, path, data)
        else:
            await filesystem._pipe_file(path, data)


async def _put_gcs(fs: Any, path: str, data: bytes) -> None:
    # The session itself: gcsfs's own call tries six times, and in parts above 50 MB.
    bucket, key, _ = fs.split_path(path)
    await fs._set_session()
    async with fs.session.post(
        f"{fs._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
        params=fs._get_params({"uploadType": "media", "name": key}),
        headers=fs._get_headers({"Content-Type": "application/octet-stream"}),
        data=io.BytesIO(data),
        timeout=aiohttp.ClientTimeout(total=None),
    ) as response:
        said = await response.read()
        if response.status != 200:
            raise RefusedError(response.status, _message_of_gcs(said))


def _message_of_gcs(body: bytes) -> bytes:
    """What a person should read of an error's JSON; all of what is none."""
    try:
        return str(json.loads(body)["error"]["message"]).encode("utf-8", "replace")
    except (ValueError, KeyError, TypeError):
        return body


# What went wrong.


def _worth_another_try(error: BaseException) -> bool:
    if transient(error) or _BROKEN_ANSWERS.intersection(
        kind.__name__ for kind in type(error).__mro__
    ):
        return True
    return _answer_of_s3(error).get("Error", {}).get("Code") in _WORTH_ANOTHER_TRY


def _answer_of_s3(error: BaseException) -> dict[str, Any]:
    """What botocore keeps of the answer that s3fs's error comes from."""
    for known in (error, error.__cause__):
        response = getattr(known, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _why(error: BaseException, url: str) -> str:
    """The cause in plain words, with the folder that it is about."""
    if isinstance(error, RefusedError):
        return _refusal(error.status, str(error).partition(": ")[2])
    if answer := _answer_of_s3(error):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        told = answer.get("Error", {})
        return _refusal(status, str(told.get("Message") or told.get("Code", "")))
    if isinstance(error, OSError) and error.strerror:
        place = str(error.filename or "")
        told = not place or url.endswith(place) or place.endswith(".aside")
        return error.strerror if told else f"{error.strerror} ({printable(place)})"
    if isinstance(error, (ValueError, ImportError)):
        return str(error)  # In which `locate` tells of stores that it cannot reach.
    return describe(error)


def _refusal(status: int, said: str) -> str:
    told = f"{status} {said}".strip()
    if status in (401, 403):
        return f"the store refuses ({told})"
    if status == 404:
        return f"the store has no such place ({told})"
    return f"the store answers {told}"
