"""Ways to damage an output by hand, and what `beamtag verify` is to say of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.schemas import VERSION_KEY
from transforms.writing import parquet_bytes

Found = set[tuple[str, str]]
"""Findings: kind and URL."""


@dataclass(frozen=True)
class Stored:
    """An output on the local disk, with a shard of it to be damaged."""

    root: Path

    @property
    def vectors(self) -> Path:
        return self._first("embeddings", 3)

    @property
    def tags(self) -> list[Path]:
        """The shard's predictions: of colours, which has items without a tag, and of things."""
        return sorted((self.root / "predictions").rglob(self.vectors.name))

    @property
    def failures(self) -> Path:
        return self._first("failures", 1)

    def _first(self, table: str, least: int) -> Path:
        """The first file of so many rows; not a tar's, which has other names."""
        files = sorted((self.root / table).rglob("shard-????????????????.parquet"))
        return next(path for path in files if pq.read_metadata(path).num_rows >= least)

    @property
    def record(self) -> Path:
        (path,) = (self.root / "runs").iterdir()
        return path


def change(path: Path, how: Callable[[pa.Table], pa.Table]) -> Path:
    """Write a table's file again, with its footer, as the pipeline would."""
    table = pq.read_table(path, partitioning=None)
    path.write_bytes(parquet_bytes(how(table)))
    return path


def column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column of the same kind."""
    kept = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), kept, pa.array(values, kept.type))


def edit(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """To change one value."""

    def changed(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        return column(table, name, values)

    return changed


def replace_field(name: str, **told: Any) -> Callable[[pa.Table], pa.Table]:
    """To say something else of a column: its `type`, or whether it is `nullable`."""

    def changed(table: pa.Table) -> pa.Table:
        was = table.schema.field(name)
        now = was.with_type(told.get("type", was.type))
        now = now.with_nullable(told.get("nullable", was.nullable))
        place = table.schema.get_field_index(name)
        return table.set_column(place, now, table.column(name).cast(now.type))

    return changed


def record(stored: Stored, **told: Any) -> Path:
    """Change what the run's record says; None takes it out."""
    said = {**json.loads(stored.record.read_text()), **told}
    kept = {name: value for name, value in said.items() if value is not None}
    stored.record.write_text(json.dumps(kept))
    return stored.record


Plant = Callable[[Stored], "list[tuple[str, Path]]"]
DAMAGES: dict[str, Plant] = {}


def damage(plant: Plant) -> Plant:
    DAMAGES[plant.__name__] = plant
    return plant


def same(kind: str, change_file: Callable[[Stored], Path], name: str) -> None:
    """A damage of one file that is told as one finding."""
    DAMAGES[name] = lambda stored: [(kind, change_file(stored))]


