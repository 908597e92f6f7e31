"""What a reader takes of an output's vectors, against the same rule said row by row."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from conftest import Job, encoded, picture, write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import latest
from transforms.latest import Items, collect, latest_vectors
from transforms.schemas import embeddings_schema
from transforms.writing import parquet_bytes

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SCHEMA = embeddings_schema(4)


class Row(NamedTuple):
    """One row of `embeddings`, as far as `latest` looks at it; `at` are minutes."""

    uri: str
    version: str
    id: str | None
    at: int
    number: int

    @property
    def vector(self) -> np.ndarray:
        vector = np.random.default_rng(self.number).normal(size=4).astype(np.float32)
        return vector / np.linalg.norm(vector)


def write(output: Path, files: list[list[Row]], model: str = "m-0") -> None:
    """Files of a model, in the order in which a listing gives them."""
    for number, rows in enumerate(files):
        told: list[dict[str, Any]] = [
            {
                "uri": row.uri, "version": row.version, "id": row.id, "modality": "image",
                "content_sha256": "0", "bytes": 1, "embedding": row.vector, "run_id": "r",
                "embedded_at": START + datetime.timedelta(minutes=row.at),
            }
            for row in rows
        ]  # fmt: skip
        path = output / f"embeddings/model={model}/dt=2026-01-0{1 + number % 3}"
        path.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(told, schema=SCHEMA)
        (path / f"shard-{number:016x}.parquet").write_bytes(parquet_bytes(table))


def read(output: Path, model: str = "m-0", **told: Any) -> Items:
    return collect(latest_vectors(str(output), model, **told))


def same(found: Items, rows: list[Row]) -> None:
    """The same items with the same vectors, in whatever order."""
    key = [(uri, tuple(vector)) for uri, vector in zip(found.uris, found.vectors, strict=True)]
    assert sorted(key) == sorted((row.uri, tuple(row.vector)) for row in rows)


ROWS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jpg", "b.jpg", "c/d.jpg", "ä.jpg"]),
            st.sampled_from(["1", "2", "3"]),
            st.sampled_from([None, "", "x", "y"]),
        ),
        max_size=6,
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 3))
def test_of_each_item_the_version_embedded_last(tmp_path_factory, files, random, at_once):
    output = tmp_path_factory.mktemp("out")
    times = random.sample(range(100), 100)
    numbers = iter(range(100))
    rows = [
        [Row(uri, version, id_, times[(n := next(numbers))], n) for uri, version, id_ in file]
        for file in files
    ]
    write(output, rows)
    everything = [row for file in rows for row in file]
    last: dict[tuple[str, str], Row] = {}
    for row in sorted(everything, key=lambda row: row.at):
        # No id is the same as an empty one.
        last[row.uri, row.id or ""] = row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latest, "ROWS_AT_ONCE", at_once)
        same(read(output), list(last.values()))
        wanted = {"a.jpg", "ä.jpg", "nowhere.jpg"}
        same(read(output, uris=wanted), [row for row in last.values() if row.uri in wanted])
        sample = read(output, sample=3, seed=7)
    assert len(sample.uris) == min(3, len(last))
    held = {(row.uri, tuple(row.vector)) for row in last.values()}
    chosen = [(uri, tuple(v)) for uri, v in zip(sample.uris, sample.vectors, strict=True)]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= held


def test_of_rows_of_one_moment_the_one_written_last_counts(tmp_path):
    rows = [Row("a", str(n), None, 5, n) for n in range(4)]
    write(tmp_path, [rows[:2], rows[2:]])
    same(read(tmp_path), rows[3:])


def test_a_sample_is_of_items_and_the_same_for_a_seed(tmp_path):
    # A hundred versions of one item, and ninety-nine others.
    versions = [Row("often.jpg", str(n), None, n, n) for n in range(100)]
    others = [Row(f"{n}.jpg", "1", None, 0, 100 + n) for n in range(99)]
    write(tmp_path, [versions, others])
    samples = [read(tmp_path, sample=20, seed=seed).uris for seed in (1, 1, 2, 3, 4, 5)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) == 5
    assert all(len(set(sample)) == 20 for sample in samples)
    # One item in a hundred: hardly in most samples, as it would be if its rows counted.
    assert sum("often.jpg" in sample for sample in samples) <= 4
    assert len(read(tmp_path, sample=1000).uris) == 100
    same(read(tmp_path, uris=["often.jpg"], sample=5), [versions[-1]])


def test_other_models_vectors_and_empty_files_are_not_in_it(tmp_path):
    mine, theirs = Row("a", "1", None, 0, 0), Row("a", "1", None, 9, 1)
    write(tmp_path, [[mine], []])
    write(tmp_path, [[theirs]], model="m-1")
    same(read(tmp_path), [mine])
    same(read(tmp_path, model="m-1"), [theirs])
    for nothing in (read(tmp_path, model="m-2"), read(tmp_path, uris=[])):
        assert nothing.uris == []
        assert len(nothing.vectors) == 0


def test_it_streams_a_part_of_a_file_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latest, "ROWS_AT_ONCE", 8)
    rows = [[Row(f"{file}/{n}", "1", None, 0, 50 * file + n) for n in range(50)] for file in (0, 1)]
    write(tmp_path, rows)
    parts: Iterator[Items] = latest_vectors(str(tmp_path), "m-0")
    sizes = [len(part.uris) for part in parts]
    assert sum(sizes) == 100
    assert max(sizes) <= 8
    same(read(tmp_path), [row for file in rows for row in file])


def test_the_vectors_of_a_jobs_second_night(job: Job, tmp_path):
    folder = write_pictures(tmp_path / "p", 3)
    first = job(input=folder, run_date="2026-01-01")
    changed = folder / "00001.jpg"
    changed.write_bytes(encoded(picture(50, 70, 99)))
    second = job(input=folder, run_date="2026-01-02")
    assert second.record["counts"]["embedded"] == 1
    stored = second.table("embeddings")
    assert len(stored) == 4
    found = read(tmp_path / "out", model=first.record["model_id"])
    assert sorted(found.uris) == sorted(map(str, folder.iterdir()))
    (vector,) = (row["embedding"] for row in stored if (row["width"], row["height"]) == (50, 70))
    assert found.vectors[found.uris.index(str(changed))].tolist() == vector
