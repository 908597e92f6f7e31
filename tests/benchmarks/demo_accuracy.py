"""The demo model's accuracy on drawings it never saw, through the whole job.

    python demo/heldout.py --work=FOLDER --into=build/heldout     (once; see demo/README.md)
    python tests/benchmarks/demo_accuracy.py [--set=build/heldout] [--model=demo]

The folder holds pictures and a `truth.csv` of `path,everyday_label,category`, where an empty cell
means that the question is not asked of that picture. One run of the job tags the folder with two
label sets; measured is whether the best label of the set is the true one.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import bench
import pyarrow.parquet as pq

MISSING_SET = 3
"""Exit status where there is nothing to measure on; run_all.py goes on from it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A column of truth.csv, the label set that answers it, and how often it must be right."""

    column: str
    label_set: str
    target: float

    @property
    def file(self) -> Path:
        return bench.HERE / f"{self.label_set}.yaml"


QUESTIONS = (
    Question("everyday_label", "everyday20", 0.80),
    Question("category", "categories15", 0.75),
)


def read_truth(folder: Path, column: str) -> dict[str, str]:
    """The true label by path, of the pictures that have one."""
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row[column] for row in csv.DictReader(file) if row[column]}


def read_best(output: Path, label_set: str, folder: Path) -> dict[str, str]:
    """The best label by path below `folder`, from the job's tables."""
    best = {}
    for path in output.glob(f"predictions/label_set={label_set}-*/**/*.parquet"):
        # One file at a time, by its own schema: the folders' names are no columns here.
        table = pq.ParquetFile(path).read(columns=["uri", "label", "rank"])
        for row in table.to_pylist():
            if row["rank"] == 1:
                best[str(Path(row["uri"]).relative_to(folder))] = row["label"]
    return best


def print_answers(question: Question, truth: dict[str, str], best: dict[str, str]) -> None:
    """A row for each label, the wrong answers, and the accuracy; no answer is a wrong one."""
    asked = Counter(truth.values())
    right = Counter(label for path, label in truth.items() if best.get(path) == label)
    print(f"\n{question.label_set}: {len(truth)} pictures, {len(asked)} labels")
    for label, count in sorted(asked.items()):
        print(f"  {label:20s} {right[label]:4d} of {count:4d}  {right[label] / count:6.1%}")
    print("  wrong:")
    for path, label in sorted(truth.items()):
        if best.get(path) != label:
            print(f"    {path}: {label}, tagged {best.get(path)}")
    bench.result(
        f"accuracy, {question.label_set}: {right.total()} of {len(truth)} = "
        f"{right.total() / len(truth):.3f}; target {question.target}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, default=bench.ROOT / "build" / "heldout")
    parser.add_argument("--model", default=bench.DEMO_MODEL, help="as `beamtag tag` takes it")
    args = parser.parse_args()
    folder = args.set.resolve()
    if not (folder / "truth.csv").exists():
        bench.result(f"accuracy: not measured: no {folder}/truth.csv (see demo/README.md)")
        return MISSING_SET
    with bench.scratch() as scratch:
        files = [question.file for question in QUESTIONS]
        record = bench.run_job(
            bench.job_arguments(folder, files, scratch / "output", args.model), scratch / "output"
        )
        print(f"{record['model_id']} on {folder}: {record['counts']}")
        for question in QUESTIONS:
            best = read_best(scratch / "output", question.label_set, folder)
            print_answers(question, read_truth(folder, question.column), best)
    return 0


if __name__ == "__main__":
    sys.exit(main())
