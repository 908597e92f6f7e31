"""`beamtag <job>`: thin; a job is imported only when it is asked for."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NoReturn

JOBS = {
    "tag": "tag pictures by what is in them, with labels that are only words",
    "estimate": "say what tagging would take, from a sample that is tagged",
    "rescore": "score stored vectors against label sets; reads no picture",
    "evaluate": "measure how right the tags are, where the truth is known",
    "calibrate": "find thresholds and temperature from a few labelled items",
    "adapt": "learn labels from a few labelled items; reads no picture",
    "diff": "say what a change of a label file would do to the tags, before it is made",
    "lint": "look through a label file for what makes its tags worse",
    "verify": "check an output's tables and records for damage and gaps",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["--version"]:
            print(f"beamtag {metadata.version('beamtag')}")  # noqa: T201
            return 0
        case [] | ["-h"] | ["--help"] | ["help"]:
            print(_help())  # noqa: T201
            return 0 if arguments else 2
        case [job, *rest] if job in JOBS:
            try:
                status: int = import_module(f"pipelines.{job}").main(rest)
            except KeyboardInterrupt:
                return 1
            return status
    print(  # noqa: T201
        f"beamtag: error: no job is called {arguments[0]!r} (see beamtag --help)", file=sys.stderr
    )
    return 2


def _help() -> str:
    jobs = "\n".join(f"  {job:10} {what}" for job, what in JOBS.items())
    return (
        "usage: beamtag JOB [options]\n\n"
        "Tags media archives by what is in them, with labels that are only words.\n\n"
        f"jobs:\n{jobs}\n\n"
        "options:\n  --help     this text; `beamtag JOB --help` for a job's\n"
        "  --version  the version"
    )


def leave(status: int) -> NoReturn:
    """End the process now: threads of a job that was broken off may wait for a store yet.

    What has asked to be told of the end is: Beam stops its job servers and workers by that.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run() -> NoReturn:
    """The `beamtag` command."""
    leave(main())


if __name__ == "__main__":
    run()
