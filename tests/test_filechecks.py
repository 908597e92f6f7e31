"""Files read from end to end: every flipped bit of their pages, and what large outputs take."""

from __future__ import annotations

import datetime
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.filechecks import check_file, check_shard
from transforms.schemas import embeddings_schema, predictions_schema
from transforms.stored import StoredFile, open_parquet
from transforms.verifying import Kind
from transforms.writing import parquet_bytes, table_file

NOW = datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)
DIM = 16


def items(rows: range) -> dict[str, pa.Array]:
    numbers = np.arange(rows.start, rows.stop)
    texts = [f"gs://bucket/archive/{number:09d}.jpg" for number in numbers]
    vectors = np.random.default_rng(rows.start).normal(size=(len(rows), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        "uri": pa.array(texts),
        "version": pa.array([f"v{number}" for number in numbers]),
        "id": pa.nulls(len(rows), pa.string()),
        "modality": pa.repeat("image", len(rows)),
        "content_sha256": pa.array([f"{number:064x}" for number in numbers]),
        "bytes": pa.array(numbers),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), type=embeddings_schema(DIM).field("embedding").type
        ),
        "label": pa.repeat("dog", len(rows)),
        "rank": pa.repeat(pa.scalar(1, pa.int32()), len(rows)),
        "score": pa.array(vectors[:, 0]),
        "similarity": pa.array(vectors[:, 1]),
        "run_id": pa.repeat("run", len(rows)),
        **{name: pa.repeat(NOW, len(rows)) for name in ("embedded_at", "tagged_at")},
    }


def table_of(rows: range, schema: pa.Schema) -> pa.Table:
    values = items(rows)
    columns = [
        values[field.name].cast(field.type) if field.name in values
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=schema)


def write(url: str, content: bytes) -> Path:
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def stored(path: Path, table: str = "embeddings", label_set: str = "") -> StoredFile:
    return StoredFile(str(path), table, label_set, "m", "2026-01-31", "1")


def test_every_flipped_bit_of_the_pages_is_found_or_changes_nothing(tmp_path):
    """Of what nothing but a checksum tells, too; the footer has none."""
    path = tmp_path / "x.parquet"
    whole = parquet_bytes(table_of(range(60), embeddings_schema(DIM)))
    path.write_bytes(whole)
    assert check_file(stored(path), None).findings == []
    before = pq.read_table(path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    unnoticed = 0
    places = range(4, footer, 7)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = check_file(stored(path), None).findings
        if found:
            assert [(each.kind, each.url) for each in found] == [(Kind.UNREADABLE, str(path))]
            assert "\n" not in found[0].message
        else:
            assert pq.read_table(path).equals(before), place
            unnoticed += 1
    # The statistics in the headers of pages, which nobody needs.
    assert unnoticed < len(places) / 10


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_flipped_bit_in_a_vector_is_found_by_its_checksum_alone(tmp_path, compression):
    """Vectors stay finite and almost of norm 1: nothing else could tell."""
    path = tmp_path / "x.parquet"
    whole = table_of(range(1000), embeddings_schema(DIM))
    path.write_bytes(parquet_bytes(whole))
    if compression == "none":
        metadata = pq.read_schema(path).metadata
        pq.write_table(
            whole.replace_schema_metadata(metadata), path, compression="none",
            use_dictionary=False, write_page_checksum=True,
        )  # fmt: skip
    with open_parquet(str(path)) as file:
        chunk = file.metadata.row_group(0).column(10)
    assert chunk.path_in_schema.startswith("embedding")
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 4] ^= 1
    path.write_bytes(damaged)
    (finding,) = check_file(stored(path), None).findings
    assert finding.kind == Kind.UNREADABLE
    assert "CRC checksum" in finding.message
    if compression == "none":
        # A reader that does not ask reads it.
        read = pq.read_table(path)
        assert read.num_rows == 1000
        assert not read.equals(whole)


def test_a_shard_without_rows_is_sound(tmp_path):
    vectors, tags = (
        write(f"{tmp_path}/{name}", parquet_bytes(schema.empty_table()))
        for name, schema in (("v", embeddings_schema(DIM)), ("t", predictions_schema()))
    )
    files = check_shard(stored(vectors), [stored(tags, "predictions", "w-1")], ["w-1"], None)
    assert [each.findings for each in files] == [[], []]
    assert [len(each.keys) for each in files] == [0, 0]


def fill(output: Path, rows: int, shard: int) -> str:
    """An output of so many items in shards of so many, and a manifest that lists them."""
    for start in range(0, rows, shard):
        some = range(start, start + shard)
        for table, schema, parts in (
            ("embeddings", embeddings_schema(DIM), ["model=m"]),
            ("predictions", predictions_schema(), ["label_set=w-1", "model=m"]),
        ):
            url = table_file(str(output), f"{start:09d}", table, *parts, "dt=2026-01-31")
            write(url, parquet_bytes(table_of(some, schema)))
    listed = output / f"{rows}.txt"
    listed.write_text("".join(f"gs://bucket/archive/{n:09d}.jpg\n" for n in range(rows)))
    return f"--input={listed}"


def peak_bytes(output: Path, rows: int, *arguments: str) -> int:
    """What it takes at most to verify a sound output, in a process of its own."""
    # Not `ru_maxrss`: in that a process begins with what its parent had.
    script = """
        import re, sys
        from pipelines import verify
        status = verify.main(sys.argv[1:])
        told = open("/proc/self/status").read()
        print(status, re.search(r"VmHWM:\\s*([0-9]+) kB", told)[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), f"--output={output}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary, told = done.stdout.splitlines()
    status, peak = told.split()
    assert (status, done.stderr) == ("0", "")
    assert summary.endswith(f", {2 * rows:,} rows, {rows:,} items, 0 findings")
    return int(peak) * 1024


def test_a_row_takes_few_bytes_of_memory(tmp_path):
    """None by itself, for what is kept of it is in files; 32 where a listing is looked up."""
    few, many = 30_000, 300_000
    small, large = tmp_path / "small", tmp_path / "large"
    listed = {output: fill(output, rows, 3000) for output, rows in ((small, few), (large, many))}
    for most, given in ((60, False), (150, True)):
        peaks = [
            peak_bytes(output, rows, *([listed[output]] * given))
            for output, rows in ((small, few), (large, many))
        ]
        assert (peaks[1] - peaks[0]) / (many - few) < most
