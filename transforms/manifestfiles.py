"""The formats of manifests, each row by row: lines, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.beamfiles import BROKEN_GZIP, gunzipped
from transforms.manifestrows import COLUMNS, ManifestError, Rows, one_line
from transforms.records import MediaRef
from transforms.tabletext import carried_text

KINDS = ("txt", "csv", "tsv", "jsonl", "parquet")
"""What a manifest may be; all but Parquet may be gzipped."""

_LINE_CHARS = 8 * 1024 * 1024
"""What a line, or a row of CSV, may have; what is longer is no list of media."""
_TOO_LONG = f"is longer than {_LINE_CHARS} characters"

_BATCH_ROWS = 8192
_BATCH_BYTES = 16 * 1024 * 1024
_PARQUET_BUFFER_BYTES = 4 * 1024 * 1024
_BROKEN_PARQUET = (pa.ArrowException, ValueError, OSError)
"""What pyarrow raises where a file is damaged."""


def read_rows(
    file: BinaryIO, kind: str, manifest_url: str, carry: tuple[str, ...]
) -> Iterator[MediaRef]:
    """The rows of a manifest of one of the `KINDS`, whatever is wrong with them.

    A relative `uri` is next to the manifest. `file` needs to be seekable for parquet only. Where
    the manifest breaks off, the last reference tells of it. Raises ManifestError for what the
    beginning shows, and what reading `file` raises.
    """
    rows = Rows(manifest_url, carry)
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


def _read_txt(stream: IO[bytes], rows: Rows) -> Iterator[MediaRef]:
    """A URI a line; a row's number is its line's."""
    for line in _lines(stream, rows):
        uri = line.rstrip("\r\n")
        if len(line) == _LINE_CHARS:
            yield rows.problem(line, _TOO_LONG)
        elif uri and not uri.isspace():
            yield rows.ref(uri, uri)


def _read_jsonl(stream: IO[bytes], rows: Rows) -> Iterator[MediaRef]:
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


def _lines(stream: IO[bytes], rows: Rows) -> Iterator[str]:
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

        Only an open quote makes one row of many lines, and where such a row is none, it is a quote
        that nobody closed: only the first line is the bad one.
        """
        self._again.extend(reversed(self.row[1:]))


def _read_csv(stream: IO[bytes], rows: Rows, delimiter: str) -> Iterator[MediaRef]:
    """RFC 4180 with a header; a row's number does not count the header, nor empty lines."""
    lines = _CsvLines(stream)
    # A long text is a row all the same. The limit is the csv module's, for the whole process: it
    # is only ever raised here, and set for each manifest because others may set it too.
    csv.field_size_limit(max(csv.field_size_limit(), _LINE_CHARS))
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


def _read_parquet(file: BinaryIO, rows: Rows) -> Iterator[MediaRef]:
    """Batches of bounded size, only of the columns that are needed."""
    try:
        # Each column chunk is read in pieces: a file may be one row group.
        table = pq.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
        schema = table.schema_arrow
    except _BROKEN_PARQUET as error:
        _raise_if_of_store(error)
        raise ManifestError(f"{rows.url} is no Parquet file: {one_line(error)}") from error
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


_READERS: dict[str, Callable[[IO[bytes], Rows], Iterator[MediaRef]]] = {
    "txt": _read_txt,
    "csv": partial(_read_csv, delimiter=","),
    "tsv": partial(_read_csv, delimiter="\t"),
    "jsonl": _read_jsonl,
}
