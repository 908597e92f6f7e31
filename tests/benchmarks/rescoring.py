"""Rescoring's throughput as a share of numpy's and pyarrow's own, and its peak memory.

    python tests/benchmarks/rescoring.py [--rows=1000000] [--few=100000] [--labels=1000] [--pairs=3]

An output of synthetic vectors (512 floats, 4,096 rows a file, as the tag job writes them) is
scored against a label set by `beamtag rescore`, with the job's own graph, tables and record: five
rows of predictions for each vector. The model is a checkpoint made on the spot, of which only the
small text tower is loaded. Turn about with it, in the same process:

- numpy: the product of the same vectors, in memory, with the same label vectors, block by block,
  and of each row the five best by `argpartition` and a sort of those;
- pyarrow: the vectors' column of the same files, read and let go, file by file.

The ratio is the sum of their two times over the job's own (`wall_seconds` of its record). Imports
are on neither side; the loading of the text tower and its prompts are on the job's.

Peak memory is of jobs in processes of their own, on few and on all rows.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bench
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(bench.ROOT / "tests"))
sys.path.insert(0, str(bench.ROOT))
from pipelines import rescore
from transforms.schemas import embeddings_schema
from transforms.writing import parquet_bytes, table_file

TARGET = 0.7
MEMORY_TARGET = 1.1
DIM = 512
SHARD_ROWS = 4096
"""The tag job's default."""
TOP_K = 5

_JOB = """
import sys
from pathlib import Path
from pipelines import rescore
status = rescore.main(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(status)
"""
"""A job that tells its peak: what the system accounts to a child begins with its parent's."""


class Archive(NamedTuple):
    """An output of vectors, and how it is scored."""

    output: Path
    rows: int
    model: str
    labels: Path

    @property
    def arguments(self) -> list[str]:
        return [
            f"--output={self.output}",
            f"--labels={self.labels}",
            f"--model={self.model}",
            "--device=cpu",
            "--again",
            "--quiet",
        ]

    @property
    def files(self) -> list[Path]:
        return sorted((self.output / "embeddings").glob("*/*/*.parquet"))


def make_model(folder: Path) -> str:
    """A small model whose vectors have `DIM` numbers, as `--model` takes it."""
    from checkpoints import CONFIGS, make_checkpoint

    config = copy.deepcopy(CONFIGS["vit"])
    config["model_cfg"]["embed_dim"] = DIM
    CONFIGS["wide"] = config
    return f"local-dir:{make_checkpoint(folder, 'wide')}"


def make_output(output: Path, rows: int, model: str) -> None:
    """Embeddings of random directions, in files as the tag job writes them."""
    from transforms.modelstore import describe_model
    from transforms.records import ModelSpec

    model_id = describe_model(ModelSpec(model, device="cpu")).model_id
    now = datetime.datetime.now(datetime.UTC)
    schema = embeddings_schema(DIM)
    random = np.random.default_rng(0)
    for start in range(0, rows, SHARD_ROWS):
        size = min(SHARD_ROWS, rows - start)
        vectors = random.standard_normal((size, DIM), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        numbers = range(start, start + size)
        columns = {
            "uri": [f"gs://archive/photos/{n // 500:05d}/picture-{n:08d}.jpg" for n in numbers],
            "version": [str(1_700_000_000_000_000 + n) for n in numbers],
            "id": [None] * size,
            "modality": ["image"] * size,
            "content_sha256": random.bytes(32 * size).hex(),
            "width": [1920] * size,
            "height": [1080] * size,
            "text_windows": [None] * size,
            "unused": [None] * size,
            "bytes": random.integers(10_000, 1_000_000, size),
            "embedding": pa.FixedSizeListArray.from_arrays(
                vectors.reshape(-1), type=schema.field("embedding").type
            ),
            "run_id": ["20260101T000000-000000"] * size,
            "embedded_at": [now] * size,
        }
        digests = columns["content_sha256"]
        columns["content_sha256"] = [digests[64 * row : 64 * row + 64] for row in range(size)]
        table = pa.table(
            [pa.array(columns[field.name], field.type) for field in schema], schema=schema
        )
        url = Path(
            table_file(
                str(output), f"{start:016x}", "embeddings", f"model={model_id}", "dt=2026-01-01"
            )
        )
        url.parent.mkdir(parents=True, exist_ok=True)
        url.write_bytes(parquet_bytes(table))


class Turn(NamedTuple):
    """Seconds that one side took, on the wall and of processors, and on what."""

    wall: float
    cpu: float
    told: str


def run_numpy(vectors: np.ndarray, labels: np.ndarray) -> None:
    """The product and each row's best, in blocks as large as the job's files."""
    found = []
    for start in range(0, len(vectors), SHARD_ROWS):
        similarity = vectors[start : start + SHARD_ROWS] @ labels.T
        places = np.argpartition(similarity, -TOP_K, axis=1)[:, -TOP_K:]
        values = np.take_along_axis(similarity, places, axis=1)
        order = np.argsort(-values, axis=1)
        best = (np.take_along_axis(part, order, axis=1) for part in (places, values))
        found.append(tuple(best))
    assert sum(len(places) for places, _ in found) == len(vectors)


def run_pyarrow(archive: Archive) -> None:
    """The vectors of all files, read and let go."""
    rows = sum(pq.read_table(file, columns=["embedding"]).num_rows for file in archive.files)
    assert rows == archive.rows


def vectors_of(archive: Archive) -> np.ndarray:
    """All vectors of an output, in memory."""
    vectors = np.empty((archive.rows, DIM), np.float32)
    start = 0
    for file in archive.files:
        column = pq.read_table(file, columns=["embedding"])["embedding"].combine_chunks()
        part = column.flatten().to_numpy().reshape(-1, DIM)
        vectors[start : start + len(part)] = part
        start += len(part)
    return vectors


def run_job(archive: Archive) -> Turn:
    """A job, on the wall by its own record."""
    shutil.rmtree(archive.output / "runs", ignore_errors=True)
    cpu = time.process_time()
    status = rescore.main(archive.arguments)
    if status != 0:
        raise SystemExit(f"the job ended with {status}")
    record = bench.run_record(archive.output)
    assert record["scored"] == archive.rows, record
    spent = {stage: sum(seconds.values()) for stage, seconds in record["stages"].items()}
    told = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent.items())
    return Turn(record["wall_seconds"], time.process_time() - cpu, told)


