"""What items are known to show: read from a table of `uri,label`, or from the folders' names."""

from __future__ import annotations

import csv
import difflib
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.labels import LabelSet
from transforms.labelsources import beside
from transforms.storage import read_object
from transforms.stored import open_parquet, stored_files
from transforms.tabletext import printable

FOLDERS = "folders"
"""The source of a truth that stands in the folders' names."""

SHOWN = 20
"""How many unknown labels are told one by one."""

Unknown = Literal["error", "ignore"]
Mask = npt.NDArray[np.bool_]


class TruthError(Exception):
    """The truth cannot be used: a line for each mistake."""


class UnknownLabelError(TruthError):
    """Its labels are not those of the label set."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The labels that items are known to have, keys of a label set, by `uri`.

    `left_out` rows (of folders: items) have labels that the set does not know.
    """

    labels: dict[str, frozenset[str]]
    left_out: int = 0

    @property
    def is_multi(self) -> bool:
        """Whether an item has more than one label."""
        return any(len(labels) > 1 for labels in self.labels.values())

    def stated(self, uris: Sequence[str], label_set: LabelSet) -> Mask:
        """Which labels are stated of these items: `[N, L]`, those above them not among them."""
        places = {label.key: place for place, label in enumerate(label_set.labels)}
        stated = np.zeros((len(uris), len(places)), bool)
        for row, uri in enumerate(uris):
            for key in self.labels.get(uri, ()):
                stated[row, places[key]] = True
        return stated


def read_truth(
    source: str, label_set: LabelSet, uris: Iterable[str] = (), unknown: Unknown = "error"
) -> Truth:
    """The truth of a CSV or Parquet file with the columns `uri` and `label`, or of folders.

    A label is told by its id or its name; an item may have several rows; other columns are left
    alone. A relative `uri` starts at the file's folder. With `source` "folders", the label of each
    of `uris` (see `stored_uris`) is the name of the folder that it is in. Labels that the set does
    not know are an error, or left out. Raises `TruthError`.
    """
    rows = _of_folders(uris) if source == FOLDERS else _read(source)
    return _gather(rows, source, label_set, unknown)


def stored_uris(output: str, model_id: str) -> Iterator[str]:
    """The uris of a model's stored vectors, some of them more than once.

    Raises what the store and pyarrow raise.
    """
    for file in stored_files(output, "embeddings", model=model_id):
        with open_parquet(file.url) as parquet:
            for batch in parquet.iter_batches(columns=["uri"]):
                yield from batch.column("uri").to_pylist()


class _Row(NamedTuple):
    """`where` is what a message tells of it."""

    where: str
    uri: str
    label: str


def _gather(rows: Iterable[_Row], source: str, label_set: LabelSet, unknown: Unknown) -> Truth:
    names = _Names(label_set)
    found: dict[str, frozenset[str]] = {}
    kept: dict[frozenset[str], frozenset[str]] = {}
    lost: dict[str, _Lost] = {}
    count = 0
    for row in rows:
        count += 1
        key = names.key_of(row.label)
        if key is None:
            lost.setdefault(row.label, _Lost(row.where)).count += 1
            continue
        labels = found.get(row.uri, frozenset()) | {key}
        # One set for all items that have the same labels.
        found[row.uri] = kept.setdefault(labels, labels)
    if lost and unknown == "error":
        raise UnknownLabelError("\n".join(_told(lost, names, source)))
    if not found:
        where = "no folder of the output" if source == FOLDERS else f"no row of {source}"
        why = f"{where} has a label of {label_set.name!r}" if count else f"{source} has no rows"
        if not count and source == FOLDERS:
            why = "the output has no items"
        raise TruthError(why)
    return Truth(found, sum(one.count for one in lost.values()))


@dataclass(slots=True)
class _Lost:
    where: str
    count: int = field(default=0)


def _told(lost: dict[str, _Lost], names: _Names, source: str) -> Iterator[str]:
    for label, one in list(lost.items())[:SHOWN]:
        more = f" (and in {one.count - 1} more)" if one.count > 1 else ""
        yield f"{one.where}: {names.why_not(label)}{more}"
    if len(lost) > SHOWN:
        yield f"{source}: {len(lost) - SHOWN} more labels are unknown"


class _Names:
    """A set's labels by what people call them: the id, or a name that only one of them has."""

    def __init__(self, label_set: LabelSet) -> None:
        self._name = label_set.name
        self._keys: dict[str, str | None] = {}
        for label in label_set.labels:
            name = _same(label.name)
            self._keys[name] = None if name in self._keys else label.key
        # Over the names: an id is made to tell labels apart.
        self._keys.update((_same(label.key), label.key) for label in label_set.labels)

    def key_of(self, label: str) -> str | None:
        return self._keys.get(_same(label))

    def why_not(self, label: str) -> str:
        if not label:
            return "there is no label"
        if _same(label) in self._keys:
            return f"label {label!r} is several labels of {self._name!r}: say its id"
        close = difflib.get_close_matches(_same(label), self._keys, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"label {label!r} is not in the label set {self._name!r}{hint}"


def _same(text: str) -> str:
    """What is the same for words that look the same: file systems decompose letters."""
    return unicodedata.normalize("NFC", text)


def _of_folders(uris: Iterable[str]) -> Iterator[_Row]:
    for uri in uris:
        folder, _, _ = uri.rpartition("/")
        yield _Row(printable(uri), uri, folder.rpartition("/")[2])


def _read(source: str) -> Iterator[_Row]:
    try:
        content = read_object(source)
    except FileNotFoundError:
        raise TruthError(f"no truth file {source}") from None
    # Any store's client, any error of its own: the file cannot be read.
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise TruthError(f"cannot read {source}: {said}") from error
    rows = _parquet_rows if content[:4] == b"PAR1" else _csv_rows
    for where, uri, label in rows(content, source):
        if not uri:
            raise TruthError(f"{where}: there is no uri")
        yield _Row(where, beside(source, uri), label or "")


def _csv_rows(content: bytes, source: str) -> Iterator[tuple[str, str | None, str | None]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TruthError(f"{source}:{line}: not UTF-8 text: save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        uri, label = _columns(header, source)
        for row in reader:
            if not row:
                continue
            where = f"{source}:{reader.line_num}"
            if len(row) != len(header):
                raise TruthError(f"{where}: {len(row)} fields, where the header has {len(header)}")
            yield where, row[uri].strip(), row[label].strip()
    except csv.Error as error:
        raise TruthError(f"{source}:{reader.line_num}: {error}") from error


def _parquet_rows(content: bytes, source: str) -> Iterator[tuple[str, str | None, str | None]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        uri, label = (names[place] for place in _columns(names, source))
        number = 0
        for batch in file.iter_batches(columns=[uri, label]):
            columns = [_texts(batch.column(name)) for name in (uri, label)]
            for one, called in zip(*columns, strict=True):
                number += 1
                yield f"{source}: row {number}", one, called
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise TruthError(f"cannot read {source} as Parquet: {said}") from error


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return texts


def _columns(names: Sequence[str], source: str) -> tuple[int, int]:
    """Where `uri` and `label` are."""
    for name in ("uri", "label"):
        if names.count(name) != 1:
            has = ", ".join(names)[:200] or "none"
            what = "two columns" if name in names else "no column"
            raise TruthError(f"{source} has {what} {name!r} (it has: {has})")
    return names.index("uri"), names.index("label")
