"""Cost per picture and peak memory of a long job over those of a short one: neither may grow.

    python tests/benchmarks/growth.py [--small=1000] [--large=100000] [--repeats=5]

Each job is a process of its own with default options and the demo model, on 320 x 240 JPEGs, each
of bytes of its own. Cost is what is more than one picture: seconds less those of a job of a single
one, over items less one. The peak is the resident set that the system accounts to the process when
it ends. The small job is repeated, before the large one and after it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path

import bench

TARGET = 1.1
DISTINCT = 300


def job(pictures: Path, labels: Path, folder: Path) -> bench.Used:
    """Run the job and give what it took."""
    output = folder / "output"
    used, _ = bench.measured(
        bench.job_command(bench.job_arguments(pictures, [labels], output, bench.DEMO_MODEL))
    )
    embedded = bench.run_record(output)["counts"]["embedded"]
    shutil.rmtree(output)
    print(
        f"  {embedded:7,d} pictures: {used.wall:7.2f} s, {used.cpu:7.2f} s of processors, "
        f"{used.peak_mebibytes:7.1f} MiB",
        flush=True,
    )
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5, help="of the small one")
    args = parser.parse_args()
    print(bench.machine())
    with bench.scratch() as folder:
        labels = bench.label_file(folder / "words.yaml")
        pictures = {items: folder / f"{items}-pictures" for items in (1, args.small, args.large)}
        for items, path in pictures.items():
            bench.make_jpegs(path, items, DISTINCT, (320, 240))
        ones = [job(pictures[1], labels, folder) for _ in range(3)]
        smalls = [job(pictures[args.small], labels, folder) for _ in range(args.repeats)]
        large = job(pictures[args.large], labels, folder)
        smalls += [job(pictures[args.small], labels, folder) for _ in range(args.repeats)]

    def each(used: bench.Used, items: int, what: str) -> float:
        fixed = statistics.median(getattr(one, what) for one in ones)
        return (getattr(used, what) - fixed) / (items - 1)

    ratios = {
        what: [each(large, args.large, what) / each(small, args.small, what) for small in smalls]
        for what in ("wall", "cpu")
    }
    peaks = [large.peak_mebibytes / small.peak_mebibytes for small in smalls]
    bench.result(
        f"growth, {args.small:,} to {args.large:,} pictures: cost of each "
        f"{bench.spread(ratios['wall'], 3)} times, {bench.spread(ratios['cpu'], 3)} by processor "
        f"time; peak memory {bench.spread(peaks, 3)} times; target at most {TARGET}"
    )


if __name__ == "__main__":
    main()