def put(content: bytes, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Files.


def flipped(path: Path, name: str, *, dictionary: bool = False) -> Path:
    """One bit of the last byte of a column's values, or of its dictionary."""
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    (chunk,) = (
        chunk
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.split(".")[0] == name
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    end = chunk.data_page_offset if dictionary else start + chunk.total_compressed_size
    content[end - 1] ^= 4
    return put(bytes(content), path)


def not_utf8(table: pa.Table) -> pa.Table:
    values = table.column("uri").cast(pa.binary()).to_pylist()
    values[1] = b"\xff\xfe" + values[1]
    binary = pa.array(values, pa.binary())
    return table.set_column(0, table.schema.field(0), binary.view(pa.string()))


def cut(path: Path, end: int) -> Path:
    return put(path.read_bytes()[:end], path)


same("unreadable", lambda it: cut(it.vectors, -40), "a truncated file")
same("unreadable", lambda it: cut(it.tags[0], 300), "truncated predictions")
same("unreadable", lambda it: cut(it.failures, 0), "a file of zero bytes")
same("unreadable", lambda it: put(b"<Error>Slow</Error>", it.tags[1]), "a file that is no Parquet")
same("unreadable", lambda it: flipped(it.vectors, "embedding"), "a flipped bit in the vectors")
same("unreadable", lambda it: flipped(it.failures, "uri"), "a flipped bit in a text")
same(
    "unreadable",
    lambda it: flipped(it.tags[1], "score", dictionary=True),
    "a flipped bit in the scores",
)
same("unreadable", lambda it: change(it.vectors, not_utf8), "text that is not UTF-8")


@damage
def lost_predictions(stored):
    path = stored.tags[1]
    path.unlink()
    return [("missing_predictions", stored.vectors), ("bad_record", stored.record)]


@damage
def lost_embeddings(stored):
    tags, path = stored.tags, stored.vectors
    path.unlink()
    return [*(("stray_predictions", tag) for tag in tags), ("bad_record", stored.record)]


@damage
def lost_failures(stored):
    stored.failures.unlink()
    return [("bad_record", stored.record)]


@damage
def the_same_shard_on_two_days(stored):
    day = stored.vectors.parent.name
    copies = [Path(str(path).replace(day, "dt=2027-02-28")) for path in stored.tags]
    copies.append(Path(str(stored.vectors).replace(day, "dt=2027-02-28")))
    for path in copies:
        put(Path(str(path).replace("dt=2027-02-28", day)).read_bytes(), path)
    return [("repeated_row", path) for path in copies]


@damage
def what_is_not_ours_in_the_folders(stored):
    vectors, failures = stored.vectors, stored.failures
    content = failures.read_bytes()
    strays = [
        vectors.with_name("notes.txt"),
        vectors.with_name("part-0000.parquet"),
        vectors.with_name(f"{vectors.name}.gz"),
        stored.root / "embeddings" / vectors.name,
        stored.root / "embeddings" / "dt=2026-01-31" / vectors.name,
        vectors.parent.with_name("dt=2026-02-30") / vectors.name,
        vectors.parent.with_name("dt=today") / vectors.name,
        stored.root / "predictions" / "_SUCCESS",
        failures.parent / "deeper" / failures.name,
        failures.parent.parent / "model=m" / failures.parent.name / failures.name,
        stored.root / "runs" / "report.html",
        stored.root / "runs" / "old" / "r.json",
    ]
    return [("stray_file", put(content, path)) for path in strays]


@damage
def stale_temporaries(stored):
    places = [stored.vectors, stored.tags[0], stored.failures, stored.record]
    content = stored.failures.read_bytes()
    return [
        ("leftover", put(content, place.with_name(f".{place.name}.run-7.0123abcd.aside")))
        for place in places
    ]


# Schemas.


def versioned(version: bytes | None) -> Callable[[Stored], Path]:
    def rewrite(stored: Stored) -> Path:
        table = pq.read_table(stored.tags[0], partitioning=None)
        kept = {key: value for key, value in table.schema.metadata.items() if key != VERSION_KEY}
        told = {VERSION_KEY: version} if version else {}
        pq.write_table(table.replace_schema_metadata({**kept, **told}), stored.tags[0])
        return stored.tags[0]

    return rewrite


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns(["mime" if n == "modality" else n for n in table.schema.names])


def swapped(table: pa.Table) -> pa.Table:
    return table.select(["version", "uri", *table.schema.names[2:]])


def appended(name: str, values: Callable[[int], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.append_column(name, values(table.num_rows))


def as_lists(table: pa.Table) -> pa.Table:
    lists = pa.list_(pa.field("element", pa.float32(), nullable=False))
    return replace_field("embedding", type=lists)(table)


same("old_schema", versioned(b"0"), "a schema of an older version")
same("old_schema", versioned(None), "a schema without a version")
for told, how in {
    "a column of another type": replace_field("bytes", type=pa.int32()),
    "a column that may be null": replace_field("run_id", nullable=True),
    "a column that is missing": lambda table: table.drop_columns(["width"]),
    "a column of the key that is missing": lambda table: table.drop_columns(["version"]),
    "a column that is renamed": renamed,
    "columns in another order": swapped,
    "vectors as lists of any length": as_lists,
    "a carried column of numbers": appended("shelf", lambda rows: pa.array(range(rows))),
}.items():
    same("wrong_schema", lambda it, how=how: change(it.vectors, how), told)


# Rows.


def shorter(table: pa.Table) -> pa.Table:
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)[:, :16]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    element = pa.field("element", pa.float32(), nullable=False)
    field = pa.field("embedding", pa.list_(element, 16), nullable=False)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=field.type)
    return table.set_column(table.schema.get_field_index("embedding"), field, values)


def one_lost(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("uri") != table.column("uri")[0].as_py())


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(1, 1)])


