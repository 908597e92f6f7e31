"""Label vectors learnt from a few labelled items, in a file that a label set can name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.analysing import refuse, usage_errors
from pipelines.groups import Parser
from pipelines.improving import (
    add_checking,
    add_rest,
    add_subject,
    find_model,
    read_labelled,
    read_labels,
)
from pipelines.improving import main as run_main
from pipelines.terminal import visible

if TYPE_CHECKING:
    from transforms.adapting import Adaptation

EPILOG = """\
From 1 to 50 items a label, learnt are the vectors of the labels that have items; the others keep
their words. No picture of the output is read. What is not better than the words alone, on items
that were held out, is refused. Thresholds should be calibrated again afterwards.

exit status:
  0  written
  1  it is no better than the words, so nothing is written; or the output cannot be read
  2  bad usage, said in one line before any work

example:
  beamtag adapt --output=gs://bucket/tags --labels=labels.yaml --truth=truth.csv \\
      --to=adapter.safetensors
and then in labels.yaml: `adapter: adapter.safetensors`
"""


def parser(prog: str = "beamtag adapt") -> Parser:
    """The parser of the adapt job."""
    parser = Parser(prog, "Learn a label set's vectors from a few labelled items.", EPILOG)
    add_subject(parser, "FILE", "the adapter to write (adapter.safetensors)", truth_required=True)
    add_checking(parser, None)
    add_rest(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 written, 1 not, 2 bad usage."""
    return run_main("adapt", argv, parser(), _run)


def _run(options: argparse.Namespace) -> int:
    from transforms.adapters import adapter_bytes
    from transforms.adapting import NothingToCheckError, adapt
    from transforms.publishing import publish

    with usage_errors():
        file = read_labels(options.labels)
        placing = find_model(options)
        items = read_labelled(options, file.label_set, placing.info.model_id)
        # From the words: an adapter that the file names, perhaps --to itself, is not there yet, or
        # has seen what is held out here.
        labels = placing.place(placing.resolve(replace(file.label_set, adapter=None)))
    try:
        found = adapt(labels, items, placing.info.model_id, options.held_out, options.seed)
    except NothingToCheckError:
        refuse("adapt", "no two items have the same labels: none can be held out")
        return 1
    if not found.is_better:
        refuse(
            "adapt",
            f"{_told(found)}: not better than the words, so nothing is written",
        )
        return 1
    publish(options.to, adapter_bytes(found.adapter))
    if options.json:
        json.dump({"written": options.to, **found.adapter.told}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif not options.quiet:
        print(  # noqa: T201
            f"{_told(found)}\n"
            f"learnt from all {found.fitted + found.checked:,} items for "
            f"{len(found.adapter.keys):,} of {len(labels.names):,} labels\n"
            f"written: {visible(options.to)}\n"
            f"name it in the label file (`adapter: ...`), then calibrate its thresholds"
        )
    return 0


def _told(found: Adaptation) -> str:
    return (
        f"{found.metric} of {found.checked:,} held-out items: {found.before:.4f} by the words, "
        f"{found.after:.4f} learnt from {found.fitted:,} others"
    )
