"""A job of one picture, from the shell and back, over importing torch and open_clip and loading.

    python tests/benchmarks/startup.py [--models=demo,ViT-B-32] [--pairs=7]

Both are processes of their own, turn about; the job also lists, reads, embeds, tags and writes, so
that its first batch was earlier than it is measured here. The other one imports torch and
open_clip and has the same checkpoint loaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import bench

TARGET = 1.5
LOAD = "import sys, torch, open_clip; open_clip.create_model(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="demo,ViT-B-32")
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    print(bench.machine())
    for name in args.models.split(","):
        with bench.scratch() as folder:
            measure(name, args.pairs, folder)


def measure(name: str, pairs: int, folder: Path) -> None:
    """Measure a model and print it."""
    checkpoint = f"local-dir:{bench.ROOT / 'transforms' / 'data' / 'demo_model'}"
    if name != bench.DEMO_MODEL:
        checkpoint = bench.random_checkpoint(folder / "model", name)
    pictures, labels = folder / "one", bench.label_file(folder / "words.yaml")
    bench.make_jpegs(pictures, 1, 1, (640, 480))
    outputs = iter(range(2 * pairs + 2))

    def job() -> float:
        output = folder / f"output-{next(outputs)}"
        arguments = bench.job_arguments(pictures, [labels], output, checkpoint)
        return bench.measured(bench.job_command(arguments))[0].wall

    def load() -> float:
        return bench.measured([sys.executable, "-W", "ignore", "-c", LOAD, checkpoint])[0].wall

    turns = list(bench.interleaved(load, job, pairs))
    bench.result(
        f"start-up, {name}: a job of one picture takes {bench.spread([b for _, b in turns])} s, "
        f"{bench.spread([b / a for a, b in turns])} times imports and load; target under {TARGET}"
    )


if __name__ == "__main__":
    main()
