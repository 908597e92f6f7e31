"""Thresholds and temperature for a label file, from what some items are known to show."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines import checks
from pipelines.analysing import refuse, usage_errors
from pipelines.groups import Parser, UsageError
from pipelines.improving import (
    LabelText,
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
    from pipelines.placing import Placing
    from transforms.calibration import Calibration, Figures
    from transforms.scoreshares import Shares

NAMED = 5
"""How many labels a line names."""

EPILOG = """\
The label file's text is copied with the new values in it: comments and order stay. Temperature and
thresholds are each written only if they make the held-out items' figures better. Without --truth,
thresholds are a guess from the scores of the whole output: see docs/calibrate.md.

exit status:
  0  written
  1  nothing got better, so nothing is written; or the output cannot be read
  2  bad usage, said in one line before any work

example:
  beamtag calibrate --output=gs://bucket/tags --labels=labels.yaml --truth=truth.csv \\
      --to=calibrated.yaml
"""


def parser(prog: str = "beamtag calibrate") -> Parser:
    """The parser of the calibrate job."""
    parser = Parser(prog, "Find a label set's thresholds and temperature, and check them.", EPILOG)
    add_subject(parser, "NEWFILE", "the label file to write", truth_required=False)
    group = parser.add_argument_group("what is wanted")
    wanted = group.add_mutually_exclusive_group()
    wanted.add_argument(
        "--precision", type=_share, metavar="P", help="thresholds of this precision, best recall"
    )
    wanted.add_argument("--f1", action="store_true", help="thresholds of best F1 (the default)")
    wanted.add_argument(
        "--share",
        type=_share,
        metavar="SHARE",
        help="without --truth: the share of all items that is to have a label",
    )
    group.add_argument(
        "--least",
        type=checks.positive,
        default=5,
        metavar="N",
        help="a label with fewer items gets no threshold of its own (default: %(default)s)",
    )
    add_checking(parser, "write also what makes the held-out figures worse")
    add_rest(parser)
    return parser


def _share(text: str) -> float:
    share = checks.share(text)
    if not share:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to 1")
    return share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 written, 1 not, 2 bad usage."""
    return run_main("calibrate", argv, parser(), _run)


def _run(options: argparse.Namespace) -> int:
    if options.truth is None and options.share is None:
        raise UsageError("--truth=FILE, or --share=SHARE to guess without it")
    if options.truth is not None and options.share is not None:
        raise UsageError("--share is for want of a truth, and --truth is given")
    from transforms.labelediting import EditError, edited, own_keys

    with usage_errors():
        file = read_labels(options.labels)
        own = own_keys(file.text)
        try:
            # That --to can be where it is to be, before any work.
            edited(file.text, file.source, options.to)
        except EditError as error:
            raise UsageError(f"--to: {error}") from error
        placing = find_model(options)
    run = _guess if options.truth is None else _calibrate
    return run(options, file, own, placing)


def _calibrate(
    options: argparse.Namespace, file: LabelText, own: frozenset[str], placing: Placing
) -> int:
    from transforms.calibration import calibrate
    from transforms.splitting import split

    with usage_errors():
        items = read_labelled(options, file.label_set, placing.info.model_id)
        labels = placing.place(placing.resolve(file.label_set))
    fitted, checked = split(items.stated, options.held_out, options.seed)
    if not len(checked):
        refuse("calibrate", "no two items have the same labels: none can be held out")
        return 1
    found = calibrate(
        file.label_set,
        labels,
        items.part(fitted),
        items.part(checked),
        precision=options.precision,
        least=options.least,
        editable=own,
        force=options.force,
    )
    of_set: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    if found.temperature is not None and (found.temperature_helps or options.force):
        of_set["temperature"] = found.temperature
    if found.thresholds_help or options.force:
        thresholds = dict(found.thresholds.own)
        if found.thresholds.of_set is not None:
            of_set["threshold"] = found.thresholds.of_set
    is_written = bool(of_set or thresholds)
    if is_written:
        _write(options, file, thresholds, of_set)
    notes = [*_notes(found, options), *_foreign(file, own)]
    if options.json:
        _print_json(
            {
                "written": options.to if is_written else None,
                "fitted": len(fitted),
                "held_out": len(checked),
                "temperature": found.temperature,
                "temperature_helps": found.temperature_helps,
                "thresholds": {**found.thresholds._asdict(), "own": dict(found.thresholds.own)},
                "thresholds_help": found.thresholds_help,
                **{
                    name: _plain(getattr(found, name))
                    for name in ("before", "warmed", "tagged", "after")
                },
                "notes": notes,
            }
        )
    elif not options.quiet:
        _print_figures(found, len(fitted))
        for note in notes:
            print(visible(note))  # noqa: T201
        if is_written:
            print(f"written: {visible(options.to)}")  # noqa: T201
    if not is_written:
        refuse("calibrate", "nothing makes the held-out items' figures better: nothing is written")
        return 1
    return 0


