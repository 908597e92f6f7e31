"""Run every benchmark with its default settings, one after the other, and sum them up.

python tests/benchmarks/run_all.py      (or: make bench)
"""

from __future__ import annotations

import datetime
import subprocess
import sys

import bench

NAMES = (
    "parity",
    "decoding",
    "decode_parity",
    "demo_accuracy",
    "unseen",
    "overhead",
    "startup",
    "throughput",
    "workers",
    "growth",
    "precision",
    "gpu",
    "latency",
    "estimate",
    "listing",
    "unchanged",
    "one_percent",
    "rescoring",
    "labels_improve",
)
NOT_MEASURED = 3
"""How a benchmark ends that lacks what it measures on; it has said what."""


def run(name: str) -> tuple[int, list[str]]:
    """Run one, showing what it prints; gives its exit status and its result lines."""
    print(f"\n== {name}", flush=True)
    results = []
    command = [sys.executable, str(bench.HERE / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.startswith(bench.RESULT_MARK):
                results.append(line)
    return process.returncode, results


def main() -> int:
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {bench.machine()}")
    broken = []
    lines = []
    for name in NAMES:
        status, results = run(name)
        lines += results
        if status not in (0, NOT_MEASURED):
            broken.append(name)
    print("\n== results")
    sys.stdout.writelines(lines)
    if broken:
        print(f"did not run to their end: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
