"""Processes of this machine: which machine it is, and whether one that was seen still runs."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path


def runs(pid: int, started: str) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Another user's.
    now = started_at(pid)
    return now is not None and (now == started or "" in (now, started))


def here() -> tuple[str, str]:
    """The name of this machine, and what no other boot and no other container of it has."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Process ids mean nothing to a container that only shares the host's name.
        return socket.gethostname(), f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname(), ""


def started_at(pid: int) -> str | None:
    """When a process started, in ticks since boot: empty where unknown, None for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on every system.
        return os.cpu_count() or 1


def machine() -> str:
    """A short name for it, as `here` tells it."""
    return hashlib.sha256(repr(here()).encode()).hexdigest()[:8]
