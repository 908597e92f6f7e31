"""A night on which the archive has grown by one percent, as a share of the first night's cost.

    python tests/benchmarks/one_percent.py [--items=10000] [--size=2048x1536] [--nights=3]
        [--decode=exact]

The demo model, `--decode=exact`; JPEGs, each with bytes of its own (the same hundred pictures
with a comment in each that no other has: what is the same would be embedded once). The first run
embeds all of them, then come nights with one percent of new ones each. Measured are whole
processes, start-up included, which is also given by itself: a night with a single new picture.
On the wall the share depends on the machine: more cores make the first run shorter, and start-up
stays as it is; by processor time it does not. So does `--decode=fast`, the job's own default, make
it shorter, and the share larger.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import bench

TARGET = 0.03
DISTINCT = 100


def night(arguments: list[str], output: Path, new: int, held: int) -> bench.Used:
    for record in output.glob("runs/*.json"):
        record.unlink()
    used, _ = bench.measured(bench.job_command(arguments))
    counts = bench.run_record(output)["counts"]
    if (counts["embedded"], counts["reused"]) != (new, held):
        raise SystemExit(f"{new} pictures were new and {held} were not, and the job says {counts}")
    print(
        f"  {new:6,d} new of {new + held:,}: {used.wall:6.2f} s, {used.cpu:6.2f} s of processors",
        flush=True,
    )
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--size", default="2048x1536")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--decode", choices=("exact", "fast"), default="exact")
    args = parser.parse_args()
    print(bench.machine())
    width, _, height = args.size.partition("x")
    size = int(width), int(height)
    with bench.scratch() as folder:
        pictures, output = folder / "pictures", folder / "output"
        labels = bench.label_file(folder / "words.yaml")
        arguments = bench.job_arguments(pictures, [labels], output, bench.DEMO_MODEL)
        arguments.append(f"--decode={args.decode}")

        def run(held: int, new: int) -> bench.Used:
            bench.make_jpegs(pictures, new, DISTINCT, size, quality=85, first=held)
            return night(arguments, output, new, held)

        full = run(0, args.items)
        held = args.items
        nights, alone = [], []
        for _ in range(args.nights):
            nights.append(run(held, args.items // 100))
            held += args.items // 100
            alone.append(run(held, 1))
            held += 1
    bench.result(
        f"one percent new, {args.items:,} JPEGs of {args.size}, {args.decode}: a night costs "
        f"{bench.spread([one.wall / full.wall for one in nights], 4)} of the full run, "
        f"{bench.spread([one.cpu / full.cpu for one in nights], 4)} by processor time; target at "
        f"most {TARGET}; the full run takes {full.wall:.0f} s, a night "
        f"{statistics.median(one.wall for one in nights):.1f} s, of which start-up takes "
        f"{statistics.median(one.wall for one in alone):.1f} s"
    )


if __name__ == "__main__":
    main()
