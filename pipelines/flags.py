"""The flags of the tag job. Imports neither torch nor Beam: `--help` answers at once."""

from __future__ import annotations

from argparse import _ActionsContainer

from pipelines import checks
from pipelines.groups import (
    Parser,
    add_labels,
    add_limits,
    add_model,
    add_output,
    add_running,
    add_tags,
)

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


def tag_parser(prog: str = "beamtag tag") -> Parser:
    """The parser of the tag job: every option of it, in groups."""
    parser = Parser(
        prog, "Tag pictures by what is in them, with labels that are only words.", TAG_EPILOG
    )
    group = parser.add_argument_group("what to tag, and where to")
    add_inputs(group)
    add_labels(group)
    add_output(group, "where the tables are written")
    group.add_argument(
        "--run_date",
        type=checks.date,
        default=None,
        metavar="YYYY-MM-DD",
        help="the dt of the tables (default: today, UTC)",
    )
    add_work(parser)

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

    group = add_running(parser)
    group.add_argument(
        "--workers",
        type=checks.positive,
        default=1,
        metavar="N",
        help="processes that share a local run's work, each with a model and, where there are "
        "GPUs, with one of them (default: %(default)s)",
    )
    return parser


def add_inputs(group: _ActionsContainer) -> None:
    """What is tagged."""
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


def add_work(parser: Parser) -> None:
    """How items are read, embedded and scored."""
    add_model(parser)
    group = parser.add_argument_group("embedding")
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8", "auto"),
        default="fp32",
        help="of the image tower; int8 is for processors, auto measures which of them is fastest "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the image tower when the model is loaded (a minute or more), for long runs",
    )
    group.add_argument(
        "--batch_size",
        type=checks.batch_size,
        default=None,
        metavar="N|auto",
        help="pictures that the model sees at a time (default: auto, which finds it on the first)",
    )
    group.add_argument(
        "--text_weight",
        type=checks.share,
        default=0.5,
        metavar="W",
        help="the text's share, 0 to 1, where an item has picture and text (default: %(default)s)",
    )

    add_tags(parser)
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--shard_size",
        type=checks.positive,
        default=4096,
        metavar="N",
        help="items that end as one file per table (default: %(default)s)",
    )
    add_limits(group)
    group.add_argument(
        "--decode",
        choices=("exact", "fast", "gpu"),
        default="fast",
        help="exact: the pixels of the model's own preprocess; fast: nearly those, sooner; gpu: "
        "JPEG in batches on the CUDA device, other kinds as fast (default: %(default)s)",
    )
