"""The job's throughput as a share of a bare loop's: what Beam, tables and accounts cost.

    python tests/benchmarks/overhead.py [--case=decode|model] [--pairs=5]

Both sides run in this process, on the same loaded model, turn about. Both are timed from before
they list the folder until their last result: the job from its `started_at` (which it takes once
its model is loaded) to its record, with all tables written; the loop with one Parquet file of
vectors at its end. Imports and the loading of the model are on neither side; encoding the label
set's twenty prompts is on both. The job makes a SHA-256 of every object, which the loop does not.

Also printed is the ratio of processor time, which neighbours on the machine disturb less; and what
a job of one picture takes, which is the part of the difference that does not grow.

- decode-bound: the demo model, 640 x 480 JPEGs: decoding is nearly all of the work.
- model-bound: ViT-B-32 with random weights: the model is nearly all of the work.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bench
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(bench.ROOT))
from pipelines import options, tag
from transforms.labelvectors import label_vectors
from transforms.reading import BATCHES_AHEAD

if TYPE_CHECKING:
    from transforms.decoding import ImageDecoder
    from transforms.model import OpenClipModel

TARGET = 0.9


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: `items` files of `distinct` contents."""

    name: str
    model: str
    items: int
    distinct: int


CASES = {
    "decode": Case("decode-bound", bench.DEMO_MODEL, items=8000, distinct=300),
    "model": Case("model-bound", "ViT-B-32", items=384, distinct=192),
}


class Turn(NamedTuple):
    """Seconds that one side took, on the wall and of processors."""

    wall: float
    cpu: float


def bare_loop(spec: options.TagSpec, model: OpenClipModel, threads: int, written: Path) -> Turn:
    """The loop that somebody would write without Beam, over the job's own input."""
    from transforms.decoding import ImageDecoder

    decoder = ImageDecoder(model.info.preprocess, spec.max_pixels, spec.background, spec.decode)
    started, cpu = time.perf_counter(), time.process_time()
    ((folder, _),) = spec.inputs
    paths = sorted(Path(folder).iterdir())
    labels = label_vectors(spec.label_sets[0], model)
    vectors, chosen = [], []
    with ThreadPoolExecutor(threads) as pool:
        for pixels in _decoded(paths, decoder, spec.batch_size, pool):
            vectors.append(model.encode_images(pixels))
            chosen.append((vectors[-1] @ labels.vectors.T).argmax(axis=1))
    table = {
        "path": [str(path) for path in paths],
        "embedding": list(np.concatenate(vectors)),
        "label": np.concatenate(chosen),
    }
    pq.write_table(pa.table(table), written)
    return Turn(time.perf_counter() - started, time.process_time() - cpu)


def _decoded(
    paths: Sequence[Path], decoder: ImageDecoder, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[np.ndarray]:
    """Batches of pixels, as many of them ahead of the model as the job has."""

    def one(path: Path, row: np.ndarray) -> None:
        with path.open("rb") as file:
            row[:] = decoder(file.read()).pixels

    ahead: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
    for start in itertools.count(0, batch_size):
        some = paths[start : start + batch_size]
        if some:
            pixels = np.empty((len(some), *decoder.preprocess.size, 3), np.uint8)
            reading = [pool.submit(one, path, pixels[row]) for row, path in enumerate(some)]
            ahead.append((pixels, reading))
        if ahead and (not some or len(ahead) > BATCHES_AHEAD):
            pixels, reading = ahead.popleft()
            for read in reading:
                read.result()
            yield pixels
        elif not some:
            return


def job(arguments: Sequence[str], output: Path) -> Turn:
    """The job, on the wall by its own record."""
    cpu = time.process_time()
    status = tag.main(arguments)
    if status != 0:
        raise SystemExit(f"the job ended with {status}")
    return Turn(bench.run_record(output)["wall_seconds"], time.process_time() - cpu)


def measure(case: Case, pairs: int, threads: int, scratch: Path) -> None:
    """Measure a case and print it."""
    pictures = scratch / "pictures"
    size = bench.make_jpegs(pictures, case.items, case.distinct, (640, 480))
    one = scratch / "one"
    bench.make_jpegs(one, 1, 1, (640, 480))
    labels = bench.label_file(scratch / "words.yaml")
    model_name = case.model
    if model_name != bench.DEMO_MODEL:
        model_name = bench.random_checkpoint(scratch / case.model, case.model)
    print(f"{case.name}: {case.items} JPEGs of {size // 1024} KiB, 640 x 480, {case.model}")

    from transforms.model import shared_model

    numbers = itertools.count()

    def run_job(inputs: Path) -> Turn:
        output = scratch / f"output-{next(numbers)}"
        return job(bench.job_arguments(inputs, [labels], output, model_name), output)

    spec = options.parse_tag(bench.job_arguments(pictures, [labels], scratch, model_name))
    # The job's own copy, which it finds loaded.
    model = shared_model(spec.model)
    loop = functools.partial(bare_loop, spec, model, threads, scratch / "loop.parquet")

    ratios, cpu_ratios = [], []
    for of_loop, of_job in bench.interleaved(loop, lambda: run_job(pictures), pairs):
        ratios.append(of_loop.wall / of_job.wall)
        cpu_ratios.append(of_loop.cpu / of_job.cpu)
        print(
            f"  loop {case.items / of_loop.wall:6.1f} items/s"
            f"   job {case.items / of_job.wall:6.1f} items/s"
            f"   ratio {ratios[-1]:.3f}, of processor time {cpu_ratios[-1]:.3f}",
            flush=True,
        )
    fixed = statistics.median(run_job(one).wall for _ in range(3))
    print(f"  a job of one picture takes {fixed:.2f} s: listing, prompts, graph and files")
    bench.result(
        f"overhead, {case.name}: the job at {bench.spread(ratios, 3)} of the loop's throughput, "
        f"{bench.spread(cpu_ratios, 3)} by processor time; target {TARGET}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, help="of the loop (default: as many as the job's --read_concurrency)"
    )
    args = parser.parse_args()
    defaults = options.parse_tag(["--input=x", "--labels=everyday", "--output=x"])
    print(bench.machine())
    for name in args.case or CASES:
        with bench.scratch() as folder:
            measure(CASES[name], args.pairs, args.threads or defaults.limits.concurrency, folder)


if __name__ == "__main__":
    main()
