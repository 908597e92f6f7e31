"""How a job ends that does not finish: one line that says why, and the exit status."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from typing import Any

logger = logging.getLogger("beamtag")

_STAGE = re.compile(r" \[while running '.*'\]$")
_RAISED = re.compile(r"^  .*\n(\S.*)", re.M)
"""What stands behind the frames of a traceback."""
_IN_MEMBER = re.compile(r"^(?:transforms\.crew\.)?InMemberError: ")
_OWN_ERROR = re.compile(
    r"(?:transforms\.\w+\.)?"
    "(ModelError|PublishError|LostPlaceError|PruneError|TooManyFailuresError|DamagedError"
    "|LabelFileError|AdapterError|MemberError): "
)


def broken(
    job: str, error: BaseException, record_url: str, header: dict[str, Any], *, traced: bool
) -> int:
    """Tell what broke a run, to the operator and in its record; gives the exit status."""
    from transforms.recording import publish_record

    cause = cause_of(error, traced=traced)
    interrupted = cause.startswith("KeyboardInterrupt")
    own = _OWN_ERROR.match(cause)
    cause = _STAGE.sub("", cause[own.end() :]) if own else cause
    status = "interrupted" if interrupted else "failed"
    try:
        publish_record(record_url, {**header, "status": status, "error": cause})
    # The store that broke the run may break this too, and must not hide what it was.
    except Exception as unwritable:
        logger.error("and its record cannot be written: %s", unwritable)
    if interrupted:
        return failed(
            job, "interrupted; what is written is kept, and the same command goes on from it"
        )
    if own and own[1] == "ModelError":
        # Found out only now, because a run without work loads no model.
        print(f"beamtag {job}: error: {cause}", file=sys.stderr)  # noqa: T201
        return 2
    return failed(job, cause)


def failed(job: str, cause: str) -> int:
    """Say in one line that a job failed; gives the exit status."""
    print(f"beamtag {job}: failed: {cause}", file=sys.stderr)  # noqa: T201
    return 1


def cause_of(error: BaseException, *, traced: bool) -> str:
    """What went wrong, in one line with its type; a trace is printed where that does not do."""
    cause = one_line(error)
    if in_member := _IN_MEMBER.match(cause):
        # Which has printed its own.
        return _STAGE.sub("", cause[in_member.end() :])
    # Our own errors say in their words what there is to know.
    if traced and not cause.startswith("KeyboardInterrupt") and not _OWN_ERROR.match(cause):
        _print_trace(error)
    return cause


def _print_trace(error: BaseException) -> None:
    """Where it broke: the trace of the first error, without those of Beam's passing it on."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    traceback.print_exception(error, chain=False)


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    said = str(error).strip()
    if isinstance(error, RuntimeError) and "Traceback (most recent call last)" in said:
        # A runner's: the last is what Beam raised in the worker, as its wrapper below.
        raised = _RAISED.findall(said) or said.splitlines()[:1]
        return _STAGE.sub("", raised[-1].removeprefix("RuntimeError: "))
    lines = said.splitlines()
    if lines and _STAGE.search(lines[-1]) and isinstance(error, RuntimeError):
        return lines[0]  # Beam's wrapper: the cause with its type, and the stage it was in
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
