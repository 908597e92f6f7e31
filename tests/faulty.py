"""An HTTP server that is slow and fails on purpose: in front of a real emulator, or over a folder.

    python tests/faulty.py --port=8080 --upstream=http://127.0.0.1:5000 --faults=0.3
    python tests/faulty.py --port=8080 --folder=pictures --delay=0.05

In front of an emulator it passes on what it gets, byte for byte, and only `Connection` headers are
its own. Over a folder it answers `GET` and `HEAD` as a static server (`/path`), as S3 with
path-style addresses (`/bucket/key`, ListObjectsV2) and as the JSON API of GCS
(`/download/storage/v1/b/bucket/o/object`, metadata, listing); a bucket is a folder in the folder.

What it did is at `GET /_faulty/counts`; `POST /_faulty/reset` forgets it, attempts included, so
that the same faults come again; `GET /_faulty/status/404` answers with that status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import mimetypes
import os
import re
import socket
import stat
import struct
import sys
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit
from xml.sax.saxutils import escape

from servers import _serving, free_port

KINDS = ("503", "429", "500", "408", "reset", "stall", "cut")
"""The faults by default; any other status is one too, and so is `hang`, a stall half-way."""

BLOCK = 1 << 18
PAGE = 1000
S3_CODES = {
    404: "NoSuchKey", 408: "RequestTimeout", 429: "TooManyRequests", 500: "InternalError",
    503: "SlowDown",
}  # fmt: skip
# What an S3 address asks for that is not the bytes of an object.
S3_QUERIES = {
    "acl", "attributes", "cors", "delimiter", "lifecycle", "list-type", "location", "marker",
    "policy", "prefix", "tagging", "uploadId", "uploads", "versioning", "versions",
}  # fmt: skip
GCS_APIS = ("/storage/v1/", "/download/storage/v1/", "/upload/storage/v1/", "/batch/storage/v1")
GCS_PATH = re.compile(r"(/download)?/storage/v1/b/([^/]+)(?:/(o)(?:/(.+))?)?")


# What a test holds of the server.


@dataclass(frozen=True)
class Faulty:
    """A running server."""

    url: str

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_faulty/counts", timeout=10) as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts

    def reset(self) -> None:
        request = urllib.request.Request(f"{self.url}/_faulty/reset", method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def faulty_server(
    *,
    upstream: str | None = None,
    folder: Path | str | None = None,
    delay: float = 0.0,
    faults: float = 0.0,
    kinds: Sequence[str] = KINDS,
    most: int = 3,
    seed: int = 0,
    only: str | None = None,
    methods: Sequence[str] = ("GET",),
    retry_after: int | None = None,
    count_paths: bool = False,
) -> Iterator[Faulty]:
    """The server in a process of its own, once it answers; the options are those of `main`."""
    options = {
        "upstream": upstream, "folder": folder, "delay": delay, "faults": faults, "most": most,
        "kinds": ",".join(kinds), "seed": seed, "only": only, "methods": ",".join(methods),
        "retry_after": retry_after,
    }  # fmt: skip
    port = free_port()
    command = [sys.executable, __file__, f"--port={port}"]
    command += [f"--{name}={value}" for name, value in options.items() if value is not None]
    command += ["--count_paths"] * count_paths
    url = f"http://127.0.0.1:{port}"
    # Its own address, so that asking whether it is there is not counted.
    with _serving(command, f"{url}/_faulty/counts"):
        yield Faulty(url)


# Which requests fail, and how.


@dataclass
class _History:
    attempts: int = 0
    failures: int = 0
    in_a_row: int = 0


@dataclass
class Plan:
    """Faults by path and attempt, nothing else: whoever asks in the same order gets the same."""

    share: float = 0.0
    kinds: Sequence[str] = KINDS
    most: int = 3
    seed: int = 0
    seen: dict[str, _History] = field(default_factory=dict)

    def next(self, path: str) -> str | None:
        """The fault of the next attempt on this path, at most `most` of them in a row."""
        history = self.seen.setdefault(path, _History())
        history.attempts += 1
        if history.in_a_row >= self.most or self._draw(path, history.attempts) >= self.share:
            history.in_a_row = 0
            return None
        # Every path starts somewhere else in the rotation, or most faults would be the first kind.
        start = int(self._draw(path, 0) * len(self.kinds))
        kind = self.kinds[(start + history.failures) % len(self.kinds)]
        history.failures += 1
        history.in_a_row += 1
        return kind

    def _draw(self, path: str, attempt: int) -> float:
        digest = hashlib.blake2b(f"{self.seed}\0{attempt}\0{path}".encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big") / 2**64


def fetches_object(target: str, *, in_bucket: bool) -> bool:
    """Whether this path and query are those of an object's bytes, not of a listing or the like."""
    path, _, query = target.partition("?")
    if path.startswith(GCS_APIS):
        return path.startswith("/download/") or "alt=media" in query.split("&")
    if query and not S3_QUERIES.isdisjoint(part.partition("=")[0] for part in query.split("&")):
        return False
    return not path.endswith("/") and ("/" in path[1:] or not in_bucket)


