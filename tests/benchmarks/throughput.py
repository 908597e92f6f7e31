"""The job's throughput over that of the program that anybody would write, and of the model alone.

    python tests/benchmarks/throughput.py [--case=small|large|model ...] [--pairs=5]
        [--device=cpu|cuda] [--precision=fp32|bf16] [--items=N] [--models=ViT-L-14,RN50]

Everything is a process of its own, job and programs (`obvious.py`), turn about. Throughput is of
what is more than one picture: items less one, over seconds less those that the same command takes
for one picture, which are imports, the model's load and, of the job, its graph.
With `--device=cuda` it asks for a GPU, and says its name; `--models` does the model-bound case for
other architectures, with random weights made on the spot.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bench


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: the model, the pictures, and what is to be reached over each feed."""

    name: str
    model: str
    items: int
    size: tuple[int, int]
    targets: Mapping[tuple[str, str], float]
    """By our `--decode` and the obvious program's feed."""


CASES = {
    "small": Case(
        "decode-bound, 640 x 480",
        bench.DEMO_MODEL,
        8000,
        (640, 480),
        {("fast", "loader"): 3.0, ("exact", "loader"): 1.3, ("fast", "pool"): 1.8},
    ),
    "large": Case(
        "decode-bound, 1920 x 1440",
        bench.DEMO_MODEL,
        3000,
        (1920, 1440),
        {("fast", "loader"): 4.0},
    ),
    "model": Case(
        "model-bound",
        "ViT-B-32",
        512,
        (640, 480),
        {("fast", "ready"): 0.97, ("fast", "loader"): 1.0},
    ),
}


class Sides:
    """The job and the programs on one folder of pictures, each as a process of its own."""

    def __init__(self, case: Case, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._options = options
        self._labels = bench.label_file(folder / "words.yaml")
        self._numbers = itertools.count()
        self.pictures, self._one = folder / "pictures", folder / "one"
        self.items = options.items or case.items
        bench.make_jpegs(self.pictures, self.items, 200, case.size)
        bench.make_jpegs(self._one, 1, 1, case.size)
        if case.model == bench.DEMO_MODEL:
            self._checkpoint = bench.ROOT / "transforms" / "data" / "demo_model"
            self.model = case.model
        else:
            self._checkpoint = folder / case.model
            self.model = bench.random_checkpoint(self._checkpoint, case.model)

    def _command(self, side: tuple[str, str], pictures: Path, output: Path) -> Sequence[str]:
        what, how = side
        shared = [f"--device={self._options.device}", f"--precision={self._options.precision}"]
        if what == "job":
            arguments = bench.job_arguments(pictures, [self._labels], output, self.model)
            return bench.job_command([*arguments, f"--decode={how}", *shared])
        return [
            sys.executable,
            str(bench.HERE / "obvious.py"),
            f"--pictures={pictures}",
            f"--checkpoint={self._checkpoint}",
            f"--written={output}.parquet",
            f"--feed={how}",
            *shared,
        ]

    def _seconds(self, side: tuple[str, str], pictures: Path) -> float:
        output = self._folder / f"output-{next(self._numbers)}"
        used, _ = bench.measured(self._command(side, pictures, output))
        if side[0] == "job":
            embedded = bench.run_record(output)["counts"]["embedded"]
            if embedded != len(list(pictures.iterdir())):
                raise SystemExit(f"the job embedded {embedded} pictures")
            shutil.rmtree(output)
        return used.wall

    def fixed(self, side: tuple[str, str], times: int = 3) -> float:
        """Seconds for one picture, the median."""
        return statistics.median(self._seconds(side, self._one) for _ in range(times))

    def rate(self, side: tuple[str, str], fixed: float) -> float:
        """Items a second beyond the first."""
        return (self.items - 1) / (self._seconds(side, self.pictures) - fixed)


def measure(case: Case, options: argparse.Namespace, folder: Path) -> None:
    """Measure a case and print it."""
    sides = Sides(case, folder, options)
    jobs = list(dict.fromkeys(("job", decode) for decode, _ in case.targets))
    programs = list(dict.fromkeys(("program", feed) for _, feed in case.targets))
    fixed = {side: sides.fixed(side) for side in [*programs, *jobs]}
    print(f"{case.name}: {sides.items} JPEGs, {case.model}", flush=True)
    for (what, how), seconds in fixed.items():
        print(f"  one picture by the {what}, {how}: {seconds:.2f} s")
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in case.targets}
    for _ in range(options.pairs):
        rates = {side: sides.rate(side, fixed[side]) for side in [*programs, *jobs]}
        print(
            "  " + ", ".join(f"{how} {rate:.1f}/s" for (_, how), rate in rates.items()), flush=True
        )
        for decode, feed in case.targets:
            ratios[decode, feed].append(rates["job", decode] / rates["program", feed])
    for (decode, feed), target in case.targets.items():
        bench.result(
            f"throughput, {case.name}, {case.model}: --decode={decode} is "
            f"{bench.spread(ratios[decode, feed])} times {FEEDS[feed]}; target {target}"
        )


FEEDS = {
    "loader": "the program with a DataLoader",
    "pool": "the program with a pool of threads",
    "ready": "the model alone on ready tensors",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--items", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--models", default="", help="architectures for the model-bound case")
    args = parser.parse_args()
    print(bench.machine())
    cases = [CASES[name] for name in args.case or CASES]
    if args.models:
        of_models = CASES["model"]
        cases = [
            Case(of_models.name, model, of_models.items, of_models.size, of_models.targets)
            for model in args.models.split(",")
        ]
    for case in cases:
        with bench.scratch() as folder:
            measure(case, args, folder)


if __name__ == "__main__":
    main()
