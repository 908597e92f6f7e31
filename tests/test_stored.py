"""Files of an output are found by their names, and only what is asked for is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import Faulty
from nights import watched

from transforms.publishing import publish
from transforms.schemas import ITEM
from transforms.stored import (
    DamagedError,
    StoredFile,
    open_held,
    open_parquet,
    read_columns,
    stored_files,
)
from transforms.writing import parquet_bytes

OURS = [
    ("embeddings", "", "m-1", "2026-01-01", "0123456789abcdef"),
    ("embeddings", "", "m-1", "2026-01-02", "0123456789abcdef-0a1b2c-0000"),
    ("embeddings", "", "m-12", "2026-01-01", "0123456789abcdef"),
    ("predictions", "w-1", "m-1", "2026-01-01", "0123456789abcdef"),
    ("predictions", "w-1", "m-12", "2026-01-01", "0123456789abcdef"),
    ("predictions", "w-12", "m-1", "2026-01-01", "0123456789abcdef"),
    ("failures", "", "", "2026-01-01", "0123456789abcdef"),
]
NOT_OURS = [
    "embeddings/model=m-1/dt=2026-01-01/_SUCCESS",
    "embeddings/model=m-1/dt=2026-01-01/part-0.parquet",
    "embeddings/model=m-1/dt=2026-01-01/shard-0.parquet.crc",
    "embeddings/model=m-1/dt=2026-01-01/.shard-0.parquet.run.0123abcd.aside",
    "embeddings/model=m-1/dt=2026-01-01/deeper/shard-0.parquet",
    "embeddings/model=m-1/shard-0.parquet",
    "embeddings/shard-0.parquet",
    "embeddings.old/model=m-1/dt=2026-01-01/shard-0.parquet",
    "old/embeddings/model=m-1/dt=2026-01-01/shard-0.parquet",
    "runs/20260101T000000-abcdef.json",
]


def path_of(table: str, label_set: str, model: str, dt: str, shard: str) -> str:
    parts = [f"label_set={label_set}/"] * bool(label_set) + [f"model={model}/"] * bool(model)
    return f"{table}/{''.join(parts)}dt={dt}/shard-{shard}.parquet"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Faulty]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(watched(name, "tables")) for name in ("s3", "gs")}


@pytest.fixture(params=["local", "s3", "gs"])
def output(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "out [1]")
    request.getfixturevalue("servers")
    return f"{request.param}://tables/{request.node.originalname} [1]"


def test_files_are_found_by_their_names(output):
    assert list(stored_files(output, "embeddings")) == []
    for path in [*(path_of(*names) for names in OURS), *NOT_OURS]:
        publish(f"{output}/{path}", b"x")
    every = [StoredFile(f"{output}/{path_of(*names)}", *names) for names in OURS]

    def found(given: str, table: str, **wanted: str) -> list[StoredFile]:
        return sorted(stored_files(given, table, **wanted))

    for given in (output, f"{output}/"):
        for table in ("embeddings", "predictions", "failures"):
            of_table = sorted(file for file in every if file.table == table)
            assert found(given, table) == of_table
            if table != "failures":
                # Nor those of another whose name only begins like it.
                assert found(given, table, model="m-1") == [
                    file for file in of_table if file.model == "m-1"
                ]
        assert found(given, "predictions", label_set="w-1") == every[3:5]
        assert found(given, "predictions", label_set="w-1", model="m-1") == every[3:4]
        for lacking in ({"model": "m"}, {"label_set": "w"}, {"label_set": "w-12", "model": "m-12"}):
            assert found(given, "predictions", **lacking) == []
    # What tables have in common is the day and the shard, not the shard alone.
    assert every[0].name == every[3].name != every[1].name


DIM = 512


def vectors(rows: int) -> pa.Table:
    """A file's rows whose vectors no compression makes smaller."""
    flat = pa.array(np.random.default_rng(0).random(rows * DIM, np.float32))
    return pa.table(
        {
            "uri": [f"gs://archive/{number}" for number in range(rows)],
            "version": [f"v{number}" for number in range(rows)],
            "id": pa.nulls(rows, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
    )


def test_columns_of_a_file(output):
    table = vectors(7)
    url = f"{output}/embeddings/model=m/dt=2026-01-01/shard-0.parquet"
    publish(url, parquet_bytes(table))
    read = read_columns(url, ["version", "nowhere", "uri"])
    assert read.to_pylist() == table.select(["version", "uri"]).to_pylist()
    assert read_columns(url, table.schema.names).to_pylist() == table.to_pylist()
    empty = f"{output}/embeddings/model=m/dt=2026-01-01/shard-1.parquet"
    publish(empty, parquet_bytes(table.slice(0, 0)))
    assert read_columns(empty, ["uri"]).to_pylist() == []
    with pytest.raises(FileNotFoundError):
        read_columns(f"{output}/embeddings/nowhere", ["uri"])


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_other_columns_are_not_fetched(servers, scheme):
    table = vectors(4000)
    url = f"{scheme}://tables/large/shard-0.parquet"
    content = parquet_bytes(table)
    publish(url, content)
    servers[scheme].reset()
    assert read_columns(url, ITEM).to_pylist() == table.select(ITEM).to_pylist()
    counts = servers[scheme].counts()
    assert counts["bytes"] < len(content) / 20
    # The footer, and the columns together: not a request for each of them.
    assert counts["requests"] <= 6
    servers[scheme].reset()
    read_columns(url, ["embedding"])
    assert servers[scheme].counts()["bytes"] > len(content) / 2


def test_what_is_no_table_is_named_in_one_line(output):
    content = parquet_bytes(vectors(3000))
    url = f"{output}/shard-0.parquet"
    middle = content.index(b"PAR1") + len(content) // 2
    broken_page = content[:middle] + bytes(5000) + content[middle + 5000 :]
    # The emulator of GCS does not take what is empty.
    empty = [] if output.startswith("gs:") else [b""]
    for damaged in (content[:-1], content[:5000], content[:3], b"x" * 5000, broken_page, *empty):
        publish(url, damaged)
        with pytest.raises(DamagedError) as caught, open_held(url) as file:
            file.read()
        assert str(caught.value).startswith(f"cannot read {url}: ")
        assert "`beamtag verify`" in str(caught.value)
        assert "\n" not in str(caught.value)
    # What is not there, or not to be had, is no damage.
    with pytest.raises(FileNotFoundError), open_held(f"{output}/shard-1.parquet"):
        pass
    publish(url, content)
    with open_held(url) as file, open_parquet(url) as same:
        assert file.read().equals(same.read())
        assert isinstance(file, pq.ParquetFile)
