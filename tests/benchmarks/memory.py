"""Peak memory of a long job over that of a short one: it must not grow with the archive.

    python tests/benchmarks/memory.py [--small=2000] [--large=20000] [--repeats=3]

Each job is a process of its own with default options and the demo model, on 320 x 240 JPEGs (hard
links to a few hundred contents, each under its own name). Measured is the peak resident set that
the system accounts to the process when it ends, as `/usr/bin/time` shows it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
from pathlib import Path

import bench

TARGET = 1.1
DISTINCT = 300


def peak_mebibytes(pictures: Path, labels: Path, output: Path) -> float:
    """Run the job and give its peak resident set."""
    arguments = bench.job_arguments(pictures, [labels], output, bench.DEMO_MODEL)
    command = bench.job_command(arguments)
    # Linux carries the peak of the process that starts a child into the child's: ours stays small
    # because nothing here imports torch or Beam.
    child = subprocess.Popen(command, cwd=bench.ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"the job ended with {child.returncode}")
    record = bench.run_record(output)
    peak = usage.ru_maxrss / 1024
    print(f"  {record['counts']['embedded']:6d} pictures: {peak:7.1f} MiB", flush=True)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3, help="of the small one")
    parser.add_argument("--large_repeats", type=int, default=1)
    args = parser.parse_args()
    print(bench.machine())
    with bench.scratch() as folder:
        labels = bench.label_file(folder / "words.yaml")
        peaks = {}
        for items, repeats in ((args.small, args.repeats), (args.large, args.large_repeats)):
            pictures = folder / f"{items}-pictures"
            bench.make_jpegs(pictures, items, DISTINCT, (320, 240))
            peaks[items] = statistics.median(
                peak_mebibytes(pictures, labels, folder / f"output-{items}-{repeat}")
                for repeat in range(repeats)
            )
    small, large = peaks[args.small], peaks[args.large]
    bench.result(
        f"memory: peak {large:.0f} MiB for {args.large:,} pictures, {small:.0f} MiB for "
        f"{args.small:,}: {large / small:.3f} times; target at most {TARGET}"
    )


if __name__ == "__main__":
    main()
