"""Digests of items, compared with the texts they stand for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.itemkeys import NO_KEYS, Spill, alike, keys_of, keys_of_rows, keys_of_runs

DTYPE = [("key", NO_KEYS.dtype), ("file", "<u4"), ("row", "<u4"), ("run", "<u4")]
TEXT = st.none() | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3
)
ROWS = st.lists(st.tuples(TEXT, TEXT, TEXT) | st.just(("a", None, "猫")), max_size=12)
RECORDS = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=8), max_size=5
)
"""Files of rows: which item, and which run."""


def columns(rows: list[tuple], chunked: int = 0) -> list[pa.Array]:
    """The rows as columns, which begin somewhere in their buffers."""
    padded = [("x", "y", "z")] * chunked + rows
    made = [pa.array([row[place] for row in padded], pa.string()) for place in range(3)]
    return [column.slice(chunked) for column in made]


@settings(deadline=None)
@given(ROWS, st.integers(0, 3))
def test_a_row_is_as_its_text(rows, start):
    keys = keys_of_rows(columns(rows, start))
    assert list(keys) == list(keys_of("\0".join(text or "" for text in row) for row in rows))
    same = [tuple(text or "" for text in row) for row in rows]
    assert len(np.unique(keys)) == len(set(same))
    found, sizes = keys_of_runs(columns(rows, start))
    assert list(np.repeat(found, sizes)) == list(keys)
    assert all(found[1:] != found[:-1])


def test_a_name_of_bytes_that_are_no_text_has_a_key():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert len(set(keys_of([name, "caf\\xe9.jpg", "café.jpg"]))) == 3


def records_of(files: list[list[tuple[int, int]]], keys) -> np.ndarray:
    told = [
        (keys[item], file, row, run)
        for file, rows in enumerate(files)
        for row, (item, run) in enumerate(rows)
    ]
    return np.array(told, DTYPE)


@settings(deadline=None)
@given(RECORDS, st.booleans(), st.randoms(use_true_random=False))
def test_each_repetition_has_the_one_before_it(files, by_run, random):
    keys = keys_of(f"item {item}" for item in range(6))
    records = records_of(files, keys)
    last, expected = {}, set()
    for key, file, row, run in records.tolist():
        item = (key, run) if by_run else key
        if item in last:
            expected.add((last[item], (file, row)))
        last[item] = (file, row)
    order = list(range(len(records)))
    random.shuffle(order)
    shuffled = records[order]
    before, again = alike(shuffled, [shuffled["run"]] if by_run else [])
    places = [tuple(map(int, place)) for place in shuffled[["file", "row"]].tolist()]
    found = [(places[one], places[two]) for one, two in zip(before, again, strict=True)]
    assert len(found) == len(expected)
    assert set(found) == expected


@settings(max_examples=30, deadline=None)
@given(RECORDS, st.integers(0, 2**60))
def test_a_spill_gives_back_what_it_took_the_same_keys_together(files, seed):
    # Some end in NULs, which numpy's own text would not tell from shorter ones.
    ends = [bytes(15) + b"\1", b"\1" + bytes(15), b"\1\1" + bytes(14)]
    keys = [*keys_of(f"{seed} {item}" for item in range(3)), *np.array(ends, NO_KEYS.dtype)]
    records = records_of(files, keys)
    with Spill(DTYPE) as spill:
        for file in range(len(files)):
            mine = records[records["file"] == file]
            spill.add(mine["key"].copy(), file=file, row=mine["row"], run=mine["run"])
        parts = list(spill.parts())
    assert sorted(np.concatenate(parts).tolist()) == sorted(records.tolist())
    for place, part in enumerate(parts):
        others = np.concatenate([*parts[:place], *parts[place + 1 :]])
        assert not np.isin(part["key"], others["key"]).any()
    pairs = sum(len(alike(part, [])[0]) for part in parts)
    assert pairs == len(alike(records, [])[0]) == len(records) - len(np.unique(records["key"]))


def test_what_is_spilled_is_in_no_folder(tmp_path, monkeypatch):
    """Whatever ends the process, nothing of it is left; nor is it in memory, part by part."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keys = keys_of(str(number) for number in range(10_000))
    with Spill(DTYPE) as spill:
        spill.add(keys, file=1, row=np.arange(10_000), run=0)
        assert list(tmp_path.iterdir()) == []
        sizes = [len(part) for part in spill.parts()]
    assert sum(sizes) == 10_000
    assert max(sizes) < 400
    with pytest.raises(ValueError, match="closed file"):
        spill.add(keys, file=1, row=0, run=0)
