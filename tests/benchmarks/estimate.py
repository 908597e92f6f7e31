"""What `beamtag estimate` says of a run, as a share of what the run then takes.

    python tests/benchmarks/estimate.py [--items=4000] [--sample=500] [--pairs=3]

Both are processes of their own, turn about: first the estimate from a sample, then the job on all
of the pictures, into a new output, timed from its start to its end. The pictures are 640 x 480
JPEGs of 300 contents, each file with other bytes behind its end so that none is embedded once for
another. A second case is a model that takes longer than decoding does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import bench

sys.path.insert(0, str(bench.ROOT / "tests"))

CONTENTS = 300


def make_pictures(folder: Path, items: int) -> None:
    """So many files, no two of the same bytes, of up to `CONTENTS` pictures."""
    made = folder.parent / "contents"
    bench.make_jpegs(made, min(items, CONTENTS), min(items, CONTENTS), (640, 480))
    contents = [path.read_bytes() for path in sorted(made.iterdir())]
    folder.mkdir()
    for number in range(items):
        content = contents[number % len(contents)] + number.to_bytes(4)
        (folder / f"{number:06d}.jpg").write_bytes(content)


def measure(case: str, model: str, items: int, sample: int, pairs: int, scratch: Path) -> None:
    """Measure a case and print it."""
    pictures = scratch / "pictures"
    make_pictures(pictures, items)
    labels = bench.label_file(scratch / "words.yaml")
    flags = [f"--input={pictures}", f"--labels={labels}", f"--model={model}"]
    command = [sys.executable, "-m", "pipelines.cli"]
    ratios = []
    within = 0
    for pair in range(pairs):
        used, said = bench.measured([*command, "estimate", "--json", f"--sample={sample}", *flags])
        told = json.loads(said)
        seconds = told["estimates"][0]["seconds"]
        output = scratch / f"output-{pair}"
        job, _ = bench.measured([*command, "tag", "--quiet", f"--output={output}", *flags])
        ratios.append(seconds["likely"] / job.wall)
        within += seconds["least"] <= job.wall <= seconds["most"]
        print(
            f"  estimated {seconds['likely']:6.1f} s ({seconds['least']:.1f} to "
            f"{seconds['most']:.1f}) in {used.wall:.1f} s, took {job.wall:6.1f} s: "
            f"{ratios[-1]:.2f}; {told['bottleneck']['kind']}-bound, "
            f"the run {bench.run_record(output)['bottleneck']['kind']}-bound",
            flush=True,
        )
    bench.result(
        f"estimate, {case}: of a run of {items} pictures, from {sample}: {bench.spread(ratios)} of "
        f"its time; {within} of {pairs} runs within the range"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--sample", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--case", choices=("decode", "model"), action="append")
    args = parser.parse_args()
    print(bench.machine())
    for case in args.case or ("decode", "model"):
        with bench.scratch() as folder:
            model = bench.DEMO_MODEL
            if case == "model":
                from checkpoints import VIT, make_checkpoint

                slow = {**VIT, "image_size": 224, "layers": 3, "width": 128}
                model = f"local-dir:{make_checkpoint(folder / 'model', vision=slow)}"
            measure(f"{case}-bound", model, args.items, args.sample, args.pairs, folder)


if __name__ == "__main__":
    main()
