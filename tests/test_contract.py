"""The files as they are on disk, against what BigQuery and Snowflake say that they load.

Their rules, by the titles of the pages that hold them (as read in November 2026):

- BigQuery, "Loading Parquet data from Cloud Storage": which types become which; a LIST that is
  `list` of `element` becomes an array; files that one wildcard names have one schema, and columns
  in another order are another schema; ZSTD is read; no row is above 50 MB; row groups had better
  have 16 MiB.
- BigQuery, "Use externally partitioned data": a partition key must not be a column of the files
  too; every path has the same keys in the same order, ten at most.
- BigQuery, "Specifying a schema": letters, digits and underscores in a column's name, which is not
  told from another by its case and has none of some prefixes.
- Snowflake, "CREATE FILE FORMAT": Zstandard is recognised; logical types are used if told so.
- Snowflake, "Vector data types": a vector is loaded as an array and cast; at most 4096 dimensions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tables import embeddings
from warehouses import DEPLOY, partition_columns, tables

from transforms.schemas import RESERVED
from transforms.writing import ROW_GROUP_ROWS

KEYS = {
    "embeddings": ["model", "dt"],
    "predictions": ["label_set", "model", "dt"],
    "failures": ["dt"],
}
TEXT = ("BYTE_ARRAY", "String")
INTEGERS = {("INT32", "None"), ("INT64", "None")}
TIME = "Timestamp(isAdjustedToUTC=true, timeUnit=microseconds, "
BIGQUERY = {
    "STRING": {TEXT},
    "INT64": INTEGERS,
    "FLOAT64": {("FLOAT", "None")},
    "ARRAY<FLOAT64>": {("FLOAT", "None")},
    "BOOL": {("BOOLEAN", "None")},
    "TIMESTAMP": {("INT64", TIME)},
}
SNOWFLAKE = {
    "VARCHAR": {TEXT},
    "INT": INTEGERS,
    "DOUBLE": {("FLOAT", "None")},
    "ARRAY": {("FLOAT", "None")},
    "BOOLEAN": {("BOOLEAN", "None")},
    "TIMESTAMPLTZ": {("INT64", TIME)},
}


class Leaf(NamedTuple):
    """A column of a Parquet file as its footer tells it."""

    path: str
    physical: str
    logical: str
    required: bool
    repeated: int


class File(NamedTuple):
    path: Path
    keys: list[str]
    day: str
    leaves: list[Leaf]


def files_of(output: Path, table: str) -> list[File]:
    files = []
    for path in sorted((output / table).rglob("*.parquet")):
        keys = [part.partition("=") for part in path.relative_to(output / table).parts[:-1]]
        with pq.ParquetFile(path) as file:
            columns = [file.schema.column(place) for place in range(len(file.schema))]
        leaves = [
            Leaf(
                column.path,
                column.physical_type,
                # What is told of no reader's interest is left out: is_from_converted_type and more.
                TIME if (kind := str(column.logical_type)).startswith(TIME) else kind,
                # A list of required elements that is required itself is defined by its repetition.
                column.max_definition_level == column.max_repetition_level,
                column.max_repetition_level,
            )
            for column in columns
        ]
        files.append(File(path, [key for key, _, _ in keys], keys[-1][2], leaves))
    return files


@pytest.fixture(scope="module", params=sorted(KEYS))
def table(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def files(nightly: Path, table: str) -> list[File]:
    return files_of(nightly, table)


def test_there_is_something_of_every_kind(nightly):
    days = {name: {file.day for file in files_of(nightly, name)} for name in KEYS}
    assert days == {name: {f"2026-01-0{day}" for day in (1, 2, 3)} for name in KEYS}
    sets = {path.name for path in (nightly / "predictions").iterdir()}
    assert sorted(re.sub("-[0-9a-f]{8}$", "", name) for name in sets) == [
        "label_set=places", "label_set=things", "label_set=things",
    ]  # fmt: skip
    counts = [pq.read_metadata(path).num_rows for path in nightly.rglob("*.parquet")]
    assert min(counts) == 0
    carrying = {
        name: {"owner" in [leaf.path for leaf in file.leaves] for file in files_of(nightly, name)}
        for name in KEYS
    }
    assert carrying == {name: {True, False} for name in KEYS}
    found = pq.read_table(nightly / "embeddings", partitioning=None, columns=["id", "modality"])
    assert set(found["modality"].to_pylist()) == {"image", "text", "pair"}
    assert set(found["id"].to_pylist()) == {None, "four"}


@pytest.mark.parametrize("warehouse", ["bigquery", "snowflake"])
def test_the_files_have_the_columns_that_the_warehouse_is_told(files, table, warehouse):
    types = BIGQUERY if warehouse == "bigquery" else SNOWFLAKE
    own = set(KEYS[table]) if warehouse == "bigquery" else {"stage_file"}
    declared = tables(DEPLOY / warehouse / "tables.sql", warehouse)[table]
    declared = [column for column in declared if column.name not in own]
    for file in files:
        # Equal order of the table's own; then those that are carried, which are texts or null.
        leaves, carried = file.leaves[: len(declared)], file.leaves[len(declared) :]
        for leaf, column in zip(leaves, declared, strict=True):
            assert leaf.path.split(".")[0] == column.name
            assert (leaf.physical, leaf.logical) in types[column.kind], leaf
            # An array of BigQuery's is never null, and cannot be told so.
            assert leaf.required == (column.required or column.kind.startswith("ARRAY")), leaf
            assert leaf.repeated == column.kind.startswith("ARRAY")
        assert {(leaf.physical, leaf.logical) for leaf in carried} <= {TEXT}
        assert not any(leaf.required for leaf in carried)


def test_the_tables_over_the_files_have_the_same_columns(table):
    loaded = tables(DEPLOY / "bigquery" / "tables.sql", "bigquery")
    external = tables(DEPLOY / "bigquery" / "external.sql", "bigquery")
    assert list(loaded) == list(external) == [*KEYS, "runs"]
    told = [(column.name, column.kind) for column in loaded[table]]
    beside = [(column.name, column.kind) for column in external[table]]
    assert list(partition_columns(DEPLOY / "bigquery" / "external.sql")) == list(KEYS.values())
    assert told[: len(beside)] == beside
    assert [name for name, _ in told[len(beside) :]] == KEYS[table]


def test_one_wildcard_names_files_of_one_schema(files):
    days = defaultdict(set)
    for file in files:
        days[file.day].add(tuple(file.leaves))
    assert {len(schemas) for schemas in days.values()} == {1}


def test_no_key_of_the_paths_is_a_column_of_the_files(files, table):
    for file in files:
        assert file.keys == KEYS[table]
        assert not {leaf.path.split(".")[0] for leaf in file.leaves} & set(file.keys)


def test_the_names_of_columns(files):
    prefixes = "_TABLE_|_FILE_|_PARTITION|_ROW_TIMESTAMP|__ROOT__|_COLIDENTIFIER"
    name = re.compile(f"(?!{prefixes})[A-Za-z_][A-Za-z0-9_]{{0,299}}", re.IGNORECASE)
    for file in files:
        names = [leaf.path.split(".")[0] for leaf in file.leaves]
        assert all(map(name.fullmatch, names))
        assert len({each.lower() for each in names}) == len(names)
    assert all(map(name.fullmatch, RESERVED))


def test_lists_are_named_as_their_standard_form_wants(nightly):
    found = {leaf.path for name in KEYS for file in files_of(nightly, name) for leaf in file.leaves}
    assert {path for path in found if "." in path} == {"embedding.list.element"}


def test_compression_and_row_groups(files):
    for file in files:
        metadata = pq.read_metadata(file.path)
        # A shard is one row group: cut into smaller ones it would only be slower to read.
        assert metadata.num_row_groups <= 1
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            chunks = [group.column(place) for place in range(group.num_columns)]
            assert {chunk.compression for chunk in chunks} == {"ZSTD"}
            assert group.total_byte_size / max(group.num_rows, 1) < 50 * 1000 * 1000


def test_row_groups_of_large_shards(tmp_path):
    """64 dimensions are few: models have 512 and more."""
    count = 2 * ROW_GROUP_ROWS + 1
    vectors = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
    url = embeddings(tmp_path, [(f"u{n}", "v", None) for n in range(count)], vectors=vectors)
    metadata = pq.read_metadata(url)
    *groups, last = map(metadata.row_group, range(metadata.num_row_groups))
    assert all(group.total_byte_size >= 16 * 2**20 for group in groups)
    assert (len(groups), last.num_rows) == (2, 1)


def test_vectors_are_what_both_can_search(nightly):
    for file in files_of(nightly, "embeddings"):
        column = pq.read_table(file.path, partitioning=None)["embedding"].combine_chunks()
        assert pa.types.is_fixed_size_list(column.type)
        assert column.type.list_size <= 4096
        values = column.flatten().to_numpy()
        assert np.isfinite(values).all()
        lengths = np.linalg.norm(values.reshape(-1, column.type.list_size), axis=1)
        assert lengths == pytest.approx(np.ones(len(column)), abs=1e-5)


def test_texts_are_utf8(files):
    for file in files:
        found = pq.read_table(file.path, partitioning=None)
        found.validate(full=True)
        for name in ("uri", "version"):
            assert pc.all(pc.greater(pc.utf8_length(found[name]), 0)).as_py() in (True, None)
