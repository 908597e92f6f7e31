"""Beam's file sources on whatever fsspec knows, and streams that may be gzipped."""

from __future__ import annotations

import gzip
import io
import posixpath
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, BinaryIO, NoReturn, cast

from apache_beam.io.filesystem import (
    BeamIOError,
    CompressedFile,
    CompressionTypes,
    FileMetadata,
    FileSystem,
    MatchResult,
)
from fsspec.implementations.local import LocalFileSystem

from transforms.storage import locate, version_of

_PREFIX = "fsspec://"
_BUFFER_BYTES = 256 * 1024

BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading of `gunzipped` raises where the gzip is cut or damaged."""


def beam_path(url: str) -> str:
    """The path under which Beam's file sources find a URL or local path through fsspec."""
    return f"{_PREFIX}{url}"


def url_of(path: str) -> str:
    """The URL or local path of a `beam_path`."""
    return path.removeprefix(_PREFIX)


def open_object(url: str) -> BinaryIO:
    """An object's bytes as they are stored, its name taken literally. Raises what stores raise."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        return open(path, "rb")
    return cast(BinaryIO, filesystem.open(path, "rb"))


class FsspecFiles(FileSystem):
    """What is behind `fsspec://`: only for reading, and every character of a name is literal.

    Beam finds the class by its scheme once this module is imported. Runners tell their workers to
    import it; besides, whoever makes a path by `beam_path` has done so.
    """

    @classmethod
    def scheme(cls) -> str:
        """The scheme of paths that are read here."""
        return "fsspec"

    def match(
        self, patterns: Sequence[str], limits: Sequence[int | None] | None = None
    ) -> list[MatchResult]:
        """For each path its one file, or none. Raises BeamIOError where the store does not tell."""
        results, errors = [], {}
        for path in patterns:
            try:
                results.append(MatchResult(path, [_metadata(path)]))
            except (FileNotFoundError, IsADirectoryError):
                results.append(MatchResult(path, []))
            # Every store's client has its own errors; Beam's contract has one.
            except Exception as error:
                errors[path] = error
        if errors:
            raise BeamIOError("Match operation failed", errors)
        return results

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> BinaryIO:
        """The file's bytes, unpacked as `compression_type` or else the name says.

        Beam's unpacking takes a cut file for a whole one: `gunzipped` does not.
        """
        kind = compression_type
        if kind == CompressionTypes.AUTO:
            kind = CompressionTypes.detect_compression_type(path)
        file = open_object(url_of(path))
        if kind == CompressionTypes.UNCOMPRESSED:
            return file
        return cast(BinaryIO, CompressedFile(file, kind))

    def exists(self, path: str) -> bool:
        """Whether there is such a file. Raises BeamIOError where the store does not tell."""
        return bool(self.match([path])[0].metadata_list)

    def metadata(self, path: str) -> FileMetadata:
        """Bytes and time of the last change, 0 where not told. Raises BeamIOError."""
        (found,) = self.match([path])
        if not found.metadata_list:
            raise BeamIOError(f"No such file: {url_of(path)}")
        return found.metadata_list[0]

    def size(self, path: str) -> int:
        """Bytes, 0 where the store does not tell. Raises BeamIOError."""
        return int(self.metadata(path).size_in_bytes)

    def last_updated(self, path: str) -> float:
        """Seconds since 1970, 0 where the store does not tell. Raises BeamIOError."""
        return float(self.metadata(path).last_updated_in_seconds)

    def checksum(self, path: str) -> str:
        """The store's generation or etag, or mtime and size. Raises BeamIOError."""
        try:
            return version_of(_details(path))
        # As for `match`.
        except Exception as error:
            raise BeamIOError("Checksum operation failed", {path: error}) from error

    def join(self, basepath: str, *paths: str) -> str:
        """Path components as one path."""
        return beam_path(posixpath.join(url_of(basepath), *paths))

    def split(self, path: str) -> tuple[str, str]:
        """A path's folder and its last component."""
        folder, name = posixpath.split(url_of(path))
        return beam_path(folder), name

    def has_dirs(self) -> bool:
        """Names are literal here, so nothing is looked for in folders."""
        return False

    def _list(self, dir_or_prefix: str) -> NoReturn:
        raise _refusal("list folders")

    def mkdirs(self, path: str) -> NoReturn:
        """Refused."""
        raise _refusal("make folders")

    def create(self, path: str, mime_type: str = "", compression_type: str = "") -> NoReturn:
        """Refused."""
        raise _refusal("write")

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> NoReturn:
        """Refused."""
        raise _refusal("copy")

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> NoReturn:
        """Refused."""
        raise _refusal("rename")

    def delete(self, paths: list[str]) -> NoReturn:
        """Refused."""
        raise _refusal("delete")


def _refusal(what: str) -> NotImplementedError:
    return NotImplementedError(f"{_PREFIX} is only for reading: it does not {what}")


def _details(path: str) -> dict[str, Any]:
    filesystem, name = locate(url_of(path))
    details: dict[str, Any] = filesystem.info(name)
    if details["type"] == "directory":
        raise IsADirectoryError(f"{url_of(path)} is a folder")
    return details


def _metadata(path: str) -> FileMetadata:
    details = _details(path)
    # By the name that each store gives it; local files tell a number.
    changed = next(filter(None, map(details.get, ("mtime", "LastModified", "last_modified"))), 0.0)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    seconds = float(changed) if isinstance(changed, int | float) else 0.0
    return FileMetadata(path, details.get("size") or 0, seconds)


class _Raw(io.RawIOBase):
    """Whatever can be read, as the raw stream that Python's own readers build on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def gunzipped(file: BinaryIO) -> io.BufferedReader[_Raw] | gzip.GzipFile:
    """A stream from its beginning, unpacked if it is gzip.

    Its first bytes tell, not its name: some stores have unpacked it already. `file` is left open
    and need not be seekable. Reading raises what `file` raises, and `BROKEN_GZIP`.
    """
    stream = io.BufferedReader(_Raw(file), _BUFFER_BYTES)
    if stream.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=stream)
    return stream
