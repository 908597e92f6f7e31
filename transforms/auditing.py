"""An output checked as a whole: what is in its folders, its shards one by one, all its items."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from transforms import runlock
from transforms.ahead import in_order
from transforms.browsing import files_under
from transforms.filechecks import Contents, check_file, check_shard, uri_at
from transforms.itemkeys import NO_KEYS, Spill, alike
from transforms.lookups import Known, Lookups
from transforms.storage import locate, read_object
from transforms.stored import StoredFile, stored_files
from transforms.verifying import (
    Finding,
    Kind,
    RunRecord,
    count,
    files_problem,
    holder_of,
    is_placed,
    latest_runs,
    other_lengths,
    read_record,
)

TABLES = ("embeddings", "predictions", "failures")

SHARDS_AT_ONCE = 8
"""How many shards are read at a time: on an object store each is a few round trips."""

_RECORD = np.dtype(
    [("key", NO_KEYS.dtype), ("group", "<u4"), ("owner", "<u4"), ("file", "<u4"), ("row", "<u4")]
)
_Records = npt.NDArray[np.void]


class Audit:
    """One output, listed when this is made and read by `findings`.

    Of each row a digest and a few numbers are kept, in files aside. `files`, `rows` and `items`
    (each once, embedded or failed) count what was read.
    """

    def __init__(self, output: str) -> None:
        """List it, and read its runs' records.

        Raises FileNotFoundError where there is no output, and what the store raises.
        """
        self._output = output.rstrip("/")
        self._strays: list[Finding] = []
        self._tables = {table: self._list_table(table) for table in TABLES}
        self.records = self._read_records()
        if not (self.records or self._strays or any(self._tables.values())):
            raise FileNotFoundError(f"there are no tables in {output}")
        self._latest = latest_runs(self.records)
        self.models = sorted(
            {file.model for file in self._tables["embeddings"]} | set(self._latest)
        )
        self.notes = self._read_lock()
        self.files = self.rows = self.items = 0
        self._read: list[StoredFile] = []
        self._dims: dict[str, dict[StoredFile, int]] = {}
        self._groups: dict[tuple[str, ...], int] = {}
        self._owners: dict[str, int] = {}

    @property
    def latest_model(self) -> str:
        """The model of the run that ended last; without runs, the last of the models."""
        return next(reversed(self._latest), "") or next(reversed(self.models), "")

    def tars(self, model: str) -> set[str]:
        """By what their shards' names begin with, the tars that this model has read."""
        files = (file for file in self._tables["embeddings"] if file.model == model)
        return {file.shard_id.partition("-")[0] for file in files if "-" in file.shard_id}

    def findings(
        self, lookups: Lookups | None = None, known: Known | None = None
    ) -> Iterator[Finding]:
        """All that is wrong; `known` takes the keys by which listed items can be looked up.

        Raises what the store raises, but for a single file, and OSError where the disk is full.
        """
        yield from self._strays
        yield from self._check_records()
        with Spill(_RECORD) as spill:
            for contents in self._check_shards(lookups):
                yield from contents.findings
                self._take(contents, spill)
                if known is not None:
                    known.add(contents.lookups)
            for dims in self._dims.values():
                for file, (dim, usual) in other_lengths(dims).items():
                    message = f"has vectors of {dim} numbers, the model's other files of {usual}"
                    yield Finding(Kind.WRONG_LENGTH, file.url, message)
            yield from self._compare(spill)

    def _list_table(self, table: str) -> list[StoredFile]:
        found = {file.url: file for file in stored_files(self._output, table) if is_placed(file)}
        for url in _files(self._output, table):
            if url not in found:
                self._strays.append(_stray(url, f"is not named as a file of {table}"))
        return sorted(found.values(), key=lambda file: (file.model, file.name, file.url))

    def _read_records(self) -> list[RunRecord]:
        urls = []
        for url in _files(self._output, "runs"):
            name = url.removeprefix(f"{self._output}/runs/")
            if name.endswith(".json") and "/" not in name and not name.startswith("."):
                urls.append(url)
            else:
                self._strays.append(_stray(url, "is not named as a run's record"))
        return list(in_order(_read_record, urls, SHARDS_AT_ONCE))

    def _read_lock(self) -> list[str]:
        url = f"{self._output}/{runlock.NAME}"
        try:
            content = read_object(url)
        except FileNotFoundError:
            return []
        return [f"{url}: {holder_of(content)} holds the output: what it is at may show here"]

    def _check_records(self) -> Iterator[Finding]:
        start = len(self._output) + 1
        present = {file.url[start:] for files in self._tables.values() for file in files}
        for record in self.records:
            absent = files_problem(record, present)
            for problem in [*record.problems, *([absent] if absent else [])]:
                yield Finding(Kind.BAD_RECORD, record.url, problem)

    def _check_shards(self, lookups: Lookups | None) -> Iterator[Contents]:
        shards: dict[tuple[str, tuple[str, str]], list[StoredFile]] = {}
        for table in ("embeddings", "predictions"):
            for file in self._tables[table]:
                shards.setdefault((file.model, file.name), []).append(file)

        def check(files: list[StoredFile]) -> list[Contents]:
            first = files[0]
            embedded, scored = (first, files[1:]) if not first.label_set else (None, files)
            latest = self._latest.get(first.model)
            return check_shard(embedded, scored, latest.label_sets if latest else (), lookups)

        for contents in in_order(check, (shards[key] for key in sorted(shards)), SHARDS_AT_ONCE):
            yield from contents
        failures = self._tables["failures"]
        yield from in_order(lambda file: check_file(file, lookups), failures, SHARDS_AT_ONCE)

    def _take(self, contents: Contents, spill: Spill) -> None:
        """Keep what is to be compared with what other files hold."""
        file = contents.file
        number = len(self._read)
        self._read.append(file)
        self.files += 1
        self.rows += contents.row_count
        if contents.dim is not None:
            self._dims.setdefault(file.model, {})[file] = contents.dim
        if contents.keys is None:
            return
        group = self._groups.setdefault(file[1:4], len(self._groups))
        owners: npt.NDArray[np.int64] | int = 0
        if contents.owner_names:
            names = contents.owner_names
            codes = [self._owners.setdefault(name, len(self._owners)) for name in names]
            owners = np.array(codes)[contents.owners]
        spill.add(contents.keys, group=group, owner=owners, file=number, row=contents.rows)

    def _compare(self, spill: Spill) -> Iterator[Finding]:
        """What only all files together tell: the items, and those that are there twice."""
        tables = [table for table, *_ in self._groups]
        is_item = np.array([table != "predictions" for table in tables], dtype=bool)
        is_failure = np.array([table == "failures" for table in tables], dtype=bool)
        repeated: _Tally = {}
        both: _Tally = {}
        for part in spill.parts():
            # An item that fails again in another run is no repetition.
            owner = np.where(is_failure[part["group"]], part["owner"], 0)
            before, again = alike(part, (part["group"], owner))
            _count_up(repeated, part[before], part[again])
            part = part[is_item[part["group"]]]
            self.items += len(np.unique(part["key"]))
            before, again = alike(part, (part["owner"],))
            failed = is_failure[part["group"]]
            mixed = failed[before] != failed[again]
            _count_up(both, part[before[mixed]], part[again[mixed]])
        yield from self._told(Kind.REPEATED_ROW, repeated, "of items that are there already")
        yield from self._told(Kind.BOTH, both, "of items that the same run has embedded")

    def _told(self, kind: Kind, tally: _Tally, what: str) -> Iterator[Finding]:
        for number, (rows, row, other) in sorted(tally.items()):
            file = self._read[number]
            place = "the same file" if other == number else self._read[other].url
            message = f"{count(rows, 'row')} {what}, such as {uri_at(file, row)} (in {place})"
            yield Finding(kind, file.url, message)


_Tally = dict[int, tuple[int, int, int]]
"""By the number of a file: how many rows, an example of them, and the file that had it before."""


def _count_up(tally: _Tally, before: _Records, again: _Records) -> None:
    numbers, first, rows = np.unique(again["file"], return_index=True, return_counts=True)
    for number, index, more in zip(numbers.tolist(), first, rows.tolist(), strict=True):
        example = (int(again["row"][index]), int(before["file"][index]))
        seen, *known = tally.get(number, (0, *example))
        tally[number] = (seen + more, known[0], known[1])


def _stray(url: str, why: str) -> Finding:
    name = url.rpartition("/")[2]
    if name.startswith(".") and name.endswith(".aside"):
        return Finding(Kind.LEFTOVER, url, "a run that was killed has left it")
    return Finding(Kind.STRAY_FILE, url, why)


def _files(output: str, folder: str) -> Iterator[str]:
    """The URLs of all that is in a folder of the output; none where there is no such folder."""
    filesystem, root = locate(f"{output}/{folder}")
    try:
        for entry in files_under(filesystem, root):
            yield f"{output}/{folder}{entry.name[len(root) :]}"
    except FileNotFoundError:
        return


def _read_record(url: str) -> RunRecord:
    return read_record(url, read_object(url))
