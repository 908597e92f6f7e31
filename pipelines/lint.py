"""A label file looked through for what makes its tags worse, each finding with its line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines import checks
from pipelines.analysing import main as run_main
from pipelines.analysing import usage_errors
from pipelines.groups import Parser, UsageError, add_limits, add_model, add_output
from pipelines.placing import check_stored, placing_of
from pipelines.terminal import visible

if TYPE_CHECKING:
    from transforms.labellines import LabelLines
    from transforms.labels import LabelSet
    from transforms.linting import Finding

SAMPLE = 10_000

EPILOG = """\
prints a line for each finding, `file:line: kind: message`, then a summary. docs/lint.md has the
kinds, and which of them are errors and which warnings.

exit status:
  0  no errors; with --strict, no warnings either
  1  some, or the output cannot be read
  2  bad usage, said in one line before any work

example:
  beamtag lint labels.yaml --output=gs://bucket/tags --strict
"""


def parser(prog: str = "beamtag lint") -> Parser:
    """The parser of the lint job."""
    parser = Parser(prog, "Look through a label file for what makes its tags worse.", EPILOG)
    group = parser.add_argument_group("what to look at")
    group.add_argument(
        "file",
        metavar="FILE",
        type=checks.nonempty,
        help="a label-set file (YAML), or the name of a built-in label set",
    )
    add_output(
        group,
        "where stored vectors are, to find labels that never win; nothing is written there",
        required=False,
    )
    group.add_argument(
        "--sample",
        type=checks.positive,
        metavar="N",
        help=f"look at so many of its items, chosen at random, the same ones each time (default: "
        f"{SAMPLE})",
    )
    group.add_argument(
        "--similar",
        type=checks.share,
        default=0.95,
        metavar="COSINE",
        help="labels as alike as this are near-synonyms (default: %(default)s)",
    )
    add_model(parser)
    add_limits(parser.add_argument_group("example pictures of labels"))
    group = parser.add_argument_group("what counts, and is printed")
    group.add_argument("--strict", action="store_true", help="warnings count as errors do")
    group.add_argument(
        "--json", action="store_true", help="print all as one JSON object, and nothing else"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 nothing found, 1 something or failed, 2 bad usage."""
    return run_main("lint", argv, parser(), _run)


def _run(options: argparse.Namespace) -> int:
    from transforms.labelfile import LabelFileError, read_label_lines
    from transforms.linting import in_order, mistakes_found

    if options.sample is not None and options.output is None:
        raise UsageError("--sample is about --output, which is not given")
    heading: dict[str, Any] = {"file": options.file}
    try:
        label_set, lines = read_label_lines(options.file)
    except LabelFileError as error:
        findings = mistakes_found(error.mistakes, options.file)
        # There is no such file, or none that is text.
        if not any(finding.has_line for finding in findings):
            raise UsageError(str(error)) from error
        return _report(findings, heading, options)
    return _report(in_order(_findings(label_set, lines, heading, options)), heading, options)


def _findings(
    label_set: LabelSet, lines: LabelLines, heading: dict[str, Any], options: argparse.Namespace
) -> list[Finding]:
    """All that is found; what was looked at goes into the `heading`."""
    from transforms.labelfile import LabelFileError
    from transforms.linting import check_keys, mistakes_found
    from transforms.lintwords import check_languages, check_sentences
    from transforms.modelstore import locate_model
    from transforms.texttower import Tokenizer

    with usage_errors():
        placing = placing_of(options)
        if options.output is not None:
            check_stored(options.output, placing.info.model_id)
    heading |= {"label_set_id": label_set.label_set_id, "model_id": placing.info.model_id}
    findings = list(check_keys(label_set, lines))
    is_whole = True
    try:
        label_set = placing.resolve(label_set)
    except LabelFileError as error:
        # What the words are worth can be told without the pictures.
        is_whole = False
        findings += mistakes_found(error.mistakes, options.file)
    with usage_errors():
        labels = placing.place(label_set) if is_whole else None
        model = placing.text_model()
    tokens = Tokenizer(locate_model(placing.spec).name)
    findings += check_sentences(label_set, lines, tokens)
    findings += check_languages(label_set, lines, tokens)
    # Not before: this waits for Beam.
    from transforms.latest import latest_vectors
    from transforms.lintvectors import check_agreement, check_vectors, check_wins

    findings += check_agreement(label_set, model, lines)
    if labels is None:
        return findings
    findings += check_vectors(label_set, labels, lines, options.similar)
    if options.output is not None:
        sample = options.sample or SAMPLE
        items = latest_vectors(options.output, placing.info.model_id, sample=sample)
        findings += check_wins(label_set, labels, items, lines)
    return findings


def _report(findings: Sequence[Finding], heading: dict[str, Any], options: Any) -> int:
    """Print what is found; gives the exit status."""
    errors = sum(finding.is_error for finding in findings)
    warnings = len(findings) - errors
    if options.json:
        told = [finding.plain() for finding in findings]
        counts = {"errors": errors, "warnings": warnings}
        json.dump({**heading, "findings": told, **counts}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        for finding in findings:
            print(visible(str(finding)))  # noqa: T201
        print(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}")  # noqa: T201
    return 1 if errors or (options.strict and warnings) else 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


if __name__ == "__main__":
    sys.exit(main())
