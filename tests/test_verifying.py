"""Schemas, vectors, ranks and records, each judged by itself."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.schemas import embeddings_schema, failures_schema, predictions_schema
from transforms.stored import StoredFile
from transforms.verifying import (
    RunRecord,
    bad_ranks,
    bad_vectors,
    count,
    files_problem,
    holder_of,
    is_placed,
    latest_runs,
    other_lengths,
    read_record,
    schema_problem,
    version_problem,
)


def file(table: str, **parts: str) -> StoredFile:
    named = {"label_set": "", "model": "", "dt": "2026-01-31", "shard_id": "1", **parts}
    return StoredFile(f"out/{table}/{named['shard_id']}", table, **named)


@pytest.mark.parametrize("table", ["embeddings", "predictions", "failures"])
@pytest.mark.parametrize("label_set", ["", "words-1"])
@pytest.mark.parametrize("model", ["", "m-1"])
def test_a_file_is_parted_as_its_table_is(table, label_set, model):
    parted = {"embeddings": ("", "m-1"), "predictions": ("words-1", "m-1"), "failures": ("", "")}
    right = parted[table] == (label_set, model)
    assert is_placed(file(table, label_set=label_set, model=model)) == right
    for dt in ("2026-02-29", "20260131", "2026-W05-6", "today", "2026-1-31"):
        assert not is_placed(file(table, label_set=label_set, model=model, dt=dt))


def test_versions_of_schemas():
    assert version_problem({b"beamtag_schema": b"1", b"more": b"x"}) is None
    assert version_problem(None) == version_problem({}) == "no schema version in the footer, not 1"
    for told in (b"0", b"2", b"1.0", b"", b"\xff"):
        assert "schema version" in (version_problem({b"beamtag_schema": told}) or "")


TABLES = {
    "embeddings": embeddings_schema(4, ["a", "b"]),
    "predictions": predictions_schema(["a", "b"]),
    "failures": failures_schema(["a", "b"]),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_change_of_a_schema_is_told(table):
    schema = TABLES[table]
    own = len(schema) - 2
    assert schema_problem(schema, table) is None
    assert schema_problem(pa.schema(list(schema)[:own]), table) is None
    assert schema_problem(schema.with_metadata({"x": "y"}), table) is None
    for place, column in enumerate(schema):
        name = column.name
        other = column.with_type(pa.int16())
        assert name in schema_problem(schema.set(place, other), table)
        nullable = column.with_nullable(not column.nullable)
        assert name in schema_problem(schema.set(place, nullable), table)
        assert (
            name in schema_problem(schema.append(pa.field(name, pa.string())), table) or place < own
        )
        if place < own:
            assert schema_problem(schema.remove(place), table) == f"no column {name}"
            assert name in schema_problem(schema.remove(place).append(column), table)
        doubled = schema.append(column)
        assert schema_problem(doubled, table)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from([0.0, 0.6, -0.8, 1.0, 1.0009, 1.0011, 3e38, np.inf, np.nan]),
            min_size=2,
            max_size=2,
        ),
        max_size=6,
    ),
    st.integers(0, 2),
)
def test_vectors_are_finite_and_of_norm_one(rows, start):
    start = min(start, len(rows))
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.array(rows, np.float32).ravel(), pa.float32()), 2
    ).slice(start)
    not_finite, not_normalised = bad_vectors(vectors)
    for place, row in enumerate(rows[start:]):
        finite = all(np.isfinite(row))
        norm = float(np.hypot(*map(float, row)))
        assert not_finite[place] == (not finite)
        assert not_normalised[place] == (finite and abs(norm - 1) > 1e-3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 4), st.booleans()), max_size=9))
def test_ranks_are_one_to_k_or_a_single_zero(rows):
    items, ranks, labelled = (
        (np.array(part, int) for part in zip(*rows, strict=True))
        if rows
        else [np.empty(0, int)] * 3
    )
    repeated, odd = bad_ranks(items, ranks, labelled.astype(bool))
    seen: Counter[tuple[int, int]] = Counter((item, rank) for item, rank, _ in rows)
    # Of rows of one rank all but one are repeated.
    assert repeated.sum() == len(rows) - len(seen)
    told: Counter[tuple[int, int]] = Counter(
        (int(item), int(rank)) for item, rank in zip(items[repeated], ranks[repeated], strict=True)
    )
    assert told == Counter({key: many - 1 for key, many in seen.items() if many > 1})
    for item in set(items.tolist()):
        mine = {rank for other, rank in seen if other == item}
        sound = mine == {0} or mine == set(range(1, len(mine) + 1))
        labels = all((rank != 0) == has for other, rank, has in rows if other == item)
        assert odd[items == item].any() == (not (sound and labels))


RECORD = {
    "run_id": "r", "model_id": "m-1", "started_at": "2026-01-31T02:00:00.000+00:00", "output": "gs://b/out/",
    "label_sets": {"words-1": {}, "words-2": {}}, "status": "finished",
    "counts": {"listed": 1, "reused": 0, "embedded": 1, "failed": 0, "duplicates": 0},
    "files": ["gs://b/out/embeddings/x.parquet", "failures/y.parquet"],
}  # fmt: skip


def read(**told: object) -> RunRecord:
    kept = {name: value for name, value in {**RECORD, **told}.items() if value is not None}
    return read_record("runs/r.json", json.dumps(kept).encode())


def test_a_record_as_it_should_be():
    record = read()
    assert (record.problems, record.ended, record.model_id) == ([], True, "m-1")
    assert record.label_sets == ("words-1", "words-2")
    assert record.files == ("embeddings/x.parquet", "failures/y.parquet")
    assert files_problem(record, record.files) is None
    assert files_problem(record, record.files[:1]) == (
        "1 file of it is not there, such as failures/y.parquet"
    )
    assert "2 files of it are not there" in (files_problem(record, set()) or "")


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_has_not_ended_has_a_record_all_the_same(status):
    record = read(status=status, counts=None, files=None)
    assert (record.problems, record.ended, record.files) == ([], False, ())
    # One that went past its --max_failures has counted all it wrote.
    assert read(status=status, files=None).problems == ["does not tell its files"]


@pytest.mark.parametrize(
    "told",
    [
        {"status": None}, {"status": 3}, {"model_id": None}, {"counts": None}, {"counts": [1]},
        {"counts": {"listed": 1, "reused": 0, "embedded": "1", "failed": 0}}, {"files": None},
        {"files": "x"}, {"label_sets": 7}, {"label_sets": "words-1"}, {"label_sets": None},
    ],
)  # fmt: skip
def test_a_record_with_something_wrong_is_read(told):
    record = read(**told)
    assert len(record.problems) == 1
    if "label_sets" in told:
        assert record.label_sets == ()
    else:
        assert record.label_sets == ("words-1", "words-2")


@settings(deadline=None)
@given(
    st.binary(max_size=12)
    | st.recursive(st.none() | st.text(max_size=3), st.lists).map(json.dumps).map(str.encode)
)
def test_a_record_of_any_content_is_a_problem_and_no_error(content):
    record = read_record("runs/r.json", content)
    assert len(record.problems) == 1
    assert "\n" not in record.problems[0]
    assert not record.ended
    assert holder_of(content) == "a run whose lock cannot be read"


def test_the_latest_run_of_each_model():
    def run(model: str, at: int, **told: object) -> RunRecord:
        return read(model_id=model, started_at=f"2026-01-0{at}", **told)

    runs = [run("b", 3), run("a", 4), run("a", 2), run("b", 5, status="failed"), run("c", 1)]
    found = latest_runs([*runs, run("", 9)])
    assert list(found.items()) == [("c", runs[4]), ("b", runs[0]), ("a", runs[1])]


def test_who_holds_an_output():
    lock = {"run_id": "r1", "host": "h", "seen": "2026-01-31T02:00:00Z", "more": 1}
    said = "run r1 (host h, last seen 2026-01-31T02:00:00Z)"
    assert holder_of(json.dumps(lock).encode()) == said


@settings(deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4]), max_size=7))
def test_the_length_that_most_files_have_is_right(lengths):
    files = {file("embeddings", model="m", shard_id=str(n)): dim for n, dim in enumerate(lengths)}
    usual = max(sorted(set(lengths), key=lengths.index), key=lengths.count, default=0)
    expected = {one: (dim, usual) for one, dim in files.items() if dim != usual}
    assert other_lengths(files) == expected


def test_numbers_in_words():
    assert [count(n, "row") for n in (0, 1, 1234)] == ["0 rows", "1 row", "1,234 rows"]