def vector(value: float) -> Callable[[pa.Table], pa.Table]:
    return edit("embedding", 1, lambda numbers: [value, *numbers[1:]])


def stretched(table: pa.Table) -> pa.Table:
    return edit("embedding", 1, lambda numbers: [1.002 * number for number in numbers])(table)


for kind, told, how in [
    ("repeated_row", "a row twice in a file", doubled),
    ("wrong_length", "vectors of another length", shorter),
    ("not_finite", "a NaN in a vector", vector(float("nan"))),
    ("not_finite", "infinity in a vector", vector(float("inf"))),
    ("not_normalised", "a vector that is not normalised", stretched),
]:
    same(kind, lambda it, how=how: change(it.vectors, how), told)

# Of things every item has ranks 1 and 2; of colours none is above the threshold: rank 0.
for kind, told, place, how in [
    ("out_of_step", "predictions without one of the items", 1, one_lost),
    ("out_of_step", "predictions without an item that has no tag", 0, one_lost),
    ("out_of_step", "predictions of an item that is not embedded", 0, edit("uri", 0, "other.jpg")),
    ("out_of_step", "predictions of another version", 0, edit("version", 0, "other")),
    ("out_of_step", "a gap in the ranks", 1, edit("rank", 1, 3)),
    ("out_of_step", "no best tag", 1, lambda table: table.slice(1)),
    ("out_of_step", "a label without a rank", 0, edit("label", 0, "dog")),
    ("out_of_step", "a rank without a label", 1, edit("label", 0, None)),
    ("repeated_row", "two tags of one rank", 1, edit("rank", 1, 1)),
    ("repeated_row", "a tag twice", 1, doubled),
    ("repeated_row", "an item without a tag twice", 0, doubled),
    ("not_finite", "a score that is no number", 1, edit("score", 0, float("nan"))),
    ("not_finite", "a similarity that is null", 1, edit("similarity", 1, None)),
]:
    same(kind, lambda it, place=place, how=how: change(it.tags[place], how), told)


@damage
def an_item_that_failed_and_was_embedded_in_one_run(stored):
    embedded = pq.read_table(stored.vectors, partitioning=None).slice(0, 1)
    item = embedded.select(["uri", "version", "id"])

    def mixed(table: pa.Table) -> pa.Table:
        row = {**table.slice(0, 1).to_pylist()[0], **item.to_pylist()[0]}
        return pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])

    return [("both", change(stored.failures, mixed))]


same(
    "repeated_row",
    lambda it: change(it.failures, lambda t: pa.concat_tables([t, t])),
    "a failure twice",
)


# Records.

same("bad_record", lambda it: cut(it.record, -20), "a broken record")
same("bad_record", lambda it: put(b"[" * 100_000, it.record), "a record nested beyond measure")
same("bad_record", lambda it: put(b'["finished"]', it.record), "a record that is a list")
for what in ("status", "model_id", "counts", "files", "label_sets"):
    same("bad_record", lambda it, what=what: record(it, **{what: None}), f"a record without {what}")
same(
    "bad_record", lambda it: record(it, files=["failures/gone"]), "a record of a file that is gone"
)
same("bad_record", lambda it: record(it, counts={"listed": "3"}), "a record of other counts")
