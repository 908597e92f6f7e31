"""Flags that several jobs share, in groups; each stands here once."""

from __future__ import annotations

import argparse
import sys
from argparse import _ActionsContainer
from collections.abc import Iterable
from typing import Any, NoReturn

from pipelines import checks
from pipelines.config import SWITCH, ConfigError, Told, default_of, given, option_name, read_config
from transforms.labels import builtin_label_sets
from transforms.records import ReadLimits

LIMITS = ReadLimits()


class UsageError(Exception):
    """What was asked for cannot be done as asked; the message is one line for each mistake."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line, names that may not be shortened, and `--config`."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--config",
            type=checks.nonempty,
            metavar="FILE",
            help="a YAML file, local or remote, of options by their names; the command line wins",
        )

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse, with what the file of `--config` tells behind the command line.

        `--flag=true` and `--flag=false` are taken of flags that have no value. The namespace's
        `told` has every option of the job, and those of Beam that were told. Raises `UsageError`.
        """
        argv = list(sys.argv[1:] if args is None else args)
        switches = {
            name
            for action in self._actions
            if action.nargs == 0 and (name := option_name(action)) is not None
        }
        told = given(argv, switches)
        for name in switches & told.keys():
            argv = _switched(argv, name)
        config = self._config(told)
        flags = [flag for option in config.values() for flag in option.flags]
        namespace, rest = super().parse_known_args([*flags, *argv], namespace)
        told = {**config, **told}
        own = {name: action for action in self._actions if (name := option_name(action))}
        namespace.told = tuple(
            [told.get(name) or default_of(action) for name, action in own.items()]
            + [option for name, option in told.items() if name not in own]
        )
        return namespace, rest

    def _config(self, told: dict[str, Told]) -> dict[str, Told]:
        if "config" not in told or "help" in told:
            return {}
        # Not at the top: --help does not wait for fsspec.
        from transforms.storage import use_storage_options

        if "storage_options" in told:
            try:
                use_storage_options(checks.storage_options(told["storage_options"].values[-1]))
            except argparse.ArgumentTypeError as error:
                self.error(f"argument --storage_options: {error}")
        try:
            return read_config(told["config"].values[-1], self, told)
        except ConfigError as error:
            raise UsageError(str(error)) from error

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def _switched(argv: list[str], name: str) -> list[str]:
    """The words with `--name=true` and `--name=false` as argparse knows them."""
    words = {f"--{name}={text}": [f"--{name}"] if on else [] for text, on in SWITCH.items()}
    return [flag for word in argv for flag in words.get(word, [word])]


def add_output(group: _ActionsContainer, what: str, required: bool = True) -> None:
    """Where the tables are, and how their store is reached."""
    group.add_argument(
        "--output",
        required=required,
        type=checks.output_url,
        metavar="URL",
        help=what,
    )
    add_storage_options(group)


def add_storage_options(group: _ActionsContainer) -> None:
    """How stores are reached."""
    group.add_argument(
        "--storage_options",
        type=checks.storage_options,
        default={},
        metavar="JSON",
        help="arguments of the stores' fsspec clients by URL scheme, for what the cloud's standard "
        """credentials do not say: '{"s3": {"endpoint_url": "https://..."}}'""",
    )


def add_labels(group: _ActionsContainer, required: bool = True) -> None:
    """Label sets, one or more."""
    group.add_argument(
        "--labels",
        action="append",
        required=required,
        type=checks.nonempty,
        metavar="FILE",
        help="the name of a built-in label set "
        f"({', '.join(builtin_label_sets())}), or a label-set file (YAML); may be given again",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="demo",
        type=checks.nonempty,
        help="an open_clip name (with --pretrained), hf-hub:ORG/NAME, local-dir:PATH, or the URL "
        "of a folder with open_clip_config.json and weights (default: %(default)s, a small model "
        "in the package that knows drawings, not photographs)",
    )
    group.add_argument(
        "--pretrained",
        type=checks.nonempty,
        metavar="TAG|FILE",
        help="weights for an open_clip name: a tag or a file",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs (default: %(default)s, which says what it chose)",
    )


def add_tags(parser: argparse.ArgumentParser) -> None:
    """What the command line says in place of the label file."""
    group = parser.add_argument_group("tags")
    group.add_argument(
        "--top_k",
        type=checks.positive,
        metavar="N",
        help="tags per item at most (default: the file's)",
    )
    group.add_argument(
        "--threshold", type=float, metavar="SCORE", help="least score (default: the file's)"
    )


def add_limits(group: _ActionsContainer) -> None:
    """What reading may take, and what is refused."""
    group.add_argument(
        "--read_concurrency",
        type=checks.positive,
        default=LIMITS.concurrency,
        metavar="N",
        help="objects fetched at a time by one worker (default: %(default)s)",
    )
    group.add_argument(
        "--read_deadline",
        type=checks.seconds,
        default=LIMITS.deadline_s,
        metavar="S",
        help="seconds for one object, retries included; a try is given up after a quarter of it "
        "without a byte (default: %(default)g)",
    )
    group.add_argument(
        "--max_pixels",
        type=checks.positive,
        default=128_000_000,
        metavar="N",
        help="a larger picture is refused from its header (default: %(default)s)",
    )
    group.add_argument(
        "--max_bytes",
        type=checks.positive,
        default=LIMITS.max_bytes,
        metavar="N",
        help="a larger object is not fetched (default: %(default)s)",
    )
    group.add_argument(
        "--max_chars",
        type=checks.positive,
        default=LIMITS.max_chars,
        metavar="N",
        help="a longer text is refused (default: %(default)s)",
    )
    group.add_argument(
        "--background",
        type=checks.colour,
        default="ffffff",
        metavar="RRGGBB",
        help="what transparent pictures are laid on (default: %(default)s)",
    )


def limits_of(options: argparse.Namespace) -> ReadLimits:
    """The flags of `add_limits`."""
    return ReadLimits(
        concurrency=options.read_concurrency,
        deadline_s=options.read_deadline,
        max_bytes=options.max_bytes,
        max_chars=options.max_chars,
    )


def add_printing(group: _ActionsContainer) -> None:
    """What a job that writes no tables prints."""
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument(
        "--json", action="store_true", help="print all as one JSON object, and nothing else"
    )


def add_running(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How a job that writes runs, and what it prints; gives the group of its options."""
    group = parser.add_argument_group("running")
    group.add_argument(
        "--take_over",
        action="store_true",
        help="take the place of another run that holds the output: for one that is dead",
    )
    group.add_argument(
        "--runner",
        default="FnApiRunner",
        help="a Beam runner (default: a local run; DirectRunner means the same)",
    )
    group.add_argument(
        "--detach",
        action="store_true",
        help="with DataflowRunner: do not wait for the job's end, which writes the run's record",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="print every option with where it was told, the graph and the files; run nothing",
    )
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument(
        "--json", action="store_true", help="print the run's record as JSON, and nothing else"
    )
    return group
