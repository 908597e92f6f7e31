"""What every job that writes no tables has around its work: a line for each mistake, its end."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines.groups import Parser, UsageError
from pipelines.terminal import visible


def main(
    job: str,
    argv: Sequence[str] | None,
    parser: Parser,
    run: Callable[[argparse.Namespace], int],
    told: argparse.Namespace | None = None,
) -> int:
    """Run a job; gives the exit status: that of `run`, 1 where it failed, 2 for bad usage.

    `told` has values in place of the parser's defaults.
    """
    try:
        return _run(job, parser.parse_args(sys.argv[1:] if argv is None else argv, told), run)
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"beamtag {job}: error: {visible(line)}", file=sys.stderr)  # noqa: T201
        return 2


def _run(job: str, options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    # Only now: a command line with a mistake in it does not wait for fsspec and Arrow.
    from pipelines.report import set_up_logging
    from transforms.storage import use_storage_options
    from transforms.storeerrors import describe

    set_up_logging(quiet=True, local=True)
    use_storage_options(options.storage_options)
    try:
        if options.output is not None:
            located("output", options.output)
        return run(options)
    except UsageError:
        raise
    # Any store's client, any error of its own.
    except Exception as error:
        refuse(job, describe(error))
        return 1


def located(flag: str, url: str) -> tuple[Any, str]:
    """The filesystem and path of a flag's URL. Raises `UsageError` for a store that is unknown."""
    from transforms.storage import locate

    try:
        return locate(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"--{flag}={url}: {' '.join(str(error).split())}") from error


def refuse(job: str, why: str) -> None:
    """Say in one line that the job has failed, and why."""
    print(f"beamtag {job}: failed: {visible(' '.join(why.split()))}", file=sys.stderr)  # noqa: T201


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """What a model, a label file or a truth has against it is told as bad usage."""
    from transforms.adapters import AdapterError
    from transforms.labelfile import LabelFileError
    from transforms.modelstore import ModelError
    from transforms.truth import TruthError

    try:
        yield
    except (AdapterError, LabelFileError, ModelError, TruthError) as error:
        raise UsageError(str(error)) from error
