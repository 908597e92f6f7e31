"""The demo model on things that no training picture showed, by a description alone.

    python demo/unseen.py --work=FOLDER --into=build/unseen     (once; see demo/README.md)
    python tests/benchmarks/unseen.py [--set=build/unseen] [--model=demo]

One run of the job ranks all descriptions (made of words that training captions had) for every
drawing. Measured is the place of the true one: its mean percentile rank (1 = always first; 0.5 by
chance), top-1 and top-5. A thing's drawings are averaged first, and the bootstrap draws things, not
drawings: drawings of one thing are alike. For comparison the things' own names are ranked too;
captions had none of them, but the parts of some ("chair" of "rocking chair").
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import bench
import numpy as np
import pyarrow.parquet as pq
from demo_accuracy import MISSING_SET

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "an emoji of a {}",
)
RESAMPLES = 10_000
SEEDS = (0, 1, 2)


def ranks(output: Path, label_set: str, truth: dict[str, str], folder: Path) -> dict[str, int]:
    """The rank of the true label by path, 1 the best, from the job's tables."""
    found = {}
    for path in output.glob(f"predictions/label_set={label_set}-*/**/*.parquet"):
        for row in pq.ParquetFile(path).read(columns=["uri", "label", "rank"]).to_pylist():
            item = str(Path(row["uri"]).relative_to(folder))
            if truth.get(item) == row["label"]:
                found[item] = row["rank"]
    return found


def measures(rank: dict[str, int], name_of: dict[str, str]) -> dict[str, list[float]]:
    """Percentile rank, top-1 and top-5 of each thing, averaged over its drawings."""
    count = len(set(name_of.values()))
    grouped: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for path, name in name_of.items():
        place = rank[path]
        grouped[name].append(((count - place) / (count - 1), place == 1, place <= 5))
    return {name: np.mean(group, axis=0).tolist() for name, group in sorted(grouped.items())}


def intervals(values: np.ndarray, seed: int) -> np.ndarray:
    """95 % bootstrap intervals `[2, M]` of the column means of `values[things, M]`."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
    return np.percentile(values[drawn].mean(axis=1), (2.5, 97.5), axis=0)


def print_measures(what: str, by_name: dict[str, list[float]], pictures: int) -> None:
    values = np.array(list(by_name.values()))
    count = len(values)
    chances = (0.5, 1 / count, 5 / count)
    lows, highs = intervals(values, SEEDS[0])
    print(f"\n{what}: {count} things, {pictures} drawings")
    for seed in SEEDS:
        low, high = intervals(values, seed)
        told = ", ".join(f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True))
        print(f"  intervals with seed {seed}: {told}")
    for measure, mean, low, high, chance in zip(
        ("mean percentile rank", "top-1", "top-5"),
        values.mean(axis=0), lows, highs, chances,
        strict=True,
    ):  # fmt: skip
        bench.result(
            f"unseen, {what}, {measure}: {mean:.3f} ({low:.3f} to {high:.3f}); chance {chance:.3f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, default=bench.ROOT / "build" / "unseen")
    parser.add_argument("--model", default=bench.DEMO_MODEL, help="as `beamtag tag` takes it")
    args = parser.parse_args()
    folder = args.set.resolve()
    if not (folder / "truth.csv").exists():
        bench.result(f"unseen: not measured: no {folder}/truth.csv (see demo/README.md)")
        return MISSING_SET
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    name_of = {row["path"]: row["name"] for row in rows}
    words = {
        "descriptions": {row["path"]: row["description"] for row in rows},
        "names": {row["path"]: row["name"].replace("-", " ") for row in rows},
    }
    with bench.scratch() as scratch:
        files = [
            _label_file(scratch / f"{what}.yaml", sorted(set(truth.values())))
            for what, truth in words.items()
        ]
        output = scratch / "output"
        bench.run_job(bench.job_arguments(folder, files, output, args.model), output)
        by_name = {
            what: measures(ranks(output, what, truth, folder), name_of)
            for what, truth in words.items()
        }
    for name, (percentile, top1, top5) in by_name["descriptions"].items():
        print(f"  {name:20s} percentile {percentile:.2f}  top-1 {top1:.2f}  top-5 {top5:.2f}")
    for what, measured in by_name.items():
        print_measures(what, measured, len(rows))
    return 0


def _label_file(path: Path, labels: list[str]) -> Path:
    lines = [f"name: {path.stem}", f"top_k: {len(labels)}", "templates:"]
    lines += [f'  - "{template}"' for template in TEMPLATES]
    path.write_text("\n".join([*lines, "labels:", *(f"  - {label}" for label in labels)]) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
