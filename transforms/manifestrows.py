"""Rows of manifests to references: what a row says, whatever format it was read from."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence

from fsspec.implementations.local import LocalFileSystem

from transforms.records import MediaRef
from transforms.storage import version_of_file
from transforms.tabletext import escaped

COLUMNS = ("uri", "text", "version", "id")
"""What a manifest may tell of an item; `uri` or `text` is needed."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ManifestError(ValueError):
    """A manifest cannot be used at all: the message says which and why, in one line."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


class Rows:
    """Makes the references of one manifest's rows, numbered from 1."""

    def __init__(self, url: str, carry: tuple[str, ...]) -> None:
        self.url = escaped(url)
        self.carry = carry
        self.number = 0
        """Of the row that was read last."""
        is_local = url.startswith(("/", "file://")) or not _SCHEME.match(url)
        path = LocalFileSystem._strip_protocol(url) if is_local else _without_query(url)
        self._folder = escaped(path.rpartition("/")[0])

    def ref(
        self,
        row: object,
        uri: object,
        text: object = None,
        version: str | None = None,
        id: str | None = None,  # noqa: A002
        carried: tuple[str | None, ...] = (),
    ) -> MediaRef:
        """The reference of a row; `row` is what a message shows of it."""
        if text is not None and not isinstance(text, str):
            return self.problem(row, "has a text that is no string", id, carried)
        if uri is not None and not isinstance(uri, str):
            return self.problem(row, "has a uri that is no string", id, carried)
        text = None if not text or text.isspace() else text
        for value in (uri, text, version, id, *carried):
            if value and not value.isascii() and not _is_unicode(value):
                return self.problem(row, "is not in UTF-8", id, carried)
        digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
        if not uri or uri.isspace():
            if digest is None:
                return self.problem(row, "has neither a uri nor a text", id, carried)
            uri = f"{self.url}#{id or self.number}"
            return MediaRef(uri, f"text-{digest[:16]}", None, id, text, carried, fetched=False)
        if "\0" in uri:
            return self.problem(row, "has a uri with a NUL in it", id, carried)
        if uri[0] != "/" and not _SCHEME.match(uri):
            uri = self._beside(uri)
        version, size = version or "", None
        if not version and uri.startswith(("/", "file://")):
            version, size = _local_version(uri)
        if digest is not None:
            version = f"{version}+text-{digest[:8]}" if version else f"text-{digest[:8]}"
        return MediaRef(uri, version, size, id, text, carried)

    def problem(
        self,
        row: object,
        why: str,
        id: str | None = None,  # noqa: A002
        carried: tuple[str | None, ...] = (),
    ) -> MediaRef:
        """The reference of a row that cannot be used."""
        shown = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        told = hashlib.sha256(f"{why}: {escaped(shown)}".encode()).hexdigest()
        return MediaRef(
            uri=f"{self.url}#{self.number}",
            version=f"row-{told[:8]}",
            id=id and escaped(id),
            carried=tuple(
                value and escaped(value) for value in carried or (None,) * len(self.carry)
            ),
            fetched=False,
            problem=f"{why}: {escaped(shown[:80].strip())!r}",
        )

    def break_off(self, error: BaseException) -> MediaRef:
        """The reference of what is lost after the last row."""
        why = f"the manifest breaks off after {self.number} rows ({one_line(error)})"
        if not self.number:
            raise ManifestError(f"{self.url}: {why}") from error
        self.number += 1
        return self.problem("", why)._replace(problem=why)

    def columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of a manifest's columns that are read. Raises ManifestError."""
        has = f"(it has: {', '.join(names)[:200]!r})"
        if "uri" not in names and "text" not in names:
            raise ManifestError(f"{self.url} has no column uri and no column text {has}")
        for name in self.carry:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f", did you mean {close[0]!r}?" if close else f" {has}"
                raise ManifestError(f"{self.url} has no column {name} to carry{hint}")
        wanted = tuple(name for name in dict.fromkeys((*COLUMNS, *self.carry)) if name in names)
        for name in wanted:
            if names.count(name) > 1:
                raise ManifestError(f"{self.url} has two columns {name}")
        return wanted

    def _beside(self, uri: str) -> str:
        parts = uri.split("/")
        if "." not in parts and ".." not in parts:
            return f"{self._folder}/{uri}"
        # A store takes dots for names. None leads out of the bucket, nor out of the root.
        path = self._folder.split("/")
        top = 3 if _SCHEME.match(self._folder) else 1
        for part in parts:
            if part == "..":
                del path[max(top, len(path) - 1) :]
            elif part != ".":
                path.append(part)
        return "/".join(path)


def _without_query(url: str) -> str:
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _local_version(uri: str) -> tuple[str, int | None]:
    """Version and size as a listing tells them; none where reading is to tell what is wrong."""
    try:
        found = os.stat(uri.removeprefix("file://"))
    except OSError:
        return "", None
    return version_of_file(found, found.st_size), found.st_size


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters stand for bytes that were none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
