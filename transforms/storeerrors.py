"""Why a store could not give an object, whichever client tells it, and whether to ask again."""

from __future__ import annotations

import errno
import re

from transforms.records import Reason

_TRANSIENT_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY,
}  # fmt: skip
_NO_SUCH_THING_ERRNOS = {errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}


class RefusedError(Exception):
    """A store or web server answered with an error."""

    def __init__(self, status: int, body: bytes) -> None:
        said = " ".join(body[:300].decode("utf-8", "replace").split())
        super().__init__(f"answered {status}: {said}" if said else f"answered {status}")
        self.status = status


def reason_of(error: BaseException) -> Reason:
    """Why an object could not be read, whichever store's client tells it."""
    if isinstance(error, TimeoutError):
        return Reason.TIMED_OUT
    for kinds, reason in _REASONS:
        if any(base.__name__ in kinds for base in type(error).__mro__):
            return reason
    # After the names: a body that breaks off is caused by an error with a 400 of aiohttp's own.
    status = _status(error)
    if status == 400 and type(error).__name__ == "ClientResponseError":
        return Reason.READ_ERROR  # An answer that is not HTTP: aiohttp's word for it, no server's.
    if status is not None:
        return _reason_of_status(status)
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return Reason.UNAVAILABLE
    if isinstance(error, ValueError) or (
        isinstance(error, OSError) and error.errno in _NO_SUCH_THING_ERRNOS
    ):
        return Reason.UNSUPPORTED_URI
    return Reason.READ_ERROR


# By name, so that a store's client need not be installed to be understood.
_REASONS: tuple[tuple[frozenset[str], Reason], ...] = (
    (frozenset({"FileNotFoundError"}), Reason.NOT_FOUND),
    (
        frozenset({"PermissionError", "NoCredentialsError", "DefaultCredentialsError"}),
        Reason.PERMISSION_DENIED,
    ),
    (
        frozenset(
            {
                "InvalidURL",
                "NonHttpUrlClientError",
                "RedirectClientError",
                "TooManyRedirects",
                "ParamValidationError",  # botocore
            }
        ),
        Reason.UNSUPPORTED_URI,
    ),
    (frozenset({"HttpProcessingError"}), Reason.READ_ERROR),
    (
        frozenset(
            {
                "ConnectionError",
                "ClientConnectionError",  # aiohttp, as the next
                "ClientPayloadError",
                "HTTPClientError",  # botocore, as the next
                "IncompleteReadError",
                "TransportError",  # google.auth
            }
        ),
        Reason.UNAVAILABLE,
    ),
)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error, or what caused it, carries."""
    for known in (error, error.__cause__):
        response = getattr(known, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp's, others', gcsfs's HttpError (which may be a word)
            names = ("status", "status_code", "code")
            found = next((value for name in names if (value := getattr(known, name, None))), None)
        if isinstance(found, int | str) and re.fullmatch("[1-5][0-9][0-9]", str(found)):
            return int(found)
    return None


def _reason_of_status(status: int) -> Reason:
    if status in (404, 410):
        return Reason.NOT_FOUND
    if status in (401, 402, 403, 407, 451):
        return Reason.PERMISSION_DENIED
    if status in (408, 425, 429) or status >= 500:
        return Reason.UNAVAILABLE
    return Reason.UNSUPPORTED_URI if status >= 400 else Reason.READ_ERROR


def transient(error: BaseException) -> bool:
    """Whether the same call may succeed when it is made again in a while."""
    return reason_of(error) in (Reason.UNAVAILABLE, Reason.TIMED_OUT)


def describe(error: BaseException) -> str:
    """What went wrong, with the error's type."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
