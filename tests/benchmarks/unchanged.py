"""A night on which nothing changed: the whole job over the least that reads the same.

    python tests/benchmarks/unchanged.py [--items=1000000] [--pairs=3] [--case=files|manifest]

- files: the input is a folder of as many files (hard links, a thousand in each folder).
- manifest: it is a Parquet file with the columns `uri` and `version`.

The output, which is made up, holds all of them: embeddings in shards of the default size, with
vectors of the demo model's length, predictions, and failures without rows. Beside the job runs a
plain program that lists the same files and asks for each one's time and size (or reads the
manifest), and reads `uri`, `version` and `id` of the same embeddings files with pyarrow alone. It
compares nothing. Both are processes of their own, turn about, imports included; the pages of all
files are in memory. Also printed is the ratio of processor time, which neighbours on the machine
disturb less, and the job's peak memory over that of the plain program.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bench

TARGET = 3.0
CASES = ("files", "manifest")
IN_A_FOLDER = 1000


def input_of(scratch: Path, case: str) -> Path:
    return scratch / ("in" if case == "files" else "in.parquet")


def prepare(scratch: Path, items: int, case: str) -> None:
    """Make the input, and the output that holds it."""
    sys.path.insert(0, str(bench.ROOT))
    from pipelines import options
    from transforms.listing import make_shard
    from transforms.modelstore import describe_model

    labels = bench.label_file(scratch / "words.yaml")
    arguments = bench.job_arguments(
        input_of(scratch, case), [labels], scratch / "out", bench.DEMO_MODEL
    )
    spec = options.parse_tag(arguments)
    model = describe_model(spec.model)
    listed = _make_files(scratch, items) if case == "files" else _make_manifest(scratch, items)
    while refs := list(itertools.islice(listed, spec.shard_size)):
        _write_shard(make_shard(refs, model.model_id).shard_id, refs, spec, model)


def _make_files(scratch: Path, items: int) -> Iterator[Any]:
    """Hard links to a thousand files, each with a time of its own; gives what is listed."""
    from transforms.listing import list_media

    contents = scratch / "contents"
    contents.mkdir()
    for number in range(IN_A_FOLDER):
        path = contents / f"{number}"
        path.write_bytes(b"x" * (number + 1))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000.123 + number))
    for number in range(items):
        folder = scratch / "in" / f"{number // IN_A_FOLDER:05d}"
        if number % IN_A_FOLDER == 0:
            folder.mkdir(parents=True)
        os.link(contents / f"{number % IN_A_FOLDER}", folder / f"picture-{number:08d}.jpg")
    return list_media(str(scratch / "in"))


def _make_manifest(scratch: Path, items: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from transforms.records import MediaRef

    names = [
        f"gs://archive/{number // IN_A_FOLDER:05d}/picture-{number:08d}.jpg"
        for number in range(items)
    ]
    versions = [str(1_700_000_000_000_000 + number) for number in range(items)]
    pq.write_table(pa.table({"uri": names, "version": versions}), scratch / "in.parquet")
    return map(MediaRef, names, versions)


def _write_shard(shard_id: str, refs: list[Any], spec: Any, model: Any) -> None:
    """A shard's three files, as `WriteShards` writes them."""
    import hashlib

    import numpy as np
    import pyarrow as pa

    from transforms import schemas
    from transforms.writing import parquet_bytes, table_file

    rows = len(refs)
    rng = np.random.default_rng(int(shard_id, 16))
    vectors = rng.standard_normal((rows, model.dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    now = datetime.now(UTC)
    item = {
        "uri": [ref.uri for ref in refs],
        "version": [ref.version for ref in refs],
        "id": [None] * rows,
    }
    made = {"run_id": ["20260101T020000-abcdef"] * rows, "embedded_at": [now] * rows}
    embeddings = {
        **item,
        **made,
        "modality": ["image"] * rows,
        "content_sha256": [hashlib.sha256(ref.uri.encode()).hexdigest() for ref in refs],
        "width": [1600] * rows,
        "height": [1200] * rows,
        "text_windows": [None] * rows,
        "unused": [None] * rows,
        "bytes": rng.integers(100_000, 900_000, rows),
        "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), model.dim),
    }
    scores = rng.random(rows, np.float32)
    predictions = {
        **item,
        **made,
        "label": [bench.WORDS[number] for number in rng.integers(0, len(bench.WORDS), rows)],
        "rank": [1] * rows,
        "score": scores,
        "similarity": scores,
        "tagged_at": [now] * rows,
    }
    schema = schemas.embeddings_schema(model.dim)
    of_model = f"model={model.model_id}"
    of_labels = f"label_set={spec.label_sets[0].label_set_id}"
    failures = schemas.failures_schema()
    for table, *partitions in (
        (_table(embeddings, schema), "embeddings", of_model),
        (_table(predictions, schemas.predictions_schema()), "predictions", of_labels, of_model),
        (failures.empty_table(), "failures"),
    ):
        path = Path(table_file(spec.run.output, shard_id, *partitions, "dt=2026-01-01"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet_bytes(table))


def _table(columns: dict[str, Any], schema: Any) -> Any:
    import pyarrow as pa

    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def plain(given: str, output: str) -> None:
    """The plain program: list, or read the manifest, and read the key columns."""
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    listed = (
        sum(1 for _ in _listed(given))
        if os.path.isdir(given)
        else pq.read_table(given, columns=["uri", "version"]).num_rows
    )
    files = ds.dataset(f"{output}/embeddings", format="parquet")
    held = files.to_table(columns=["uri", "version", "id"]).num_rows
    print(json.dumps([listed, held]))


def _listed(folder: str) -> Iterator[tuple[str, str]]:
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            found = os.stat(f"{path}/{name}")
            yield f"{path}/{name}", f"{found.st_mtime}-{found.st_size}"


def run_plain(scratch: Path, case: str, items: int) -> bench.Used:
    command = [sys.executable, __file__, "--plain", str(input_of(scratch, case))]
    used, said = bench.measured([*command, str(scratch / "out")])
    if json.loads(said) != [items, items]:
        raise SystemExit(f"the plain program has found {said}")
    return used


def run_night(scratch: Path, case: str, items: int) -> bench.Used:
    shutil.rmtree(scratch / "out" / "runs", ignore_errors=True)
    arguments = bench.job_arguments(
        input_of(scratch, case), [scratch / "words.yaml"], scratch / "out", bench.DEMO_MODEL
    )
    used, _ = bench.measured(bench.job_command(arguments))
    record = bench.run_record(scratch / "out")
    if record["counts"]["reused"] != items or record["files"] or record["model"]["loaded"]:
        raise SystemExit(f"something changed: {record}")
    return used


def measure(scratch: Path, case: str, items: int, pairs: int) -> None:
    command = [sys.executable, __file__, "--prepare", str(scratch), str(items), case]
    subprocess.run(command, check=True)
    turns = []
    for of_plain, of_job in bench.interleaved(
        lambda: run_plain(scratch, case, items), lambda: run_night(scratch, case, items), pairs
    ):
        turns.append((of_plain, of_job))
        print(
            f"  {case}: plain {of_plain.wall:5.1f} s, {of_plain.cpu:5.1f} s of processors"
            f"   job {of_job.wall:5.1f} s, {of_job.cpu:5.1f} s"
            f"   ratio {of_job.wall / of_plain.wall:.2f}",
            flush=True,
        )
    plain_peak, job_peak = (
        statistics.median(turn[side].peak_mebibytes for turn in turns) for side in (0, 1)
    )
    walls = bench.spread([job.wall / plain.wall for plain, job in turns])
    cpus = bench.spread([job.cpu / plain.cpu for plain, job in turns])
    bench.result(
        f"nothing changed, {items:,} items ({case}): the job takes {walls} times what listing and "
        f"reading the key columns takes, {cpus} by processor time; target at most {TARGET:g}; "
        f"peak {job_peak:.0f} MiB, of the plain program {plain_peak:.0f} MiB"
    )


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        return prepare(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    if sys.argv[1:2] == ["--plain"]:
        return plain(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--case", choices=CASES, action="append")
    args = parser.parse_args()
    print(bench.machine())
    for case in args.case or CASES:
        with bench.scratch() as scratch:
            measure(scratch, case, args.items, args.pairs)
    return None


if __name__ == "__main__":
    main()
