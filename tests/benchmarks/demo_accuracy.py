"""The demo model's accuracy on drawings it never saw, through the whole job and `beamtag evaluate`.

    python demo/heldout.py --work=FOLDER --into=build/heldout     (once; see demo/README.md)
    python tests/benchmarks/demo_accuracy.py [--set=build/heldout] [--model=demo]

The folder holds pictures and a `truth.csv` of `path,everyday_label,category`, where an empty cell
means that the question is not asked of that picture. One run of the job tags the folder with two
label sets, and `beamtag evaluate` says how often the best label is the true one: from the vectors
and from the tables. A plain loop over the same vectors, with label vectors by open_clip's own
`build_zero_shot_classifier`, has to count exactly as many right answers.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pyarrow.parquet as pq
import yaml

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
    """The true label by URI, of the pictures that have one."""
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return {str(folder / row["path"]): row[column] for row in rows if row[column]}


def evaluated(
    question: Question, truth: dict[str, str], output: Path, model: str, *flags: str
) -> dict[str, Any]:
    """What `beamtag evaluate` says, in a process of its own."""
    file = output.parent / f"{question.column}.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("uri", "label"), *truth.items()])
    arguments = [f"--output={output}", f"--labels={question.file}", f"--truth={file}"]
    arguments += [f"--model={model}", "--json", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.evaluate", *arguments],
        cwd=bench.ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def read_vectors(output: Path) -> dict[str, np.ndarray]:
    """The job's vectors by URI."""
    found = {}
    for path in output.glob("embeddings/**/*.parquet"):
        # One file at a time, by its own schema: the folders' names are no columns here.
        for row in pq.ParquetFile(path).read(columns=["uri", "embedding"]).to_pylist():
            found[row["uri"]] = np.array(row["embedding"], np.float32)
    return found


def right_by_loop(
    question: Question, truth: dict[str, str], vectors: dict[str, np.ndarray], model_name: str
) -> int:
    """How many pictures have their label as the best one, picture by picture."""
    import open_clip

    told = yaml.safe_load(question.file.read_text())
    model = open_clip.create_model(model_name).eval()
    templates = [template.format for template in told["templates"]]
    classifier = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer(model_name), told["labels"], templates
    )
    weights = classifier.numpy()
    return sum(
        told["labels"][int(np.argmax(vectors[uri] @ weights))] == label
        for uri, label in truth.items()
    )


def print_answers(question: Question, told: dict[str, Any]) -> None:
    """A row for each label, then what is taken for what."""
    print(f"\n{question.label_set}: {told['items']} pictures")
    for row in sorted(told["labels"], key=lambda row: row["path"]):
        if row["items"]:
            shares = [row[name] or 0.0 for name in ("recall_best", "f1", "average_precision")]
            said = "  ".join(f"{share:6.1%}" for share in shares)
            print(f"  {row['path']:20s} {row['items']:4d}  right, F1, AP: {said}")
    for pair in told["confusion"][:10]:
        print(f"  {pair['items']:4d} x {pair['truth']} taken for {pair['best']}")


def measure(question: Question, folder: Path, output: Path, model: str, model_name: str) -> bool:
    """Print a question's accuracy; whether all three ways agree."""
    truth = read_truth(folder, question.column)
    told = evaluated(question, truth, output, model)
    stored = evaluated(question, truth, output, model, "--predictions")
    print_answers(question, told)
    right = right_by_loop(question, truth, read_vectors(output), model_name)
    same = told["items"] == len(truth) and told["top_1"] == stored["top_1"] == right / len(truth)
    bench.result(
        f"accuracy, {question.label_set}: beamtag evaluate {told['top_1']:.6f}, of the tables "
        f"{stored['top_1']:.6f}, plain loop {right} of {len(truth)} = {right / len(truth):.6f}: "
        f"{'the same' if same else 'NOT THE SAME'}; target {question.target}"
    )
    bench.result(
        f"  top-5 {told['top_5']:.3f}, mean per-class recall {told['mean_class_recall']:.3f}, "
        f"mAP {told['mean_average_precision']:.3f}, F1 {told['f1']:.3f}, "
        f"calibration error {told['calibration_error']:.3f}"
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, default=bench.ROOT / "build" / "heldout")
    parser.add_argument("--model", default=bench.DEMO_MODEL, help="as `beamtag tag` takes it")
    args = parser.parse_args()
    folder = args.set.resolve()
    if not (folder / "truth.csv").exists():
        bench.result(f"accuracy: not measured: no {folder}/truth.csv (see demo/README.md)")
        return MISSING_SET
    # Not at the top: the package is found by where this file is.
    sys.path.insert(0, str(bench.ROOT))
    from transforms.modelstore import locate_model
    from transforms.records import ModelSpec

    model_name = locate_model(ModelSpec(args.model)).name
    with bench.scratch() as scratch:
        output = scratch / "output"
        files = [question.file for question in QUESTIONS]
        record = bench.run_job(bench.job_arguments(folder, files, output, args.model), output)
        print(f"{record['model_id']} on {folder}: {record['counts']}")
        same = [measure(question, folder, output, args.model, model_name) for question in QUESTIONS]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