# HTTP/1.1, as little of it as two origins need.


class _NothingToCutError(Exception):
    """An answer without a body, or one whose end only the closing of the connection shows."""


class _BadGatewayError(Exception):
    """The upstream server went away before it had answered."""


@dataclass
class _Counts:
    requests: int = 0
    objects: int = 0
    bytes: int = 0
    most_at_once: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        # In place: every open connection counts here.
        self.requests = self.objects = self.bytes = self.most_at_once = 0
        self.faults.clear()


def _parse(raw: bytes) -> tuple[str, list[bytes], dict[str, str]]:
    """The first line, the lines of the headers as they are, and the headers by lower-case name."""
    first, *lines = raw[:-4].split(b"\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return first.decode("latin-1"), lines, headers


class _Request:
    def __init__(self, raw: bytes) -> None:
        first, self.lines, self.headers = _parse(raw)
        self.method, self.target, version = first.split(" ")
        self.path, _, self.query = self.target.partition("?")
        asked = self.headers.get("connection", "").lower()
        self.keep = asked != "close" if version == "HTTP/1.1" else asked == "keep-alive"

    @property
    def has_body(self) -> bool:
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"


@dataclass
class _Client:
    """A connection, and the way back."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    counts: _Counts

    async def send(
        self,
        request: _Request,
        status: int,
        headers: dict[str, str],
        body: bytes,
        *,
        half: bool = False,
        length: int | None = None,
    ) -> None:
        """An answer that is in memory; `length` only where HEAD tells of another than `body`'s."""
        if half and (request.method == "HEAD" or not body):
            raise _NothingToCutError
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body) if length is None else length}"]
        if not request.keep:
            lines += ["Connection: close"]
        if request.method == "HEAD":
            body = b""
        elif half:
            body = body[: len(body) // 2]
        self.writer.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
        self.counts.bytes += len(body)
        await self.writer.drain()

    async def silence(self) -> None:
        """Nothing more, until the client goes away."""
        while await self.reader.read(BLOCK):
            pass

    def abort(self) -> None:
        # Without lingering, closing sends a reset instead of a polite end.
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def _error(path: str, status: int, code: str = "") -> tuple[dict[str, str], bytes]:
    """Headers and body of an error, in the words of the store that the path belongs to."""
    words = f"{_phrase(status)}, says tests/faulty.py"
    if path.startswith(GCS_APIS):
        details = {"domain": "global", "reason": code or "backendError", "message": words}
        error = {"code": status, "message": words, "errors": [details]}
        return {"Content-Type": "application/json"}, json.dumps({"error": error}).encode()
    code = code or S3_CODES.get(status, "Error")
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{words}</Message></Error>"
    )
    return {"Content-Type": "application/xml"}, text.encode()


class _Origin(Protocol):
    async def answer(self, request: _Request, client: _Client, *, half: bool) -> None:
        """Send the whole answer, or its head and half of its body.

        Clears `request.keep` where the connection cannot go on.
        """


# In front of another server.


