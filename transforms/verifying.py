"""What may be wrong with an output, piece by piece: schemas, vectors, ranks, records; pure."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.schemas import (
    SCHEMA_VERSION,
    VERSION_KEY,
    embeddings_schema,
    failures_schema,
    predictions_schema,
)
from transforms.stored import StoredFile

LONGEST_NORM_ERROR = 1e-3
"""How far from 1 the norm of a vector may be."""

ENDED = ("finished", "unbalanced")
"""The `status` of runs that have written all that they were to write."""

COUNTS = ("listed", "reused", "embedded", "failed")


class Kind(StrEnum):
    """What is wrong: a closed list, for scripts to go by."""

    UNREADABLE = "unreadable"
    OLD_SCHEMA = "old_schema"
    WRONG_SCHEMA = "wrong_schema"
    REPEATED_ROW = "repeated_row"
    WRONG_LENGTH = "wrong_length"
    NOT_FINITE = "not_finite"
    NOT_NORMALISED = "not_normalised"
    MISSING_PREDICTIONS = "missing_predictions"
    STRAY_PREDICTIONS = "stray_predictions"
    OUT_OF_STEP = "out_of_step"
    BOTH = "both"
    LEFTOVER = "leftover"
    STRAY_FILE = "stray_file"
    BAD_RECORD = "bad_record"
    MISSING_ITEM = "missing_item"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what it is, which file or item has it, and what a person is told."""

    kind: Kind
    url: str
    message: str


def is_placed(file: StoredFile) -> bool:
    """Whether a file is parted as its table is: `label_set`, `model` and a day as `dt`."""
    parted = {"embeddings": (False, True), "predictions": (True, True), "failures": (False, False)}
    try:
        day = datetime.date.fromisoformat(file.dt).isoformat()
    except ValueError:
        return False
    return file.dt == day and parted[file.table] == (bool(file.label_set), bool(file.model))


def version_problem(footer: Mapping[bytes, bytes] | None) -> str | None:
    """Why a file's footer does not tell of our schema."""
    told = (footer or {}).get(VERSION_KEY)
    if told == str(SCHEMA_VERSION).encode():
        return None
    what = (
        "no schema version" if told is None else f"schema version {told.decode(errors='replace')}"
    )
    return f"{what} in the footer, not {SCHEMA_VERSION}"


def schema_problem(schema: pa.Schema, table: str) -> str | None:
    """The first thing in which a file's schema is not its table's; carried columns may follow."""
    expected = _expected(schema, table)
    for index, field_ in enumerate(expected):
        name = field_.name
        if name not in schema.names:
            return f"no column {name}"
        found = schema.field(index)
        if found.name != name:
            return f"column {index + 1} is {found.name}, not {name}"
        if found.type != field_.type:
            return f"{name} is {found.type}, not {field_.type}"
        if found.nullable != field_.nullable:
            return f"{name} may {'' if found.nullable else 'not '}be null"
    for found in list(schema)[len(expected) :]:
        if found.type != pa.string() or not found.nullable:
            return f"the carried column {found.name} is {found.type}, not a string or null"
        if schema.names.count(found.name) > 1:
            return f"two columns {found.name}"
    return None


def _expected(schema: pa.Schema, table: str) -> pa.Schema:
    if table != "embeddings":
        return predictions_schema() if table == "predictions" else failures_schema()
    index = schema.get_field_index("embedding")
    if index < 0 or not pa.types.is_fixed_size_list(schema.field(index).type):
        return embeddings_schema(1)
    return embeddings_schema(schema.field(index).type.list_size)


Mask = npt.NDArray[np.bool_]


