"""ReadManifests: lists of media to references, row by row, through Beam's file sources.

A row that cannot be used is a reference with a `problem`; a manifest that cannot be used is a
`ManifestError`, at launch if it can be known then.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, BinaryIO, cast
from urllib.parse import urlsplit

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io import fileio
from apache_beam.io.filesystem import CompressionTypes
from fsspec.implementations.local import LocalFileSystem

from transforms.beamfiles import BROKEN_GZIP, beam_path, gunzipped, open_object, url_of
from transforms.records import MediaRef
from transforms.storage import StorageOptions, use_storage_options, version_of
from transforms.tars import carried_text

COLUMNS = ("uri", "text", "version", "id")
"""What a manifest may tell of an item; `uri` or `text` is needed."""

_KINDS = ("txt", "csv", "tsv", "jsonl", "parquet")
_LINE_CHARS = 8 * 1024 * 1024
"""What a line, or a row of CSV, may have; what is longer is no list of media."""
_BATCH_ROWS = 8192
_BATCH_BYTES = 16 * 1024 * 1024
_PARQUET_BUFFER_BYTES = 4 * 1024 * 1024
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ManifestError(ValueError):
    """A manifest cannot be used at all: the message says which and why, in one line."""


@dataclass
class ReadManifests(beam.PTransform[beam.PCollection[str], beam.PCollection[MediaRef]]):
    """Manifests, each the URL or path of one object taken literally, to a reference for each row.

    `carry` names the columns whose values are to be in every table. A manifest that is not there,
    or is none, fails the run.
    """

    carry: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[str]) -> beam.PCollection[MediaRef]:
        """Wire the reading."""
        refs: beam.PCollection[MediaRef] = (
            pcoll
            | "NameManifests" >> beam.Map(_name_manifest, self.storage_options)
            | "MatchManifests" >> fileio.MatchAll(fileio.EmptyMatchTreatment.DISALLOW)
            | "OpenManifests" >> fileio.ReadMatches()
            | "ReadRows" >> beam.FlatMap(_read_manifest, self.carry, self.storage_options)
        )
        return refs


def _name_manifest(url: str, storage_options: StorageOptions) -> str:
    if storage_options:
        use_storage_options(storage_options)
    return beam_path(url)


def _read_manifest(
    file: fileio.ReadableFile, carry: tuple[str, ...], storage_options: StorageOptions
) -> Iterator[MediaRef]:
    if storage_options:
        use_storage_options(storage_options)
    url = url_of(file.metadata.path)
    # As it is stored: Beam's own unpacking takes a cut file for a whole one.
    with file.open(compression_type=CompressionTypes.UNCOMPRESSED) as opened:
        yield from read_rows(opened, _kind(url), url, carry)


def manifest_kind(url: str) -> str | None:
    """What kind of manifest a name says it is, gzipped or not: None for no manifest."""
    path = urlsplit(url).path if url.startswith(("http://", "https://")) else url
    name = path.lower()
    kind = os.path.splitext(name.removesuffix(".gz"))[1].removeprefix(".")
    return kind if kind in _KINDS and not name.endswith(".parquet.gz") else None


def _kind(url: str) -> str:
    kind = manifest_kind(url)
    if kind is None:
        raise ManifestError(
            f"{url} is no manifest: the name of one ends in .txt, .csv, .tsv or .jsonl, gzipped "
            "or not, or in .parquet"
        )
    return kind


def check_manifest(url: str, carry: tuple[str, ...]) -> None:
    """Read the beginning of a manifest, before any work starts. Raises ManifestError."""
    try:
        with open_object(url) as file:
            first = next(read_rows(file, _kind(url), url, carry), None)
    except ManifestError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"{url} does not exist") from error
    # Every store's client has its own errors.
    except Exception as error:
        raise ManifestError(f"cannot read {url}: {type(error).__name__}: {_line(error)}") from error
    if first is not None and first.problem is not None and manifest_kind(url) == "jsonl":
        raise ManifestError(f"{url}: the first row {first.problem}")


def read_rows(
    file: BinaryIO, kind: str, manifest_url: str, carry: tuple[str, ...]
) -> Iterator[MediaRef]:
    """The rows of a manifest of this kind (see `manifest_kind`), whatever is wrong with them.

    A relative `uri` is next to the manifest. `file` needs to be seekable for parquet only. Where
    the manifest breaks off, the last reference tells of it. Raises ManifestError for what the
    beginning shows, and what reading `file` raises.
    """
    rows = _Rows(manifest_url, carry)
    if kind == "parquet":
        yield from _read_parquet(file, rows)
        return
    if kind == "txt" and carry:
        raise ManifestError(f"{manifest_url} has no columns, so none to carry ({carry[0]})")
    try:
        stream = gunzipped(file)
        if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ManifestError(f"{manifest_url} is in UTF-16: it needs to be in UTF-8")
        yield from _READERS[kind](cast(IO[bytes], stream), rows)
    except BROKEN_GZIP as error:
        yield rows.break_off(error)


class _Rows:
    """Makes the references of one manifest's rows, numbered from 1."""

    def __init__(self, url: str, carry: tuple[str, ...]) -> None:
        self.url = _escaped(url)
        self.carry = carry
        self.number = 0
        """Of the row that was read last."""
        is_local = url.startswith(("/", "file://")) or not _SCHEME.match(url)
        path = LocalFileSystem._strip_protocol(url) if is_local else _without_query(url)
        self._folder = _escaped(path.rpartition("/")[0])

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
        return MediaRef(
            uri=f"{self.url}#{self.number}",
            version="",
            id=id and _escaped(id),
            carried=tuple(
                value and _escaped(value) for value in carried or (None,) * len(self.carry)
            ),
            fetched=False,
            problem=f"{why}: {_escaped(shown[:80].strip())!r}",
        )

    def break_off(self, error: BaseException) -> MediaRef:
        """The reference of what is lost after the last row."""
        why = f"the manifest breaks off after {self.number} rows ({_line(error)})"
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
    details = {"mtime": found.st_mtime, "created": found.st_ctime, "size": found.st_size}
    return version_of(details), found.st_size


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters stand for bytes that were none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_txt(stream: IO[bytes], rows: _Rows) -> Iterator[MediaRef]:
    """A URI a line; a row's number is its line's."""
    for line in _lines(stream, rows):
        uri = line.rstrip("\r\n")
        if len(line) == _LINE_CHARS:
            yield rows.problem(line, _TOO_LONG)
        elif uri and not uri.isspace():
            yield rows.ref(uri, uri)


