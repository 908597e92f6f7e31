"""Items a second of a local run with `--workers=2` over those with one process.

    python tests/benchmarks/workers.py [--case=fast|exact|model ...] [--pairs=3] [--workers=2]
        [--items=N] [--device=cpu|cuda]

Runs are processes of their own, turn about, with start-up taken out as in `throughput.py`: of what
is more than one picture for each worker, and that number's seconds, which are imports, models and
graphs. On a machine that others use, the seconds on the wall are theirs as well: the least of each
say what it is without them, and processor seconds what it costs. By both, one process has so many
cores in use; of a machine that has no more, several processes get nothing more.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import bench


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: the model, how pictures are decoded, and how many there are."""

    name: str
    model: str
    decode: str
    items: int


CASES = {
    "fast": Case("decode-bound, --decode=fast", bench.DEMO_MODEL, "fast", 4000),
    "exact": Case("decode-bound, --decode=exact", bench.DEMO_MODEL, "exact", 2400),
    "model": Case("model-bound", "ViT-B-32", "fast", 320),
}
SIZE = (640, 480)


class Took(NamedTuple):
    """Seconds on the wall and of processors."""

    wall: float
    cpu: float

    def less(self, other: Took) -> Took:
        return Took(self.wall - other.wall, self.cpu - other.cpu)


class Runs:
    """Runs over one folder of pictures, with a given number of workers."""

    def __init__(self, case: Case, folder: Path, options: argparse.Namespace) -> None:
        self._case = case
        self._folder = folder
        self._options = options
        self._numbers = itertools.count()
        self._labels = bench.label_file(folder / "words.yaml")
        self.items = options.items or case.items
        bench.make_jpegs(folder / "pictures", self.items, 100, SIZE)
        bench.make_jpegs(folder / "few", options.workers, options.workers, SIZE)
        self._model = (
            case.model
            if case.model == bench.DEMO_MODEL
            else bench.random_checkpoint(folder / case.model, case.model)
        )

    def _took(self, pictures: Path, workers: int, shard_size: int) -> Took:
        output = self._folder / f"output-{next(self._numbers)}"
        arguments = bench.job_arguments(pictures, [self._labels], output, self._model)
        flags = [
            f"--decode={self._case.decode}",
            f"--workers={workers}",
            f"--shard_size={shard_size}",
            f"--device={self._options.device}",
        ]
        used, _ = bench.measured(bench.job_command([*arguments, *flags]))
        record = bench.run_record(output)
        if record["counts"]["embedded"] != len(list(pictures.iterdir())):
            raise SystemExit(f"the job embedded {record['counts']['embedded']} pictures")
        if record["workers"]["processes"] != workers:
            raise SystemExit(f"{record['workers']['processes']} processes read")
        shutil.rmtree(output)
        return Took(used.wall, used.cpu)

    def few(self, workers: int) -> Took:
        """What a run takes with one picture for each worker."""
        return self._took(self._folder / "few", workers, 1)

    def whole(self, workers: int) -> Took:
        """What a run takes with all pictures, in as many shards for either number of workers."""
        return self._took(
            self._folder / "pictures", workers, -(-self.items // (8 * self._options.workers))
        )


def measure(case: Case, options: argparse.Namespace, folder: Path) -> None:
    """Measure a case and print it."""
    runs = Runs(case, folder, options)
    many = options.workers
    items = runs.items - many
    print(f"{case.name}: {runs.items} JPEGs of {SIZE[0]} x {SIZE[1]}, {case.model}", flush=True)
    few: dict[int, list[Took]] = {1: [], many: []}
    whole: dict[int, list[Took]] = {1: [], many: []}
    for _ in range(options.pairs):
        for workers in (1, many):
            few[workers].append(runs.few(workers))
            whole[workers].append(runs.whole(workers))
    fixed = {workers: of_each(statistics.median, took) for workers, took in few.items()}
    one, more = ([took.less(fixed[n]) for took in whole[n]] for n in (1, many))
    best, best_more = (of_each(min, whole[n]).less(of_each(min, few[n])) for n in (1, many))
    for workers, turns, least in ((1, one, best), (many, more, best_more)):
        print(
            f"  --workers={workers}: start-up {fixed[workers].wall:.1f} s, of processors "
            f"{fixed[workers].cpu:.1f} s; {bench.spread([items / took.wall for took in turns], 0)} "
            f"items/s, at its best {items / least.wall:.0f} on {least.cpu / least.wall:.1f} cores",
            flush=True,
        )
    faster = [alone.wall / shared.wall for alone, shared in zip(one, more, strict=True)]
    dearer = [shared.cpu / alone.cpu for alone, shared in zip(one, more, strict=True)]
    bench.result(
        f"workers, {case.name}, {case.model}: --workers={many} gives {bench.spread(faster)} times "
        f"the items/s, best to best {best.wall / best_more.wall:.2f}, for {bench.spread(dearer)} "
        "times the processors' seconds"
    )


def of_each(what: Callable[[Sequence[float]], float], took: Sequence[Took]) -> Took:
    """The median, or the least, of both columns."""
    return Took(*(what(column) for column in zip(*took, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    print(bench.machine())
    for name in options.case or CASES:
        with bench.scratch() as folder:
            measure(CASES[name], options, folder)


if __name__ == "__main__":
    main()
