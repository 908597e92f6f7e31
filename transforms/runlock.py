"""One run at a time on an output: the lock it holds there, and how a dead run's place is taken."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from transforms.lockobjects import LockObject, Seen, object_at
from transforms.lockrecord import RUN_ID, Lock, parsed, utc_now
from transforms.storeerrors import describe

logger = logging.getLogger("beamtag")

NAME = "_beamtag_lock.json"
BEAT_S = 20.0
WATCH_S = 6 * BEAT_S
"""How long a lock of another machine must stand still to be a dead run's."""
SETTLE_S = 0.5
"""How long a store that may ignore conditions is given to show a rival's lock."""

JobRuns = Callable[[str, datetime], bool | None]
"""Says of a job, and of when a lock named it last, whether it runs; None where nobody can tell."""

_TRIES = 10


class HeldError(Exception):
    """Another run holds the output: one line that names it."""


class LostPlaceError(Exception):
    """Another run has taken this run's place."""


# Taking, keeping and giving back.


def _lock_of(output: str) -> LockObject:
    return object_at(f"{output.rstrip('/')}/{NAME}")


class Place:
    """A run's place on its output, until `release`; as a context manager it is released at the end.

    `dead` are the runs whose places were taken and that nobody has tidied up after. `lost` turns
    true when a beat finds that another run has taken over. A forked process's copy does nothing.
    """

    def __init__(self, output: str, lock: Lock, kept: LockObject, beat_s: float) -> None:
        self.run_id = lock.run_id
        self.dead = lock.dead
        self.job = lock.job
        self.lost = False
        self._output = output
        self._object = kept
        self._beat_s = beat_s
        self._pid = os.getpid()
        self._stopped = threading.Event()
        self._left = False
        # Re-entrant, for a signal's handler that releases.
        self._writing = threading.RLock()

    def tidied(self) -> None:
        """The dead runs are tidied up after: the lock need not name them any more."""
        self.dead = ()
        self._renew()

    def goes_on_in(self, job: str) -> None:
        """Say in the lock which job elsewhere does the work from now on."""
        self.job = job
        self._renew()

    def leave(self) -> None:
        """Let the lock stand when this process ends: its job gives the place back."""
        self._left = True
        self._stopped.set()

    def start_beating(self) -> None:
        """Show from now on, by a thread that ends with the process, that this run lives."""
        threading.Thread(target=self._beat, name="beamtag-lock", daemon=True).start()

    def release(self) -> None:
        """Remove the lock if it is this run's; a store that fails is logged, and the lock stays."""
        if os.getpid() != self._pid or self._left:
            return
        self._stopped.set()
        with self._writing:
            try:
                _remove(self._object, self.run_id)
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

    def _renew(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._writing:
            if self._stopped.is_set() or self.lost:
                return
            try:
                # Twice: an answer that got lost makes a client's own second attempt fail.
                for _ in range(2):
                    seen, lock = _own(self._object, self.run_id)
                    if not lock:
                        self.lost = True
                        logger.error("%s: this run's place was taken by another", self._output)
                        return
                    new = dataclasses.replace(
                        lock, beat=lock.beat + 1, seen=utc_now(), dead=self.dead, job=self.job
                    )
                    if self._object.put(new.content, seen):
                        return
            # Whichever store's client: the next beat tries again.
            except Exception as error:
                logger.warning("%s: its lock was not renewed: %s", self._output, describe(error))


def _own(kept: LockObject, run_id: str) -> tuple[Seen | None, Lock | None]:
    """The lock as it is now, if it is this run's."""
    seen = kept.read()
    lock = seen and Lock.parse(seen.content)
    return (seen, lock) if lock and lock.run_id == run_id else (None, None)


def _remove(kept: LockObject, run_id: str) -> None:
    # Twice: the process may have renewed it meanwhile.
    for _ in range(2):
        seen, _ = _own(kept, run_id)
        if seen is None or kept.remove(seen):
            return


def give_back(output: str, run_id: str) -> None:
    """What a run's job does at its end where no process waits for it; raises what the store does.

    Nothing where another run holds the output.
    """
    _remove(_lock_of(output), run_id)


def take_place(
    output: str,
    run_id: str,
    *,
    take_over: bool = False,
    job_runs: JobRuns = lambda job, seen: None,
    beat_s: float = BEAT_S,
    watch_s: float = WATCH_S,
    settle_s: float = SETTLE_S,
) -> Place:
    """Make this run the only one on `output`, at once or after a dead run; times are in seconds.

    A run of this machine is dead when its process is gone, any other when its lock stands still
    for `watch_s`, and neither while `job_runs` says of its job that it runs, or, by None, that
    nobody can tell. `take_over` asks for none of it. Raises `HeldError`, ValueError for a run id
    that is no name, and what the store raises.
    """
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no run id")
    lock_object = _lock_of(output)
    seen = lock_object.read()
    if seen is not None and not take_over:
        seen = _outlived(output, lock_object, seen, job_runs, beat_s, watch_s)
    for _ in range(_TRIES):
        old = Lock.parse(seen.content) if seen else None
        dead = dict.fromkeys([*old.dead, old.run_id] if old else [])
        dead.pop(run_id, None)
        lock = Lock.of_this_process(run_id, tuple(dead))
        if lock_object.put(lock.content, seen) and not lock_object.settled:
            time.sleep(settle_s)
        now = lock_object.read()
        # Whatever the store said: the answer of a write that succeeded may have been lost.
        if now and now.content == lock.content:
            if seen:
                logger.info("%s: this run takes the place of %s", output, _whose(old))
            lock_object.tidy(WATCH_S)
            return Place(output, lock, lock_object, beat_s)
        new = Lock.parse(now.content) if now else None
        only_beat = seen and (old and old.run_id) == (new and new.run_id)
        if now and not (take_over and only_beat):
            raise _held(output, new)
        seen = now
    raise OSError(f"{output}: its lock cannot be written: it changes or vanishes again and again")


def _outlived(
    output: str,
    lock_object: LockObject,
    seen: Seen,
    job_runs: JobRuns,
    beat_s: float,
    watch_s: float,
) -> Seen | None:
    """The lock once its run is certain to be dead, None if it went away; or raises `HeldError`."""
    lock = Lock.parse(seen.content)
    lives = lock.lives() if lock else None
    if lock and (lives or (lock.job and job_runs(lock.job, parsed(lock.seen)) is not False)):
        raise _held(output, lock, (parsed(utc_now()) - parsed(lock.seen)).total_seconds())
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
                raise _held(output, Lock.parse(now.content))
    return seen


def check_place(output: str, run_id: str) -> None:
    """Read the lock once: raises `LostPlaceError` unless it is this run's, or what the store does.

    What a worker asks before each write, so that a run that was taken for dead does no harm.
    """
    seen = _lock_of(output).read()
    lock = Lock.parse(seen.content) if seen else None
    if lock and lock.run_id == run_id:
        return
    if seen is None:
        raise LostPlaceError(f"{output} is not held by run {run_id} any more: its lock is gone")
    raise LostPlaceError(f"{output} is not held by run {run_id} any more, but by {_whose(lock)}")


def _whose(lock: Lock | None) -> str:
    if lock is None:
        return f"a run whose lock {NAME} cannot be read"
    job = f", job {lock.job}" if lock.job else ""
    return f"run {lock.run_id} (host {lock.host}, process {lock.pid}{job})"


def _held(output: str, lock: Lock | None, ago_s: float = 0.0) -> HeldError:
    since = f" since {parsed(lock.since):%Y-%m-%d %H:%M:%S} UTC" if lock else ""
    return HeldError(
        f"{output} is held by {_whose(lock)}{since}, last seen {max(ago_s, 0):.0f} s ago; "
        "--take_over takes its place"
    )