def _read_jsonl(stream: IO[bytes], rows: _Rows) -> Iterator[MediaRef]:
    """An object a line; a row's number is its line's."""
    for line in _lines(stream, rows):
        if line.isspace():
            continue
        if len(line) == _LINE_CHARS:
            yield rows.problem(line, _TOO_LONG)
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield rows.problem(line, f"is not JSON ({error})")
            continue
        if not isinstance(row, dict):
            yield rows.problem(line, "is no JSON object")
            continue
        told = row.get
        yield rows.ref(
            line,
            told("uri"),
            told("text"),
            carried_text(told("version")),
            carried_text(told("id")),
            tuple([carried_text(told(name)) for name in rows.carry]),
        )


def _lines(stream: IO[bytes], rows: _Rows) -> Iterator[str]:
    """Lines with their ends; of one that is too long, only its first `_LINE_CHARS`."""
    text = _text(stream, newline="\n")
    for line in iter(partial(text.readline, _LINE_CHARS), ""):
        rows.number += 1
        yield line
        if len(line) == _LINE_CHARS:
            _skip_line(text, line)


def _skip_line(text: io.TextIOWrapper, line: str) -> None:
    while line and line[-1] not in "\r\n":
        line = text.readline(_LINE_CHARS)


def _text(stream: IO[bytes], newline: str) -> io.TextIOWrapper:
    # Bytes that are no UTF-8 must not end the reading: they are found again in what they spoil.
    return io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline)


