"""An object that several processes write: each write only happens if nothing has changed meanwhile.

By the store's own conditions where it has them, on local disks by links and file locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from transforms.processes import here, machine, runs, started_at
from transforms.storage import locate

_GUARD_S = 5.0
# Named by the process: one killed before it has its place is nowhere else told of.
_ASIDE = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<started>[0-9]*)"
    r"\.[0-9a-f]{8}\.aside"
)


class Seen(NamedTuple):
    """What an object was found to hold; `version` is the store's own word for it."""

    content: bytes
    version: str = ""


class LockObject:
    """The lock on a store that knows no conditions: whoever wrote last holds it."""

    settled = False
    """Whether what `put` did last is certain, and not to be read back after a pause."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self._path = path

    def read(self) -> Seen | None:
        """What it holds; None where there is none. Raises what the store raises."""
        try:
            return self._read()
        except FileNotFoundError:
            return None

    def put(self, content: bytes, seen: Seen | None) -> bool:
        """Write it in the place of `seen`, None for nothing; false if that is not there now."""
        if self.read() != seen:
            return False
        self._filesystem.pipe_file(self._path, content)
        return True

    def remove(self, seen: Seen) -> bool:
        """Remove it; false if it is not `seen` any more."""
        if self.read() != seen:
            return False
        self._filesystem.rm_file(self._path)
        return True

    def tidy(self, after_s: float) -> None:
        """Remove what was left beside it by processes that were killed as they wrote it.

        What another machine's process left is taken for that after so many seconds.
        """

    def _read(self) -> Seen:
        return Seen(self._filesystem.cat_file(self._path))


class _LocalLock(LockObject):
    def put(self, content: bytes, seen: Seen | None) -> bool:
        path = Path(self._path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        writer = f"{machine()}-{pid}-{started_at(pid) or ''}"
        aside = path.with_name(f".{path.name}.{writer}.{secrets.token_hex(4)}.aside")
        try:
            aside.write_bytes(content)
            if seen is None:
                self.settled = True
                return self._create(aside, content)
            with self._guarded(seen) as unchanged:
                if unchanged:
                    aside.replace(path)
                return unchanged
        finally:
            aside.unlink(missing_ok=True)

    def remove(self, seen: Seen) -> bool:
        with self._guarded(seen) as unchanged:
            if unchanged:
                os.unlink(self._path)
            return unchanged

    def tidy(self, after_s: float) -> None:
        folder, name = os.path.split(self._path)
        for entry in os.scandir(folder):
            # Gone meanwhile, or another account's.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                match = _ASIDE.fullmatch(entry.name)
                if match and match["name"] == name and _left(entry, match, after_s):
                    os.unlink(entry.path)

    def _read(self) -> Seen:
        return Seen(Path(self._path).read_bytes())

    def _create(self, aside: Path, content: bytes) -> bool:
        try:
            os.link(aside, self._path)
        except FileExistsError:
            return False
        except OSError:  # A file system without links; any other trouble comes again.
            try:
                with open(self._path, "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _guarded(self, seen: Seen) -> Iterator[bool]:
        """Meanwhile no other run changes the file; gives whether it still is what was seen."""
        file: BinaryIO
        try:
            try:
                file = open(self._path, "r+b")  # noqa: SIM115  NFS locks only what may be written.
            except PermissionError:
                file = open(self._path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            yield False
            return
        with file:
            self.settled = _flock(file.fileno())
            try:
                # The guard is on the file, and the name may be another file's by now.
                try:
                    named = os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
                except FileNotFoundError:
                    named = False
                yield named and file.read() == seen.content
            finally:
                if self.settled:
                    # Closing does not do it while a process forked meanwhile has the file open.
                    fcntl.flock(file, fcntl.LOCK_UN)


def _left(aside: os.DirEntry[str], name: re.Match[str], after_s: float) -> bool:
    """Whether nobody is writing it any more: of another machine, as long as a lock is watched."""
    if here()[1] and name["machine"] == machine():
        return not runs(int(name["pid"]), name["started"])
    return aside.stat(follow_symlinks=False).st_mtime < time.time() - after_s


def _flock(descriptor: int) -> bool:
    """Whether the file is this run's alone now; not on a file system that cannot do it."""
    deadline = time.monotonic() + _GUARD_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:
            return False
        else:
            return True


class _GcsLock(LockObject):
    def put(self, content: bytes, seen: Seen | None) -> bool:
        if seen is not None and not seen.version and self.read() != seen:
            return False
        bucket, key, _ = self._filesystem.split_path(self._path)
        # What is public may otherwise be read an hour late.
        details = json.dumps({"name": key, "cacheControl": "no-store"}).encode()
        kind = b"Content-Type: application/json; charset=UTF-8"
        body = b"--==0==\n%b\n\n%b\n--==0==\n%b\n\n%b\n--==0==--" % (kind, details, kind, content)
        return self._call(
            "POST",
            f"{self._filesystem._location}/upload/storage/v1/b/{quote(bucket)}/o",
            seen,
            uploadType="multipart",
            headers={"Content-Type": 'multipart/related; boundary="==0=="'},
            data=body,
        )

    def remove(self, seen: Seen) -> bool:
        if not seen.version and self.read() != seen:
            return False
        bucket, key, _ = self._filesystem.split_path(self._path)
        return self._call("DELETE", "b/{}/o/{}", seen, bucket, key)

    def _read(self) -> Seen:
        headers, content = self._filesystem.call("GET", self._filesystem.url(self._path))
        return Seen(content, headers.get("x-goog-generation", ""))

    def _call(self, method: str, url: str, seen: Seen | None, *names: str, **options: Any) -> bool:
        generation = "0" if seen is None else seen.version
        condition = {"ifGenerationMatch": generation} if generation else {}
        try:
            self._filesystem.call(method, url, *names, **options, **condition)
        except FileExistsError:  # gcsfs's word for 412.
            return False
        except FileNotFoundError:
            if seen is None:
                raise  # There is no such bucket.
            return False
        return True


class _S3Lock(LockObject):
    def put(self, content: bytes, seen: Seen | None) -> bool:
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.version}
        return self._call("put_object", seen, condition, Body=content)

    def remove(self, seen: Seen) -> bool:
        return self._call("delete_object", seen, {"IfMatch": seen.version})

    def _read(self) -> Seen:
        seen: Seen = sync(self._filesystem.loop, self._get)
        return seen

    async def _get(self) -> Seen:
        bucket, key, _ = self._filesystem.split_path(self._path)
        response = await self._filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        async with response["Body"] as body:
            return Seen(await body.read(), response["ETag"])

    def _call(
        self, method: str, seen: Seen | None, condition: dict[str, str], **options: Any
    ) -> bool:
        bucket, key, _ = self._filesystem.split_path(self._path)
        options = {"Bucket": bucket, "Key": key, **options}
        try:
            self._filesystem.call_s3(method, **options, **condition)
        except FileNotFoundError:
            if seen is None:
                raise  # There is no such bucket.
            return False
        except OSError as error:
            if error.errno == errno.ENOSYS and self.read() == seen:
                # A store of S3's kind that refuses what is conditional.
                self._filesystem.call_s3(method, **options)
                return True
            response = getattr(error.__cause__, "response", {})
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                return False
            raise
        return True


def object_at(url: str) -> LockObject:
    """The object of a URL, there or not."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        return _LocalLock(filesystem, path)
    if "gs" in filesystem.protocol:
        return _GcsLock(filesystem, path)
    return (_S3Lock if "s3" in filesystem.protocol else LockObject)(filesystem, path)