class _Upstream:
    """Passes requests on, each on a connection of its own, bodies as they come."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"{url} is not http://HOST:PORT")
        self._address = (parts.hostname, parts.port or 80)

    async def answer(self, request: _Request, client: _Client, *, half: bool) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._address, limit=BLOCK)
        except OSError as error:
            raise _BadGatewayError from error
        # Both ways at once: an answer may come before the body is sent, as `100 Continue` does.
        sending = asyncio.create_task(self._send(request, client, writer))
        try:
            await self._receive(request, client, reader, half)
        finally:
            if not sending.done():
                request.keep = False
                sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()

    async def _send(self, request: _Request, client: _Client, writer: asyncio.StreamWriter) -> None:
        first = f"{request.method} {request.target} HTTP/1.1".encode("latin-1")
        lines = [first, *_passed_on(request.lines), b"Connection: close\r\n\r\n"]
        try:
            writer.write(b"\r\n".join(lines))
            await writer.drain()
            if request.has_body:
                await _relay(client.reader, writer, request.headers)
        except (OSError, asyncio.IncompleteReadError):
            # Or the upstream server would wait for the rest of a body that nobody sends.
            request.keep = False
            writer.close()

    async def _receive(
        self, request: _Request, client: _Client, reader: asyncio.StreamReader, half: bool
    ) -> None:
        status = 100
        while status < 200:
            try:
                raw = await reader.readuntil(b"\r\n\r\n")
            except (OSError, asyncio.IncompleteReadError) as error:
                raise _BadGatewayError from error
            first, lines, headers = _parse(raw)
            status = int(first.split(" ")[1])
            if status < 200:
                client.writer.write(raw)
        empty = request.method == "HEAD" or status in (204, 304)
        if half and (empty or not headers.keys() & {"content-length", "transfer-encoding"}):
            raise _NothingToCutError
        if half and headers.get("content-length") == "0":
            raise _NothingToCutError
        if not (empty or headers.keys() & {"content-length", "transfer-encoding"}):
            request.keep = False
        # An emulator that speaks HTTP/1.0 does so to us; to the client it is this server that does.
        answer = [b"HTTP/1.1 " + first.partition(" ")[2].encode("latin-1"), *_passed_on(lines)]
        if not request.keep:
            answer.append(b"Connection: close")
        client.writer.write(b"\r\n".join([*answer, b"\r\n"]))
        if not empty:
            await _relay(reader, client.writer, headers, half=half, counts=client.counts)
        await client.writer.drain()


def _passed_on(lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line.partition(b":")[0].strip().lower() not in (b"connection", b"keep-alive"):
            yield line


async def _relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    headers: dict[str, str],
    *,
    half: bool = False,
    counts: _Counts | None = None,
) -> None:
    """A body, in the framing that its headers tell of; of a chunked one, half is one chunk."""
    counts = counts or _Counts()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        size = -1
        while size and not (half and size > 0):
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
            size = int(line.partition(b";")[0], 16)
            if size:
                await _copy(reader, writer, size, counts)
                writer.write(await reader.readexactly(2))
        while not half and line != b"\r\n":
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
        await writer.drain()
    elif "content-length" in headers:
        size = int(headers["content-length"])
        await _copy(reader, writer, size // 2 if half else size, counts)
    else:
        await _copy(reader, writer, None, counts)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int | None, counts: _Counts
) -> None:
    left = size
    while left != 0:
        block = await reader.read(BLOCK if left is None else min(BLOCK, left))
        if not block:
            if left is None:
                return
            raise asyncio.IncompleteReadError(b"", left)
        writer.write(block)
        counts.bytes += len(block)
        await writer.drain()
        left = None if left is None else left - len(block)


# Over a folder.


@dataclass(frozen=True)
class _File:
    """An object in memory, as long as the file stays what it was."""

    path: str
    stamp: tuple[int, int]
    data: bytes
    headers: dict[str, str]


class _Folder:
    """Serves files, each kept in memory once it has been read."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).resolve(strict=True)
        self._files: dict[str, _File] = {}
        self._listed: tuple[Any, list[tuple[str, os.stat_result | None]]] | None = None

    async def answer(self, request: _Request, client: _Client, *, half: bool) -> None:
        if request.method not in ("GET", "HEAD"):
            request.keep = request.keep and not request.has_body
            status, headers, body = 405, *_error(request.path, 405, "MethodNotAllowed")
        elif file := self._files.get(request.target):
            status, headers, body = self._object(request, file.path)
        elif match := GCS_PATH.fullmatch(request.path):
            status, headers, body = self._gcs(request, *match.groups())
        else:
            status, headers, body = self._s3(request)
        await client.send(request, status, headers, body, half=half)

    def _locate(self, *parts: str) -> str | None:
        """The file or folder of a request's path; None for what would lead out of the folder."""
        name = "/".join(
            unquote_to_bytes(part.encode("latin-1")).decode("utf-8", "surrogateescape")
            for part in parts
        )
        if "\0" in name or ".." in name.split("/"):
            return None
        return f"{self._folder}/{name.lstrip('/')}"

    def _object(self, request: _Request, path: str | None) -> tuple[int, dict[str, str], bytes]:
        file = self._read(request.target, path)
        if file is None:
            return 404, *_error(request.path, 404)
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "")):
            return self._range(request, file, *wanted.groups())
        return 200, file.headers, file.data

    def _read(self, key: str, path: str | None) -> _File | None:
        if path is None:
            return None
        try:
            details = os.stat(path)
            if stat.S_ISDIR(details.st_mode):
                return None
            stamp = (details.st_mtime_ns, details.st_size)
            known = self._files.get(key)
            if known and known.stamp == stamp:
                return known
            data = Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._files.pop(key, None)
            return None
        headers = {
            "Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream",
            "Last-Modified": formatdate(details.st_mtime, usegmt=True),
            "ETag": f'"{_etag(details)}"',
            "Accept-Ranges": "bytes",
            "x-goog-generation": _generation(details),
            "x-goog-stored-content-length": str(len(data)),
        }
        self._files[key] = _File(path, stamp, data, headers)
        return self._files[key]

    def _range(
        self, request: _Request, file: _File, first: str, last: str
    ) -> tuple[int, dict[str, str], bytes]:
        size = len(file.data)
        start = int(first) if first else max(0, size - int(last or 0))
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            headers, body = _error(request.path, 416, "InvalidRange")
            return 416, {**headers, "Content-Range": f"bytes */{size}"}, body
        headers = {**file.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return 206, headers, file.data[start:end]

    def _gcs(
        self, request: _Request, download: str | None, bucket: str, o: str | None, name: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        path = self._locate(bucket, name or "")
        query = parse_qs(request.query)
        if name and (download or query.get("alt") == ["media"]):
            return self._object(request, path)
        missing = 404, *_error(request.path, 404, "notFound")
        if path is None or (os.path.isfile(path) if o and not name else not os.path.exists(path)):
            return missing
        found: dict[str, Any]
        if name:
            if os.path.isdir(path):
                return missing
            shown = path.removeprefix(f"{self._locate(bucket)}/")
            found = _gcs_item(bucket, shown, os.stat(path))
        elif not o:
            found = {"kind": "storage#bucket", "id": bucket, "name": bucket}
        else:
            page, token = self._page(
                path, query, int(query.get("maxResults", ["0"])[0]), query.get("pageToken")
            )
            if page is None:
                return missing
            found = {
                "kind": "storage#objects",
                "items": [_gcs_item(bucket, key, found) for key, found in page if found],
                "prefixes": [key for key, found in page if not found],
            }
            if token:
                found["nextPageToken"] = token
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def _s3(self, request: _Request) -> tuple[int, dict[str, str], bytes]:
        path = self._locate(request.path)
        query = parse_qs(request.query, keep_blank_values=True)
        if "list-type" not in query:
            # A bucket is there; a folder of keys is not, only the keys are.
            is_bucket = path and "/" not in request.path.strip("/") and os.path.isdir(path)
            if request.method == "HEAD" and is_bucket:
                return 200, {}, b""
            return self._object(request, path)
        page, token = self._page(
            path or "",
            query,
            int(query.get("max-keys", ["0"])[0]),
            query.get("continuation-token"),
        )
        if page is None:
            return 404, *_error(request.path, 404, "NoSuchBucket")
        encoded = query.get("encoding-type") == ["url"]
        show: Callable[[str], str] = quote if encoded else escape
        lines = [
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
            f"<Prefix>{show(query.get('prefix', [''])[0])}</Prefix>",
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>",
            f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>",
        ]
        if encoded:
            lines += ["<EncodingType>url</EncodingType>"]
        if token:
            lines += [f"<NextContinuationToken>{token}</NextContinuationToken>"]
        for key, found in page:
            if found is None:
                lines += [f"<CommonPrefixes><Prefix>{show(key)}</Prefix></CommonPrefixes>"]
            else:
                lines += [
                    f"<Contents><Key>{show(key)}</Key><Size>{found.st_size}</Size>"
                    f"<LastModified>{_iso(found)}</LastModified>"
                    f"<ETag>&quot;{_etag(found)}&quot;</ETag></Contents>"
                ]
        text = "\n".join([*lines, "</ListBucketResult>"])
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _page(
        self, root: str, query: dict[str, list[str]], most: int, token: list[str] | None
    ) -> tuple[list[tuple[str, os.stat_result | None]] | None, str | None]:
        """One page of a bucket's listing, None where there is no bucket, and the next's token."""
        root = root.rstrip("/")
        if not root or not os.path.isdir(root):
            return None, None
        prefix = query.get("prefix", [""])[0]
        deep = query.get("delimiter", [""])[0] != "/"
        key = (root, prefix, deep)
        # A later page is one of the listing that the first was of: each walks the folder once.
        if not (token and self._listed and self._listed[0] == key):
            self._listed = (key, sorted(_entries(root, prefix, deep)))
        entries = self._listed[1]
        start = int(token[0]) if token else 0
        end = start + min(most or PAGE, PAGE)
        return entries[start:end], str(end) if end < len(entries) else None


def _entries(root: str, prefix: str, deep: bool) -> Iterator[tuple[str, os.stat_result | None]]:
    """Objects under a prefix with what is known of them, and the folders of a shallow listing."""
    base = prefix.rpartition("/")[0]
    if ".." in base.split("/"):
        return
    for parent, folders, files in os.walk(f"{root}/{base}".rstrip("/")):
        inside = parent[len(root) + 1 :]
        inside = f"{inside}/" if inside else ""
        for name in files:
            if (key := inside + name).startswith(prefix):
                yield key, os.stat(f"{root}/{key}")
        if not deep:
            for name in folders:
                if (key := f"{inside}{name}/").startswith(prefix):
                    yield key, None
            return


def _etag(details: os.stat_result) -> str:
    # The dash says, as S3's own of a multipart upload does, that this is no MD5.
    return f"{details.st_mtime_ns:032x}-{details.st_size}"


def _generation(details: os.stat_result) -> str:
    return str(details.st_mtime_ns // 1000)


def _iso(details: os.stat_result) -> str:
    moment = datetime.fromtimestamp(details.st_mtime, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _gcs_item(bucket: str, name: str, details: os.stat_result) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(details.st_size),
        "generation": _generation(details),
        "metageneration": "1",
        "etag": _etag(details),
        "contentType": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "timeCreated": _iso(details),
        "updated": _iso(details),
    }


# The server.


class _Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self._origin: _Origin = (
            _Upstream(options.upstream) if options.upstream else _Folder(options.folder)
        )
        self._in_bucket = bool(options.upstream)
        self._plan = Plan(options.faults, options.kinds, options.most, options.seed)
        self._delay: float = options.delay
        self._only = None if options.only is None else re.compile(options.only)
        self._methods = frozenset(options.methods)
        self._retry_after: int | None = options.retry_after
        self._count_paths: bool = options.count_paths
        self._counts = _Counts()
        self._at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first request to its end."""
        client = _Client(reader, writer, self._counts)
        try:
            while True:
                request = _Request(await reader.readuntil(b"\r\n\r\n"))
                answer: Callable[[_Request, _Client], Awaitable[None]] = (
                    self._control if request.path.startswith("/_faulty/") else self._counted
                )
                await answer(request, client)
                if not request.keep:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client, or the upstream server in the middle of an answer, went away.
        finally:
            writer.close()

    async def _counted(self, request: _Request, client: _Client) -> None:
        counts = self._counts
        is_object = fetches_object(request.target, in_bucket=self._in_bucket)
        fetching = is_object and request.method == "GET"
        chosen = self._only.search(request.target) is not None if self._only else is_object
        fault = None
        if chosen and request.method in self._methods:
            fault = self._plan.next(request.path)
        counts.requests += 1
        counts.objects += fetching
        self._at_once += fetching
        counts.most_at_once = max(counts.most_at_once, self._at_once)
        try:
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._answer(request, client, fault)
        finally:
            self._at_once -= fetching

    async def _answer(self, request: _Request, client: _Client, fault: str | None) -> None:
        half = fault in ("cut", "hang")
        try:
            if fault is None or half:
                await self._origin.answer(request, client, half=half)
                if fault is None:
                    return
        except _BadGatewayError:
            await self._fail(request, client, 502)
            return
        except _NothingToCutError:
            fault = "reset"
        self._counts.faults[fault] += 1
        if fault in ("stall", "hang"):
            await client.silence()
        elif fault == "reset":
            client.abort()
        elif fault != "cut":
            await self._fail(request, client, int(fault))
            return
        request.keep = False

    async def _fail(self, request: _Request, client: _Client, status: int) -> None:
        # What is left of a body cannot be told from the next request.
        request.keep = request.keep and not request.has_body
        headers, body = _error(request.path, status)
        if self._retry_after is not None and status in (429, 503):
            headers["Retry-After"] = str(self._retry_after)
        await client.send(request, status, headers, body)
        if request.has_body and "expect" not in request.headers:
            # Closing on a body not read would reset the connection and take the answer with it.
            client.writer.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.silence(), 5)

    async def _control(self, request: _Request, client: _Client) -> None:
        uncounted = _Client(client.reader, client.writer, _Counts())
        name = request.path.removeprefix("/_faulty/")
        if request.method == "POST" and name == "reset":
            self._counts.clear()
            self._counts.most_at_once = self._at_once
            self._plan.seen.clear()
            await uncounted.send(request, 200, {}, b"")
        elif name == "counts":
            shown: dict[str, Any] = {
                "requests": self._counts.requests,
                "objects": self._counts.objects,
                "faults": dict(self._counts.faults),
                "most_at_once": self._counts.most_at_once,
                "bytes": self._counts.bytes,
            }
            if self._count_paths:
                shown["per_path"] = {path: seen.attempts for path, seen in self._plan.seen.items()}
            body = json.dumps(shown).encode()
            await uncounted.send(request, 200, {"Content-Type": "application/json"}, body)
        elif re.fullmatch(r"status/[2-5]\d\d", name):
            status = int(name[-3:])
            await uncounted.send(request, status, *_error(request.path, status))
        else:
            await uncounted.send(request, 404, *_error(request.path, 404))


async def _run(options: argparse.Namespace) -> None:
    server = await asyncio.start_server(
        _Server(options).serve, "127.0.0.1", options.port, limit=BLOCK, backlog=1024
    )
    async with server:
        await server.serve_forever()


def _kinds(value: str) -> list[str]:
    kinds = value.split(",")
    for kind in kinds:
        if kind not in ("reset", "stall", "hang", "cut") and not re.fullmatch(r"[45]\d\d", kind):
            raise argparse.ArgumentTypeError(f"{kind!r} is no status, reset, stall, hang or cut")
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description="a slow and failing HTTP server, for tests")
    parser.add_argument("--port", type=int, required=True)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--upstream", help="http://HOST:PORT of the server to stand in front of")
    origin.add_argument("--folder", help="what to serve")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of attempts that fail")
    parser.add_argument("--kinds", type=_kinds, default=list(KINDS), help="statuses and ways")
    parser.add_argument("--most", type=int, default=3, help="failures of a path in a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", help="pattern to find in path and query, as sent (default: objects' bytes)"
    )
    parser.add_argument("--methods", type=lambda value: value.split(","), default=["GET"])
    parser.add_argument("--retry_after", type=int, help="seconds, in answers of 429 and 503")
    parser.add_argument("--count_paths", action="store_true")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
