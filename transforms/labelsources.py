"""Where a label file and what it names are, and its text."""

from __future__ import annotations

import os
import re

from transforms.labelnodes import LabelFileError
from transforms.labels import builtin_label_sets

MOST_BYTES = 64 * 1024 * 1024
"""Of a label file at most."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_local(source: str) -> bool:
    """Whether it is a file of this machine."""
    return source.startswith(("file://", "local://")) or not _SCHEME.match(source)


def _path(source: str) -> str:
    return os.path.expanduser(source.removeprefix("file://").removeprefix("local://"))


def identity(source: str) -> str:
    """What is equal for two names of one file."""
    if source in builtin_label_sets() or not is_local(source):
        return source
    return os.path.realpath(_path(source))


def beside(source: str, uri: str) -> str:
    """What a label file names: a URL or an absolute path as it is, else from the file's folder."""
    if _SCHEME.match(uri):
        return uri
    if is_local(source):
        return os.path.abspath(os.path.join(os.path.dirname(_path(source)), uri))
    if uri.startswith("/"):
        return uri
    is_web = source.startswith(("http://", "https://"))
    path = (source.partition("?")[0] if is_web else source).split("/")[:-1]
    for part in uri.split("/"):
        # A store takes dots for names. None leads out of the bucket.
        if part == "..":
            del path[max(3, len(path) - 1) :]
        elif part != ".":
            path.append(part)
    return "/".join(path)


def read_text(source: str, kind: str = "label file") -> str:
    """The text of a file of this kind. Raises `LabelFileError`, its mistake in one line."""
    # Not at the top: only a job that reads a file waits for fsspec.
    from transforms.storage import locate
    from transforms.storereads import LargerError, read_sync

    try:
        if is_local(source):
            # Pipes too: `--labels=<(...)`.
            with open(_path(source), "rb") as file:
                content = file.read(MOST_BYTES + 1)
        else:
            content, _ = read_sync(*locate(source), MOST_BYTES)
        if len(content) > MOST_BYTES:
            raise LargerError(len(content))
    except LargerError:
        mistake = f"{source} is no {kind}: it has more than {MOST_BYTES >> 20} MiB"
        raise LabelFileError([mistake]) from None
    except FileNotFoundError:
        builtin = f", and no built-in label set of that name ({', '.join(builtin_label_sets())})"
        mistake = f"no {kind} {source}{builtin if kind == 'label file' else ''}"
        raise LabelFileError([mistake]) from None
    # Any store's client, any error of its own: the file cannot be read.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise LabelFileError([f"cannot read {source}: {said}"]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Of what follows a byte-order mark, which is left out.
        line = content.count(b"\n", 0, error.start) + 1
        mistake = f"{source}:{line}: not UTF-8 text: byte {error.start} is not; save it as UTF-8"
        raise LabelFileError([mistake]) from None
