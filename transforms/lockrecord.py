"""What a run's lock on an output says, and of which process and job it is."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from transforms.processes import here, runs, started_at

_TIME = "%Y-%m-%dT%H:%M:%SZ"
RUN_ID = re.compile(r"[0-9A-Za-z][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lock:
    """Who holds an output; `beat` grows while it lives, `since` and `seen` are by its own clock.

    `job` names the job elsewhere that does the run's work, if there is one: it may outlive the
    process.
    """

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
    job: str = ""

    @classmethod
    def of_this_process(cls, run_id: str, dead: tuple[str, ...]) -> Lock:
        """The first of a run's."""
        moment = utc_now()
        pid = os.getpid()
        host, boot = here()
        return cls(run_id, host, pid, started_at(pid) or "", boot, _user(), moment, moment, 0, dead)

    @classmethod
    def parse(cls, content: bytes) -> Lock | None:
        """None for what this module has not written."""
        try:
            # Of a version that knew no jobs.
            told = {"job": "", **json.loads(content)}
            told = {field.name: told[field.name] for field in dataclasses.fields(cls)}
            lock = cls(**{**told, "dead": tuple(told["dead"])})
            texts = (lock.host, lock.started, lock.boot, lock.user, lock.job)
            sound = (
                all(RUN_ID.fullmatch(run_id) for run_id in (lock.run_id, *lock.dead))
                and all(isinstance(text, str) and text.isprintable() for text in texts)
                and type(lock.beat) is type(lock.pid) is int
                and 0 < lock.pid < 1 << 31
                and bool(parsed(lock.since) and parsed(lock.seen))
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return lock if sound else None

    @property
    def content(self) -> bytes:
        """What `parse` reads."""
        return json.dumps(dataclasses.asdict(self)).encode()

    def lives(self) -> bool | None:
        """Whether its process runs on this machine; None where this machine cannot tell."""
        if not self.boot or (self.host, self.boot) != here():
            return None
        return runs(self.pid, self.started)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        return str(os.getuid())


def utc_now() -> str:
    """The time, as locks have it."""
    return datetime.now(UTC).strftime(_TIME)


def parsed(moment: str) -> datetime:
    """A moment of a lock. Raises ValueError."""
    return datetime.strptime(moment, _TIME).replace(tzinfo=UTC)
