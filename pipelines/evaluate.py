"""Stored vectors, or predictions as they are, against the truth: how right the tags are."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines import checks
from pipelines.analysing import main as run_main
from pipelines.analysing import usage_errors
from pipelines.comparing import compared, truth_source
from pipelines.groups import (
    Parser,
    UsageError,
    add_labels,
    add_limits,
    add_model,
    add_output,
    add_printing,
    add_tags,
    limits_of,
)
from pipelines.terminal import as_is, table

if TYPE_CHECKING:
    from rich.console import Console

    from transforms.evaluation import Evaluation
    from transforms.reportpage import Heading

LABELS_SHOWN = 20
PAIRS_SHOWN = 10
WORST_SHOWN = 5

EPILOG = """\
The truth is a CSV or Parquet file with the columns uri and label, a row for each label of an item;
a label is told by its id or its name. With --truth=folders each item's label is the name of the
folder that it is in. docs/evaluate.md says what each figure means.

exit status:
  0  the figures are printed
  1  the output or a picture of the label file cannot be read
  2  bad usage, said in one line before any work

example:
  beamtag evaluate --output=gs://bucket/tags --labels=labels.yaml --truth=truth.csv \\
      --html=report.html
"""


def parser(prog: str = "beamtag evaluate") -> Parser:
    """The parser of the evaluate job."""
    parser = Parser(prog, "Measure how right a label set's tags are, where it is known.", EPILOG)
    group = parser.add_argument_group("what to compare")
    add_output(group, "where the tables are; nothing is written there")
    add_labels(group)
    group.add_argument(
        "--truth",
        required=True,
        type=truth_source,
        metavar="FILE",
        help="what the items are: CSV or Parquet of uri,label, or `folders` (a file of that name: "
        "./folders)",
    )
    group.add_argument(
        "--unknown",
        choices=("error", "ignore"),
        default="error",
        help="what to do with a truth that is no label of the set: `ignore` leaves out its row, or "
        "its folder (default: %(default)s)",
    )
    group.add_argument(
        "--predictions",
        action="store_true",
        help="take the predictions as they are stored: what an analyst sees, ranked tags only; "
        "else vectors are scored again, and all labels have scores. Of the only model that has "
        "them, if --model is not told",
    )
    add_model(parser)
    add_tags(parser)
    add_limits(parser.add_argument_group("pictures of labels, and of mistakes"))
    group = parser.add_argument_group("what is printed")
    group.add_argument(
        "--html",
        type=_page,
        metavar="FILE",
        help="write a page with plots and the worst mistakes as pictures",
    )
    add_printing(group)
    return parser


def _page(text: str) -> str:
    path = os.path.abspath(os.path.expanduser(checks.nonempty(text)))
    if "://" in text or os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder of this machine")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 compared, 1 failed, 2 bad usage."""
    # None, rather than the default, where it is not told: predictions tell their model.
    return run_main("evaluate", argv, parser(), _run, argparse.Namespace(model=None))


def _run(options: argparse.Namespace) -> int:
    from pipelines.options import read_label_sets
    from transforms.evaluation import evaluate
    from transforms.reportpage import Heading
    from transforms.truth import UnknownLabelError

    label_sets = read_label_sets(options)
    if len(label_sets) > 1:
        raise UsageError("one label set at a time: --labels is given several times")
    try:
        with usage_errors():
            model_id, label_set, truth, answers = compared(options, label_sets[0])
    except UsageError as error:
        if not isinstance(error.__cause__, UnknownLabelError):
            raise
        raise UsageError(f"{error} (--unknown=ignore leaves it out)") from error
    found = evaluate(answers, truth, label_set)
    what = (
        "predictions as stored, ranked tags only,"
        if options.predictions
        else "stored vectors scored again"
    )
    heading = Heading(label_set.label_set_id, model_id, options.output, options.truth, what)
    if options.html:
        _write_page(found, heading, options)
    _print(found, heading, options)
    return 0


def _write_page(found: Evaluation, heading: Heading, options: argparse.Namespace) -> None:
    from transforms.reportpage import page
    from transforms.thumbnails import thumbnails

    uris = list(dict.fromkeys(mistake.uri for mistake in found.worst))
    pictures = dict(thumbnails(uris, limits_of(options), options.max_pixels, options.background))
    with open(options.html, "w", encoding="utf-8") as file:
        file.write(page(found, heading, pictures))


def _print(found: Evaluation, heading: Heading, options: argparse.Namespace) -> None:
    if options.json:
        json.dump({**heading._asdict(), **found.plain()}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif not options.quiet:
        from rich.console import Console

        _summarize(found, heading, Console(highlight=False))
        if options.html:
            print(f"\nThe page: {options.html}")  # noqa: T201


def _summarize(found: Evaluation, heading: Heading, console: Console) -> None:
    from transforms.reportpage import coverage, figures, worst_first
    from transforms.reportplots import share

    console.print(as_is(f"{heading.label_set_id}, {heading.answers}, of {heading.model_id}"))
    console.print(as_is(coverage(found)), soft_wrap=True)
    console.print()
    told = table("", "")
    told.show_header = False
    for name, value in figures(found):
        told.add_row(name, share(value))
    if found.calibration_error is not None:
        told.add_row("calibration error", f"{found.calibration_error:.3f}")
    console.print(told)

    rows = worst_first(found.labels)
    more = f", {LABELS_SHOWN} of {len(rows)}" if len(rows) > LABELS_SHOWN else ""
    console.print(f"\n[bold]Labels[/bold] (tags, least F1 first{more})")
    labels = table("label", "items", "tagged", "precision", "recall", "F1", "AP")
    for row in rows[:LABELS_SHOWN]:
        figures_of = (row.precision, row.recall, row.f1, row.average_precision)
        labels.add_row(
            as_is(row.path), f"{row.items:,}", f"{row.tagged:,}", *map(share, figures_of)
        )
    console.print(labels)

    if found.confusion:
        console.print("\n[bold]Taken for others[/bold]")
        pairs = table("is", "taken for", "items", words=2)
        for pair in found.confusion[:PAIRS_SHOWN]:
            pairs.add_row(as_is(pair.truth), as_is(pair.best or "(no tag)"), f"{pair.items:,}")
        console.print(pairs)
    if found.worst:
        console.print("\n[bold]The worst mistakes[/bold]")
        worst = table("taken for", "score", "is", "item", words=4)
        for mistake in found.worst[:WORST_SHOWN]:
            is_ = as_is(", ".join(mistake.truth))
            uri = as_is(mistake.uri)
            worst.add_row(as_is(mistake.best), f"{mistake.score:.2f}", is_, uri)
        console.print(worst)


if __name__ == "__main__":
    sys.exit(main())
