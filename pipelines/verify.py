"""The job that checks an output again, whichever jobs have written it: finding by finding."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pipelines import checks
from pipelines.analysing import main as run_main
from pipelines.groups import Parser, UsageError, add_output
from pipelines.terminal import visible
from transforms.names import kind_of
from transforms.records import Input, MediaRef, Selection

if TYPE_CHECKING:
    from transforms.auditing import Audit
    from transforms.verifying import Finding

MISSING_SHOWN = 100
"""How many missing items of an input are told one by one."""

EPILOG = """\
prints a line for each finding, `what: where: message`, then a summary.

exit status:
  0  nothing is wrong
  1  something is, or the output cannot be read
  2  bad usage, said in one line

example:
  beamtag verify --output=gs://bucket/tags --input='gs://bucket/archive/**/*.jpg'
"""


def parser(prog: str = "beamtag verify") -> Parser:
    """The parser of the verify job."""
    parser = Parser(
        prog,
        "Check the tables of an output, and the runs' records, for damage and gaps.",
        EPILOG,
    )
    add_output(parser, "where the tables are")
    parser.add_argument("--quiet", action="store_true", help="print the findings, no summary")
    parser.add_argument(
        "--json", action="store_true", help="print all as one JSON object, and nothing else"
    )
    group = parser.add_argument_group(
        "what should be in it", "as for tag: each item is to be in embeddings or in failures"
    )
    group.add_argument(
        "--input",
        action="append",
        default=[],
        type=checks.url,
        metavar="URL",
        help="a folder, a glob, one object, a manifest, or tars; may be given again",
    )
    group.add_argument(
        "--input_format",
        choices=("auto", "media", "manifest", "tar"),
        help="what the inputs' files are (default: auto, by their names)",
    )
    group.add_argument(
        "--include",
        action="append",
        type=checks.glob,
        metavar="GLOB",
        help="of folders and globs of media only these; may be given again",
    )
    group.add_argument(
        "--exclude",
        action="append",
        type=checks.glob,
        metavar="GLOB",
        help="leave these out, likewise",
    )
    group.add_argument(
        "--extensions",
        type=checks.extensions,
        metavar="EXT,EXT",
        help="likewise only these kinds of files",
    )
    group.add_argument(
        "--model_id",
        type=checks.nonempty,
        metavar="ID",
        help="whose items are looked for (default: the model of the run that ended last)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 nothing wrong, 1 something, 2 bad usage."""
    return run_main("verify", argv, parser(), _run)


def _run(options: argparse.Namespace) -> int:
    from transforms.auditing import Audit

    inputs = _inputs(options)
    audit = Audit(options.output)
    return _report(audit, _findings(audit, inputs, options), options)


def _inputs(options: argparse.Namespace) -> tuple[Input, ...]:
    if not options.input:
        for flag in ("input_format", "include", "exclude", "extensions", "model_id"):
            if getattr(options, flag) is not None:
                raise UsageError(f"--{flag} is about --input, which is not given")
        return ()
    from pipelines.inputs import check_inputs

    told = options.input_format if options.input_format != "auto" else None
    inputs = tuple(Input(url, told or kind_of(url)) for url in dict.fromkeys(options.input))
    check_inputs(inputs)
    return inputs


def _findings(
    audit: Audit, inputs: Sequence[Input], options: argparse.Namespace
) -> Iterator[Finding]:
    from pipelines.inputs import listed
    from transforms.listing import make_shard
    from transforms.lookups import Known, Lookups

    if not inputs:
        return audit.findings()
    model = options.model_id or audit.latest_model
    if options.model_id and model not in audit.models:
        has = ", ".join(audit.models) or "none"
        raise UsageError(f"--model_id={model}: the output has no such model (it has {has})")
    kinds = {given.kind for given in inputs}
    lookups = Lookups(model, "manifest" in kinds, "tar" in kinds)
    selection = Selection(
        tuple(options.include or ()), tuple(options.exclude or ()), options.extensions
    )
    known = Known()

    def findings() -> Iterator[Finding]:
        yield from audit.findings(lookups, known)
        for given in inputs:
            refs = listed(given, selection)
            missing = known.missing(refs, given.kind)
            if given.kind == "tar":
                # One without a sample in it has a shard, and no row.
                tars = audit.tars(model)
                missing = (ref for ref in missing if make_shard([ref], model).shard_id not in tars)
            yield from _missing_items(given, missing, model)

    return findings()


def _missing_items(given: Input, missing: Iterator[MediaRef], model: str) -> Iterator[Finding]:
    from transforms.verifying import Finding, Kind, count

    what = f"neither embedded by {model or 'any model'} nor in failures"
    for ref in islice(missing, MISSING_SHOWN):
        told = {"id": ref.id, "version": ref.version}
        seen = ", ".join(f"{name} {value}" for name, value in told.items() if value)
        seen = f" ({seen})" if seen else ""
        yield Finding(Kind.MISSING_ITEM, ref.uri, f"is listed{seen}, but is {what}")
    if more := sum(1 for _ in missing):
        yield Finding(Kind.MISSING_ITEM, given.url, f"{count(more, 'more item')} {what}")


def _report(audit: Audit, findings: Iterator[Finding], options: argparse.Namespace) -> int:
    """Print what is found as it is found, or at the end as JSON; gives the exit status."""
    from transforms.verifying import count

    told = []
    number = 0
    for finding in findings:
        number += 1
        if options.json:
            told.append({"kind": finding.kind, "url": finding.url, "message": finding.message})
        else:
            print(visible(f"{finding.kind}: {finding.url}: {finding.message}"))  # noqa: T201
    counts = {"files": audit.files, "rows": audit.rows, "items": audit.items}
    if options.json:
        record = {"output": options.output, **counts, "findings": told, "notes": audit.notes}
        json.dump(record, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif not options.quiet:
        for note in audit.notes:
            print(visible(f"note: {note}"))  # noqa: T201
        said = [count(many, name[:-1]) for name, many in {**counts, "findings": number}.items()]
        print(", ".join(said))  # noqa: T201
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main())
