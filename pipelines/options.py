"""Every flag, once: read here, checked here, and turned into values that the stages take.

Importing this module imports neither torch nor Beam: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from transforms.labelfile import LabelFileError, read_label_set
from transforms.labels import LabelSet, builtin_label_sets
from transforms.records import ModelSpec, RunSpec

LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner")

TAG_EPILOG = """\
Any other option is Beam's: --runner=DataflowRunner --project=... --region=... and so on.

exit status:
  0  every listed item is embedded, or a row in failures
  1  the run failed, or its accounts do not balance
  2  bad usage, said in one line before any work

example:
  beamtag tag --input='photos/**/*.jpg' --labels=labels.yaml --output=out \\
      --model=ViT-B-32 --pretrained=laion2b_s34b_b79k
"""


class UsageError(Exception):
    """What was asked for cannot be done as asked; the message is one line for each mistake."""


@dataclass(frozen=True, slots=True)
class TagSpec:
    """A tag job, checked: what `beamtag tag` was asked to do."""

    inputs: tuple[str, ...]
    label_sets: tuple[LabelSet, ...]
    run: RunSpec
    model: ModelSpec
    shard_size: int
    batch_size: int
    read_concurrency: int
    max_pixels: int
    max_bytes: int
    background: tuple[int, int, int]
    runner: str
    beam_args: tuple[str, ...]
    quiet: bool
    json: bool

    @property
    def is_local(self) -> bool:
        """Whether the job runs in this process."""
        return self.runner in LOCAL_RUNNERS


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def tag_parser(prog: str = "beamtag tag") -> argparse.ArgumentParser:
    """The parser of the tag job: every option of it, in groups."""
    parser = _Parser(
        prog=prog,
        description="Tag pictures by what is in them, with labels that are only words.",
        epilog=TAG_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("what to tag, and where to")
    group.add_argument(
        "--input",
        action="append",
        required=True,
        type=_url,
        metavar="URL",
        help="a folder (links to folders in it are not followed), a glob "
        "(gs://bucket/archive/**/*.jpg) or one picture; may be given again",
    )
    group.add_argument(
        "--labels",
        action="append",
        required=True,
        type=_nonempty,
        metavar="FILE",
        help="the name of a built-in label set "
        f"({', '.join(builtin_label_sets())}), or a label-set file (YAML); may be given again",
    )
    group.add_argument(
        "--output",
        required=True,
        type=_url,
        metavar="URL",
        help="where the tables are written",
    )
    group.add_argument(
        "--run_date",
        type=_date,
        default=None,
        metavar="YYYY-MM-DD",
        help="the dt of the tables (default: today, UTC)",
    )

    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="demo",
        type=_nonempty,
        help="an open_clip name (with --pretrained), hf-hub:ORG/NAME, local-dir:PATH, or the URL "
        "of a folder with open_clip_config.json and weights (default: %(default)s, a small model "
        "in the package that knows drawings, not photographs)",
    )
    group.add_argument(
        "--pretrained",
        type=_nonempty,
        metavar="TAG|FILE",
        help="weights for an open_clip name: a tag or a file",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs (default: %(default)s, which says what it chose)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the image tower (default: %(default)s)",
    )
    group.add_argument(
        "--batch_size",
        type=_positive,
        default=128,
        metavar="N",
        help="pictures that the model sees at a time (default: %(default)s)",
    )

    group = parser.add_argument_group("tags")
    group.add_argument(
        "--top_k", type=_positive, metavar="N", help="tags per item at most (default: the file's)"
    )
    group.add_argument(
        "--threshold", type=float, metavar="SCORE", help="least score (default: the file's)"
    )

    group = parser.add_argument_group("reading")
    group.add_argument(
        "--shard_size",
        type=_positive,
        default=4096,
        metavar="N",
        help="items that end as one file per table (default: %(default)s)",
    )
    group.add_argument(
        "--read_concurrency",
        type=_positive,
        default=32,
        metavar="N",
        help="objects fetched at a time by one worker (default: %(default)s)",
    )
    group.add_argument(
        "--max_pixels",
        type=_positive,
        default=128_000_000,
        metavar="N",
        help="a larger picture is refused from its header (default: %(default)s)",
    )
    group.add_argument(
        "--max_bytes",
        type=_positive,
        default=256 * 1024 * 1024,
        metavar="N",
        help="a larger object is not fetched (default: %(default)s)",
    )
    group.add_argument(
        "--decode",
        choices=("exact",),
        default="exact",
        help="exact: the pixels of the model's own preprocess (default: %(default)s)",
    )
    group.add_argument(
        "--background",
        type=_colour,
        default=(255, 255, 255),
        metavar="RRGGBB",
        help="what transparent pictures are laid on (default: ffffff)",
    )

    group = parser.add_argument_group("running")
    group.add_argument(
        "--runner",
        default="FnApiRunner",
        help="a Beam runner (default: a local run; DirectRunner means the same)",
    )
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument(
        "--json", action="store_true", help="print the run's record as JSON, and nothing else"
    )
    return parser


def parse_tag(argv: Sequence[str], prog: str = "beamtag tag") -> TagSpec:
    """Read a tag job's command line. Raises `UsageError`; label files are read and checked."""
    options, beam_args = tag_parser(prog).parse_known_args(argv)
    stray = [argument for argument in beam_args if not argument.startswith("-")]
    if stray and not _follows_a_flag(beam_args, stray[0]):
        raise UsageError(f"unexpected argument {stray[0]!r} (see {prog} --help)")
    try:
        label_sets = tuple(
            _override(read_label_set(source), source, options.top_k, options.threshold)
            for source in options.labels
        )
    except LabelFileError as error:
        raise UsageError(str(error)) from error
    _refuse_repeated(label_sets)
    now = datetime.datetime.now(datetime.UTC)
    return TagSpec(
        inputs=tuple(options.input),
        label_sets=label_sets,
        run=RunSpec(
            run_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            run_date=options.run_date or f"{now:%Y-%m-%d}",
            output=options.output,
        ),
        model=ModelSpec(options.model, options.pretrained, options.device, options.precision),
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        read_concurrency=options.read_concurrency,
        max_pixels=options.max_pixels,
        max_bytes=options.max_bytes,
        background=options.background,
        runner=options.runner,
        beam_args=tuple(beam_args),
        quiet=options.quiet,
        json=options.json,
    )