def _guess(
    options: argparse.Namespace, file: LabelText, own: frozenset[str], placing: Placing
) -> int:
    from transforms.latest import latest_vectors
    from transforms.scoreshares import find_shares

    with usage_errors():
        labels = placing.place(placing.resolve(file.label_set))
    shares = find_shares(
        latest_vectors(options.output, placing.info.model_id), labels, options.share
    )
    found = {
        key: threshold
        for key, threshold in zip(labels.ids, shares.thresholds, strict=True)
        if key in own
    }
    if not found:
        raise UsageError(f"{file.source} lists no label itself")
    _write(options, file, found, {})
    notes = list(_foreign(file, own))
    if options.json:
        _print_json(
            {
                "written": options.to,
                "items": shares.items,
                "thresholds": found,
                "shares": dict(zip(labels.ids, shares.wanted.tolist(), strict=True)),
                "notes": notes,
            }
        )
    elif not options.quiet:
        _print_guess(shares, found, labels.ids)
        for note in notes:
            print(visible(note))  # noqa: T201
        print(f"written: {visible(options.to)}")  # noqa: T201
    return 0


def _write(
    options: argparse.Namespace,
    file: LabelText,
    thresholds: dict[str, float],
    of_set: dict[str, float],
) -> None:
    from transforms.labelediting import edited
    from transforms.publishing import publish

    text = edited(file.text, file.source, options.to, thresholds=thresholds, **of_set)
    publish(options.to, text.encode("utf-8"))


def _notes(found: Calibration, options: argparse.Namespace) -> list[str]:
    """What was not written, and why, a line each."""
    notes = []
    forced = ": written because of --force" if options.force else ": not written"
    if found.temperature is None:
        notes.append("temperature: these items do not tell one: not written")
    elif not found.temperature_helps:
        worse = f"{found.before.nll:.4f} to {found.warmed.nll:.4f}"
        notes.append(f"temperature {found.temperature:g} takes NLL from {worse}{forced}")
    if not found.thresholds_help:
        notes.append(f"thresholds do not make the held-out tags better{forced}")
    few, unreached = found.thresholds.few, found.thresholds.unreached
    if few:
        notes.append(
            f"{_count(few)} with fewer than {options.least} items, which the set's threshold is "
            f"for: {_named(few)}"
        )
    if unreached:
        notes.append(f"{_count(unreached)} that no threshold makes so precise: {_named(unreached)}")
    return notes


def _foreign(file: LabelText, own: frozenset[str]) -> list[str]:
    keys = [label.key for label in file.label_set.labels if label.key not in own]
    if not keys:
        return []
    return [
        f"{_count(keys)} of included files, which are not changed; thresholds of their own can "
        f"only be written there: {_named(keys)}"
    ]


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys):,} label" + ("s" if len(keys) != 1 else "")


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in figures._asdict().items()
    }


def _print_json(told: dict[str, Any]) -> None:
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_figures(found: Calibration, fitted: int) -> None:
    steps = {"before": found.before, "temperature": found.warmed, "and thresholds": found.tagged}
    steps["what is kept"] = found.after
    print(  # noqa: T201
        f"fitted on {fitted:,} items, and on {found.before.items:,} held-out ones:\n"
        f"{'':16}{'NLL':>9}{'ECE':>9}{'precision':>11}{'recall':>9}{'mean F1':>9}"
    )
    for name, of in steps.items():
        print(  # noqa: T201
            f"{name:16}{of.nll:9.4f}{of.ece:9.4f}{of.precision:11.4f}{of.recall:9.4f}{of.f1:9.4f}"
        )
    if found.temperature is not None:
        print(f"temperature: {found.temperature:g}")  # noqa: T201
    if found.thresholds.of_set is not None:
        print(  # noqa: T201
            f"thresholds: {found.thresholds.of_set:g} for the set, and of "
            f"{_count(list(found.thresholds.own))} their own"
        )


def _print_guess(shares: Shares, found: dict[str, float], ids: Sequence[str]) -> None:
    print(  # noqa: T201
        f"a guess, from the scores of {shares.items:,} items: whether they are right nobody said"
    )
    lines = [
        (key, found[key], share)
        for key, share in zip(ids, shares.wanted.tolist(), strict=True)
        if key in found
    ]
    for key, threshold, share in lines[:20]:
        print(f"  {visible(key):24} {threshold:<10g} about {share:.2%} of the items")  # noqa: T201
    if len(lines) > 20:
        print(f"  and {len(lines) - 20:,} more")  # noqa: T201
