"""One run at a time on an output: the lock it holds there, and how a dead run's place is taken."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import getpass
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from transforms.storage import locate
from transforms.storeerrors import describe

logger = logging.getLogger("beamtag")

NAME = "_beamtag_lock.json"
BEAT_S = 20.0
WATCH_S = 6 * BEAT_S
"""How long a lock of another machine must stand still to be a dead run's."""
SETTLE_S = 0.5
"""How long a store that may ignore conditions is given to show a rival's lock."""

_GUARD_S = 5.0
_TRIES = 10
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_RUN_ID = re.compile(r"[0-9A-Za-z][\w.-]*", re.ASCII)
# Named by the process: one killed before it has its place is nowhere else told of.
_ASIDE = re.compile(
    rf"\.{re.escape(NAME)}\.(?P<machine>[0-9a-f]{{8}})-(?P<pid>[0-9]+)-(?P<started>[0-9]*)"
    r"\.[0-9a-f]{8}\.aside"
)


class HeldError(Exception):
    """Another run holds the output: one line that names it."""


class LostPlaceError(Exception):
    """Another run has taken this run's place."""


# What a lock says.


@dataclass(frozen=True, slots=True)
class _Lock:
    """Who holds an output; `beat` grows while it lives, `since` and `seen` are by its own clock."""

    run_id: str
    host: str
    pid: int
    started: str
    boot: str
    user: str
    since: str
    seen: str
    beat: int
    dead: tuple[str, ...]

    @classmethod
    def of_this_process(cls, run_id: str, dead: tuple[str, ...]) -> _Lock:
        now = _now()
        pid = os.getpid()
        host, boot = _here()
        return cls(run_id, host, pid, _started(pid) or "", boot, _user(), now, now, 0, dead)

    @classmethod
    def parse(cls, content: bytes) -> _Lock | None:
        """None for what this module has not written."""
        try:
            told = json.loads(content)
            told = {field.name: told[field.name] for field in dataclasses.fields(cls)}
            lock = cls(**{**told, "dead": tuple(told["dead"])})
            texts = (lock.host, lock.started, lock.boot, lock.user)
            sound = (
                all(_RUN_ID.fullmatch(run_id) for run_id in (lock.run_id, *lock.dead))
                and all(isinstance(text, str) and text.isprintable() for text in texts)
                and type(lock.beat) is type(lock.pid) is int
                and 0 < lock.pid < 1 << 31
                and bool(_parsed(lock.since) and _parsed(lock.seen))
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return lock if sound else None

    @property
    def content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    def lives(self) -> bool | None:
        """Whether its process runs on this machine; None where this machine cannot tell."""
        if not self.boot or (self.host, self.boot) != _here():
            return None
        return _runs(self.pid, self.started)


def _runs(pid: int, started: str) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Another user's.
    now = _started(pid)
    return now is not None and (now == started or "" in (now, started))


def _here() -> tuple[str, str]:
    """The name of this machine, and what no other boot and no other container of it has."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Process ids mean nothing to a container that only shares the host's name.
        return socket.gethostname(), f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname(), ""


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot: empty where unknown, None for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).strftime(_TIME)


def _parsed(moment: str) -> datetime:
    return datetime.strptime(moment, _TIME).replace(tzinfo=UTC)


# Where a lock is: each write and removal happens only if nothing has changed since it was seen.


class _Seen(NamedTuple):
    content: bytes
    version: str = ""


class _Object:
    """The lock on a store that knows no conditions: whoever wrote last holds it."""

    settled = False
    """Whether what `put` did last is certain, and not to be read back after a pause."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self._path = path

    def read(self) -> _Seen | None:
        try:
            return self._read()
        except FileNotFoundError:
            return None

    def put(self, content: bytes, seen: _Seen | None) -> bool:
        """Write it in the place of `seen`, None for nothing; false if that is not there now."""
        if self.read() != seen:
            return False
        self._filesystem.pipe_file(self._path, content)
        return True

    def remove(self, seen: _Seen) -> bool:
        if self.read() != seen:
            return False
        self._filesystem.rm_file(self._path)
        return True

    def tidy(self) -> None:
        """Remove what was left beside it by processes that were killed as they wrote it."""

    def _read(self) -> _Seen:
        return _Seen(self._filesystem.cat_file(self._path))


class _LocalObject(_Object):
    def put(self, content: bytes, seen: _Seen | None) -> bool:
        path = Path(self._path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        writer = f"{_machine()}-{pid}-{_started(pid) or ''}"
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

    def remove(self, seen: _Seen) -> bool:
        with self._guarded(seen) as unchanged:
            if unchanged:
                os.unlink(self._path)
            return unchanged

    def tidy(self) -> None:
        for entry in os.scandir(os.path.dirname(self._path)):
            # Gone meanwhile, or another account's.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if (match := _ASIDE.fullmatch(entry.name)) and _left(entry, match):
                    os.unlink(entry.path)

    def _read(self) -> _Seen:
        return _Seen(Path(self._path).read_bytes())

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
    def _guarded(self, seen: _Seen) -> Iterator[bool]:
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


def _left(aside: os.DirEntry[str], name: re.Match[str]) -> bool:
    """Whether nobody is writing it any more: of another machine, as long as a lock is watched."""
    if _here()[1] and name["machine"] == _machine():
        return not _runs(int(name["pid"]), name["started"])
    return aside.stat(follow_symlinks=False).st_mtime < time.time() - WATCH_S


def _machine() -> str:
    return hashlib.sha256(repr(_here()).encode()).hexdigest()[:8]


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


class _GcsObject(_Object):
    def put(self, content: bytes, seen: _Seen | None) -> bool:
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

    def remove(self, seen: _Seen) -> bool:
        if not seen.version and self.read() != seen:
            return False
        bucket, key, _ = self._filesystem.split_path(self._path)
        return self._call("DELETE", "b/{}/o/{}", seen, bucket, key)

    def _read(self) -> _Seen:
        headers, content = self._filesystem.call("GET", self._filesystem.url(self._path))
        return _Seen(content, headers.get("x-goog-generation", ""))

    def _call(self, method: str, url: str, seen: _Seen | None, *names: str, **options: Any) -> bool:
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


class _S3Object(_Object):
    def put(self, content: bytes, seen: _Seen | None) -> bool:
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.version}
        return self._call("put_object", seen, condition, Body=content)

    def remove(self, seen: _Seen) -> bool:
        return self._call("delete_object", seen, {"IfMatch": seen.version})

    def _read(self) -> _Seen:
        seen: _Seen = sync(self._filesystem.loop, self._get)
        return seen

    async def _get(self) -> _Seen:
        bucket, key, _ = self._filesystem.split_path(self._path)
        response = await self._filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        async with response["Body"] as body:
            return _Seen(await body.read(), response["ETag"])

    def _call(
        self, method: str, seen: _Seen | None, condition: dict[str, str], **options: Any
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


def _object(output: str) -> _Object:
    filesystem, path = locate(f"{output.rstrip('/')}/{NAME}")
    if isinstance(filesystem, LocalFileSystem):
        return _LocalObject(filesystem, path)
    if "gs" in filesystem.protocol:
        return _GcsObject(filesystem, path)
    return (_S3Object if "s3" in filesystem.protocol else _Object)(filesystem, path)


# Taking, keeping and giving back.


class Place:
    """A run's place on its output, until `release`; as a context manager it is released at the end.

    `dead` are the runs whose places were taken and that nobody has tidied up after. `lost` turns
    true when a beat finds that another run has taken over. A forked process's copy does nothing.
    """

    def __init__(self, output: str, lock: _Lock, kept: _Object, beat_s: float) -> None:
        self.run_id = lock.run_id
        self.dead = lock.dead
        self.lost = False
        self._output = output
        self._object = kept
        self._beat_s = beat_s
        self._pid = os.getpid()
        self._stopped = threading.Event()
        # Re-entrant, for a signal's handler that releases.
        self._writing = threading.RLock()

    def tidied(self) -> None:
        """The dead runs are tidied up after: the lock need not name them any more."""
        self.dead = ()
        self._renew()

    def start_beating(self) -> None:
        """Show from now on, by a thread that ends with the process, that this run lives."""
        threading.Thread(target=self._beat, name="beamtag-lock", daemon=True).start()

    def release(self) -> None:
        """Remove the lock if it is this run's; a store that fails is logged, and the lock stays."""
        if os.getpid() != self._pid:
            return
        self._stopped.set()
        with self._writing:
            try:
                for _ in range(2):
                    seen = self._own()
                    if seen is None or self._object.remove(seen):
                        return
            # Whichever store's client: the run is over, and must not fail by this.
            except Exception as error:
                logger.warning("%s: its lock cannot be removed: %s", self._output, describe(error))

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stopped.wait(self._beat_s) and not self.lost:
            self._renew()

    def _own(self) -> _Seen | None:
        """The lock as it is now, if it is this run's."""
        seen = self._object.read()
        lock = seen and _Lock.parse(seen.content)
        return seen if lock and lock.run_id == self.run_id else None

    def _renew(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._writing:
            if self._stopped.is_set() or self.lost:
                return
            try:
                # Twice: an answer that got lost makes a client's own second attempt fail.
                for _ in range(2):
                    seen = self._own()
                    lock = seen and _Lock.parse(seen.content)
                    if not lock:
                        self.lost = True
                        logger.error("%s: this run's place was taken by another", self._output)
                        return
                    new = dataclasses.replace(lock, beat=lock.beat + 1, seen=_now(), dead=self.dead)
                    if self._object.put(new.content, seen):
                        return
            # Whichever store's client: the next beat tries again.
            except Exception as error:
                logger.warning("%s: its lock was not renewed: %s", self._output, describe(error))


def take_place(
    output: str,
    run_id: str,
    *,
    take_over: bool = False,
    beat_s: float = BEAT_S,
    watch_s: float = WATCH_S,
    settle_s: float = SETTLE_S,
) -> Place:
    """Make this run the only one on `output`, at once or after a dead run; times are in seconds.

    A run of this machine is dead when its process is gone, any other when its lock stands still
    for `watch_s`; `take_over` asks for neither. Raises `HeldError`, ValueError for a run id that
    is no name, and what the store raises.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no run id")
    lock_object = _object(output)
    seen = lock_object.read()
    if seen is not None and not take_over:
        seen = _outlived(output, lock_object, seen, beat_s, watch_s)
    for _ in range(_TRIES):
        old = _Lock.parse(seen.content) if seen else None
        dead = dict.fromkeys([*old.dead, old.run_id] if old else [])
        dead.pop(run_id, None)
        lock = _Lock.of_this_process(run_id, tuple(dead))
        if lock_object.put(lock.content, seen) and not lock_object.settled:
            time.sleep(settle_s)
        now = lock_object.read()
        # Whatever the store said: the answer of a write that succeeded may have been lost.
        if now and now.content == lock.content:
            if seen:
                logger.info("%s: this run takes the place of %s", output, _whose(old))
            lock_object.tidy()
            return Place(output, lock, lock_object, beat_s)
        new = _Lock.parse(now.content) if now else None
        only_beat = seen and (old and old.run_id) == (new and new.run_id)
        if now and not (take_over and only_beat):
            raise _held(output, new)
        seen = now
    raise OSError(f"{output}: its lock cannot be written: it changes or vanishes again and again")


def _outlived(
    output: str, lock_object: _Object, seen: _Seen, beat_s: float, watch_s: float
) -> _Seen | None:
    """The lock once its run is certain to be dead, None if it went away; or raises `HeldError`."""
    lock = _Lock.parse(seen.content)
    lives = lock.lives() if lock else None
    if lock and lives:
        raise _held(output, lock, (_parsed(_now()) - _parsed(lock.seen)).total_seconds())
    if lives is None:
        logger.info(
            "%s is held by %s: watching for %.0f s whether it lives", output, _whose(lock), watch_s
        )
        deadline = time.monotonic() + watch_s
        # The last look is after the deadline, however long this process itself stood still.
        while time.monotonic() < deadline:
            time.sleep(min(beat_s / 4, watch_s))
            now = lock_object.read()
            if now is None:
                return None
            if now.content != seen.content:
                raise _held(output, _Lock.parse(now.content))
    return seen


def check_place(output: str, run_id: str) -> None:
    """Read the lock once: raises `LostPlaceError` unless it is this run's, or what the store does.

    What a worker asks before each write, so that a run that was taken for dead does no harm.
    """
    seen = _object(output).read()
    lock = _Lock.parse(seen.content) if seen else None
    if lock and lock.run_id == run_id:
        return
    if seen is None:
        raise LostPlaceError(f"{output} is not held by run {run_id} any more: its lock is gone")
    raise LostPlaceError(f"{output} is not held by run {run_id} any more, but by {_whose(lock)}")


def _whose(lock: _Lock | None) -> str:
    if lock is None:
        return f"a run whose lock {NAME} cannot be read"
    return f"run {lock.run_id} (host {lock.host}, process {lock.pid})"


def _held(output: str, lock: _Lock | None, ago_s: float = 0.0) -> HeldError:
    since = f" since {_parsed(lock.since):%Y-%m-%d %H:%M:%S} UTC" if lock else ""
    return HeldError(
        f"{output} is held by {_whose(lock)}{since}, last seen {max(ago_s, 0):.0f} s ago; "
        "--take_over takes its place"
    )