def _override(
    label_set: LabelSet, source: str, top_k: int | None, threshold: float | None
) -> LabelSet:
    low = -1.0 if label_set.activation == "cosine" else 0.0
    if threshold is not None and not low <= threshold <= 1.0:
        raise UsageError(
            f"--threshold={threshold:g} is not a score of {source}: "
            f"{label_set.activation} gives {low:g} to 1"
        )
    return label_set.with_overrides(top_k, threshold)


def _refuse_repeated(label_sets: Sequence[LabelSet]) -> None:
    seen = set()
    for label_set in label_sets:
        if label_set.label_set_id in seen:
            raise UsageError(f"the label set {label_set.name!r} is given twice")
        seen.add(label_set.label_set_id)


def _follows_a_flag(arguments: Sequence[str], value: str) -> bool:
    """Whether a bare word may be the value of the flag before it (`--project my-project`)."""
    index = arguments.index(value)
    return index > 0 and arguments[index - 1].startswith("--") and "=" not in arguments[index - 1]


def _nonempty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _url(text: str) -> str:
    """A URL as given, or an absolute local path: a record means the same from anywhere."""
    _nonempty(text)
    return text.rstrip("/") if "://" in text else os.path.abspath(os.path.expanduser(text))


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def _date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date like 2026-01-31") from None


def _colour(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour like ffffff")
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue
