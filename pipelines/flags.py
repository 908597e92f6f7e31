"""Every flag, once, in groups. Imports neither torch nor Beam: `--help` answers at once."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipelines import checks
from transforms.labels import builtin_label_sets
from transforms.records import ReadLimits

LIMITS = ReadLimits()

TAG_EPILOG = """\
Any other option is Beam's: --runner=DataflowRunner --project=... --region=... and so on.

exit status:
  0  every listed item is reused, embedded, or a row in failures
  1  the run failed, or its accounts do not balance
  2  bad usage, said in one line before any work

example:
  beamtag tag --input='photos/**/*.jpg' --labels=labels.yaml --output=out \\
      --model=ViT-B-32 --pretrained=laion2b_s34b_b79k
"""


class UsageError(Exception):
    """What was asked for cannot be done as asked; the message is one line for each mistake."""


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
        type=checks.url,
        metavar="URL",
        help="a folder (links to folders in it are not followed), a glob "
        "(gs://bucket/archive/**/*.jpg), one object, a manifest (.txt, .csv, .jsonl or .parquet "
        "with a column uri), or tars of the WebDataset convention; may be given again",
    )
    group.add_argument(
        "--input_format",
        choices=("auto", "media", "manifest", "tar"),
        default="auto",
        help="what the inputs' files are (default: %(default)s, by their names: a .txt is a "
        "manifest, a glob of many .txt gives texts)",
    )
    group.add_argument(
        "--include",
        action="append",
        default=[],
        type=checks.glob,
        metavar="GLOB",
        help="of folders and globs of media take only these (manifests, tars, and objects named "
        "one by one are all taken): of the name, or with a / of the path below the input; may be "
        "given again",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        type=checks.glob,
        metavar="GLOB",
        help="leave these out, likewise",
    )
    group.add_argument(
        "--extensions",
        type=checks.extensions,
        metavar="EXT,EXT",
        help="likewise take only these kinds of files, such as jpg,png,txt (default: pictures of a "
        "folder, all that a glob names)",
    )
    group.add_argument(
        "--carry",
        type=checks.words,
        default=(),
        metavar="COLUMN,COLUMN",
        help="columns of the manifests (keys of the tars' .json) that the tables repeat",
    )
    group.add_argument(
        "--storage_options",
        type=checks.storage_options,
        default={},
        metavar="JSON",
        help="arguments of the stores' fsspec clients by URL scheme, for what the cloud's standard "
        """credentials do not say: '{"s3": {"endpoint_url": "https://..."}}'""",
    )
    group.add_argument(
        "--labels",
        action="append",
        required=True,
        type=checks.nonempty,
        metavar="FILE",
        help="the name of a built-in label set "
        f"({', '.join(builtin_label_sets())}), or a label-set file (YAML); may be given again",
    )
    group.add_argument(
        "--output",
        required=True,
        type=checks.output_url,
        metavar="URL",
        help="where the tables are written",
    )
    group.add_argument(
        "--run_date",
        type=checks.date,
        default=None,
        metavar="YYYY-MM-DD",
        help="the dt of the tables (default: today, UTC)",
    )

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
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the image tower (default: %(default)s)",
    )
    group.add_argument(
        "--batch_size",
        type=checks.positive,
        default=128,
        metavar="N",
        help="items that the model sees at a time (default: %(default)s)",
    )
    group.add_argument(
        "--text_weight",
        type=checks.share,
        default=0.5,
        metavar="W",
        help="the text's share, 0 to 1, where an item has picture and text (default: %(default)s)",
    )

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

    group = parser.add_argument_group("reading")
    group.add_argument(
        "--shard_size",
        type=checks.positive,
        default=4096,
        metavar="N",
        help="items that end as one file per table (default: %(default)s)",
    )
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
        "--decode",
        choices=("exact",),
        default="exact",
        help="exact: the pixels of the model's own preprocess (default: %(default)s)",
    )
    group.add_argument(
        "--background",
        type=checks.colour,
        default=(255, 255, 255),
        metavar="RRGGBB",
        help="what transparent pictures are laid on (default: ffffff)",
    )

    group = parser.add_argument_group("every night")
    group.add_argument(
        "--retry",
        choices=("none", "retryable", "all"),
        default="retryable",
        help="which failures of the same version are tried again (default: %(default)s)",
    )
    group.add_argument(
        "--max_failures",
        type=checks.max_failures,
        metavar="N|SHARE",
        help="how many of the items that the run tries may fail, as 100, 0.01 or 1%%; past it the "
        "run fails and keeps what it wrote (default: any number)",
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help="at the end remove the rows of objects that the inputs no longer list",
    )
    group.add_argument(
        "--take_over",
        action="store_true",
        help="take the place of another run that holds the output: for one that is dead",
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