class _CsvLines:
    """The lines of a CSV file, remembered while they are one row."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._text = _text(stream, newline="")
        self._again: list[str] = []
        self.row: list[str] = []
        self._chars = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._text.readline(_LINE_CHARS)
        if not line:
            raise StopIteration
        self.row.append(line)
        self._chars += len(line)
        if self._chars >= _LINE_CHARS:
            _skip_line(self._text, line)
            raise csv.Error(_TOO_LONG)
        return line

    def begin_row(self) -> None:
        """Forget the lines of the row before."""
        self.row.clear()
        self._chars = 0

    def reread(self) -> None:
        """Read the row's lines again but for the first.

        A quote that nobody closed makes one row of many, and only the first is the bad one.
        """
        self._again.extend(reversed(self.row[1:]))


def _read_csv(stream: IO[bytes], rows: _Rows, delimiter: str) -> Iterator[MediaRef]:
    """RFC 4180 with a header; a row's number does not count the header, nor empty lines."""
    lines = _CsvLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ManifestError(f"the header of {rows.url} cannot be read: {error}") from error
    rows.columns(header)
    uri, text, version, id_ = (header.index(name) if name in header else None for name in COLUMNS)
    carried = [header.index(name) for name in rows.carry]
    while True:
        lines.begin_row()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            rows.number += 1
            yield rows.problem("".join(lines.row), f"cannot be read ({error})")
            lines.reread()
            continue
        if fields is None:
            return
        if not fields:
            continue
        rows.number += 1
        if len(fields) != len(header):
            why = f"has {len(fields)} fields, where the header has {len(header)}"
            yield rows.problem("".join(lines.row), why)
            continue
        yield rows.ref(
            fields,
            None if uri is None else fields[uri],
            None if text is None else fields[text],
            None if version is None else fields[version] or None,
            None if id_ is None else fields[id_] or None,
            tuple([fields[index] or None for index in carried]),
        )


def _read_parquet(file: BinaryIO, rows: _Rows) -> Iterator[MediaRef]:
    """Batches of bounded size, only of the columns that are needed."""
    try:
        # Each column chunk is read in pieces: a file may be one row group.
        table = pq.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
        schema = table.schema_arrow
    except _BROKEN_PARQUET as error:
        _raise_if_of_store(error)
        raise ManifestError(f"{rows.url} is no Parquet file: {_line(error)}") from error
    wanted = rows.columns(schema.names)
    for name in ("uri", "text"):
        if name in wanted and not _is_text(kind := schema.field(name).type):
            raise ManifestError(f"{rows.url}: the column {name} holds {kind}, not text")
    size = _rows_at_once(table.metadata)
    try:
        for batch in table.iter_batches(size, columns=list(wanted), use_threads=False):
            columns = {name: _strings(batch.column(name)) for name in wanted}
            absent = [None] * batch.num_rows
            told = (columns.get(name, absent) for name in (*COLUMNS, *rows.carry))
            for uri, text, version, id_, *carried in zip(*told, strict=True):
                rows.number += 1
                yield rows.ref((uri, text), uri, text, version, id_, tuple(carried))
    except _BROKEN_PARQUET as error:
        _raise_if_of_store(error)
        yield rows.break_off(error)


def _raise_if_of_store(error: Exception) -> None:
    # pyarrow's own OSErrors, for what is damaged, are plain ones without a number.
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error


def _rows_at_once(metadata: Any) -> int:
    """How many rows take about `_BATCH_BYTES`: texts may be long."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, longest)))


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _strings(column: Any) -> list[str | None]:
    """A column's values as text, by Arrow and so by the column's type: 1.0 is never made of 1."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_nested(kind):
        return [carried_text(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        utc = column if kind.tz is None else column.cast(pa.timestamp(kind.unit, "UTC"))
        column = pc.replace_substring(utc.cast(pa.string()), " ", "T", max_replacements=1)
    try:
        strings: list[str | None] = column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        # Not all that write Parquet see that text is UTF-8, and one such row is not the batch.
        values = column.cast(pa.large_binary()).to_pylist()
        return [value and value.decode("utf-8", "surrogateescape") for value in values]
    return strings


_BROKEN_PARQUET = (pa.ArrowException, ValueError, OSError)
"""What pyarrow raises where a file is damaged."""

_TOO_LONG = f"is longer than {_LINE_CHARS} characters"

_READERS: dict[str, Callable[[IO[bytes], _Rows], Iterator[MediaRef]]] = {
    "txt": _read_txt,
    "csv": partial(_read_csv, delimiter=","),
    "tsv": partial(_read_csv, delimiter="\t"),
    "jsonl": _read_jsonl,
}