def peaks(archive: Archive, repeats: int) -> Iterator[float]:
    """The peak resident sets, in MiB, of jobs in processes of their own."""
    for _ in range(repeats):
        shutil.rmtree(archive.output / "runs", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", _JOB, *archive.arguments],
            cwd=bench.ROOT, env={**os.environ, "PYTHONPATH": str(bench.ROOT)},
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peak = int(done.stdout) / 1024
        print(f"  {archive.rows:9,d} rows: {peak:7.1f} MiB", flush=True)
        yield peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    print(bench.machine())
    with bench.scratch() as folder:
        model = make_model(folder / "model")
        labels = bench.label_file(
            folder / "words.yaml", [f"word {number}" for number in range(args.labels)]
        )
        many = Archive(folder / "many", args.rows, model, labels)
        few = Archive(folder / "few", args.few, model, labels)
        for archive in (many, few):
            make_output(archive.output, archive.rows, model)
        print("peak memory of a job")
        small, large = statistics.median(peaks(few, 3)), statistics.median(peaks(many, 1))
        bench.result(
            f"rescoring, memory: peak {large:.0f} MiB for {many.rows:,} rows, {small:.0f} MiB for "
            f"{few.rows:,}: {large / small:.3f} times; target at most {MEMORY_TARGET}"
        )
        measure(many, args.labels, args.pairs)


def measure(archive: Archive, labels: int, pairs: int) -> None:
    """Measure the job against numpy and pyarrow, and print it."""
    vectors = vectors_of(archive)
    # What they are does not matter to a product.
    words = np.ascontiguousarray(vectors[:labels])

    def plain() -> Turn:
        started, cpu = time.perf_counter(), time.process_time()
        run_numpy(vectors, words)
        product = time.perf_counter()
        run_pyarrow(archive)
        ended = time.perf_counter()
        return Turn(ended - started, time.process_time() - cpu, f"reading {ended - product:.1f} s")

    ratios, cpu_ratios, speeds = [], [], []
    for of_plain, of_job in bench.interleaved(plain, lambda: run_job(archive), pairs):
        ratios.append(of_plain.wall / of_job.wall)
        cpu_ratios.append(of_plain.cpu / of_job.cpu)
        speeds.append(archive.rows / of_job.wall)
        print(
            f"  numpy and pyarrow {archive.rows / of_plain.wall:8,.0f} embeddings/s"
            f" ({of_plain.told})   job {speeds[-1]:8,.0f} embeddings/s ({of_job.told})"
            f"   ratio {ratios[-1]:.3f}, of processor time {cpu_ratios[-1]:.3f}",
            flush=True,
        )
    bench.result(
        f"rescoring: {archive.rows:,} x {DIM} against {labels:,} labels at "
        f"{statistics.median(speeds):,.0f} embeddings/s, {bench.spread(ratios)} of numpy's and "
        f"pyarrow's own, {bench.spread(cpu_ratios)} by processor time; target {TARGET}"
    )


if __name__ == "__main__":
    main()