def bad_vectors(vectors: pa.FixedSizeListArray) -> tuple[Mask, Mask]:
    """Which vectors are not finite, and which of the others are not of norm 1."""
    dim = vectors.type.list_size
    values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), dim)
    finite = np.isfinite(values).all(axis=1)
    with np.errstate(invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        far = np.abs(norms - 1) > LONGEST_NORM_ERROR
    return ~finite, finite & far


def bad_ranks(
    items: npt.NDArray[np.integer[Any]], ranks: npt.NDArray[np.integer[Any]], labelled: Mask
) -> tuple[Mask, Mask]:
    """Which rows repeat an item's rank, and which have a rank, or a label, that cannot be.

    An item (a number that stands for it) has ranks 1 to k, each with a label, or a single 0
    without one.
    """
    order = np.lexsort((ranks, items))
    item, rank = items[order], ranks[order]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = (item[1:] == item[:-1]) & (rank[1:] == rank[:-1])
    once, item, rank = order[~repeated], item[~repeated], rank[~repeated]
    is_first = np.ones(len(item), dtype=bool)
    is_first[1:] = item[1:] != item[:-1]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(starts, append=len(item))
    place = np.arange(len(item)) - np.repeat(starts, sizes)
    alone = (rank == 0) & (np.repeat(sizes, sizes) == 1)
    odd = np.zeros(len(order), dtype=bool)
    odd[once] = (rank != place + 1) & ~alone
    doubled = np.zeros(len(order), dtype=bool)
    doubled[order] = repeated
    return doubled, odd | ((ranks != 0) != labelled)


@dataclass(slots=True)
class RunRecord:
    """What a run's record says, as far as it can be relied on."""

    url: str
    model_id: str = ""
    started_at: str = ""
    label_sets: tuple[str, ...] = ()
    ended: bool = False
    files: tuple[str, ...] = ()
    """Those it has written, below the output."""
    problems: list[str] = field(default_factory=list)


def read_record(url: str, content: bytes) -> RunRecord:
    """A run's record of its JSON, with what is wrong with it."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        return RunRecord(url, problems=[f"is not JSON ({' '.join(str(error).split())})"])
    if not isinstance(told, dict):
        return RunRecord(url, problems=["is not a JSON object"])
    status, label_sets = told.get("status"), told.get("label_sets")
    record = RunRecord(
        url,
        model_id=str(told.get("model_id", "")),
        started_at=str(told.get("started_at", "")),
        label_sets=tuple(label_sets) if isinstance(label_sets, dict) else (),
        ended=status in ENDED,
    )
    if not isinstance(status, str):
        record.problems.append("has no status")
    if not record.ended and "counts" not in told:
        # It is in work, or has come to no end.
        return record
    if not record.model_id:
        record.problems.append("has no model_id")
    if not isinstance(label_sets, dict):
        record.problems.append("does not tell its label sets")
    counts = told.get("counts")
    if not isinstance(counts, dict) or not all(
        isinstance(counts.get(name), int) for name in COUNTS
    ):
        record.problems.append(f"has not all the counts {', '.join(COUNTS)}")
    files = told.get("files")
    if not isinstance(files, list):
        record.problems.append("does not tell its files")
        return record
    # An output that was moved is the same output.
    root = f"{str(told.get('output', '')).rstrip('/')}/"
    record.files = tuple(str(file).removeprefix(root) for file in files)
    return record


def files_problem(record: RunRecord, present: Collection[str]) -> str | None:
    """Which files of a record, given by their paths below the output, are not there."""
    absent = [file for file in record.files if file not in present]
    if not absent:
        return None
    return f"{count(len(absent), 'file')} of it {_are(len(absent))} not there, such as {absent[0]}"


def latest_runs(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Of each model the run that ended last, the latest run of all at the end."""
    ended = [record for record in records if record.ended and record.model_id]
    latest: dict[str, RunRecord] = {}
    for record in sorted(ended, key=lambda record: (record.started_at, record.url)):
        latest.pop(record.model_id, None)
        latest[record.model_id] = record
    return latest


def holder_of(lock: bytes) -> str:
    """Which run a lock is of, and when it was last seen, in words."""
    try:
        told = json.loads(lock)
        return f"run {told['run_id']} (host {told['host']}, last seen {told['seen']})"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "a run whose lock cannot be read"


def other_lengths(dims: Mapping[StoredFile, int]) -> dict[StoredFile, tuple[int, int]]:
    """Which files' vectors are of another length than most files': theirs, and most files'.

    All are of one model and in the order in which they were written: between two lengths of as
    many files the older one is right.
    """
    lengths = list(dims.values())
    if len(set(lengths)) < 2:
        return {}
    usual = max(dict.fromkeys(lengths), key=lengths.count)
    return {file: (dim, usual) for file, dim in dims.items() if dim != usual}


def count(number: int, what: str) -> str:
    """So many of something, in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
