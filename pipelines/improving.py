"""What calibrate and adapt are told and read alike: a label file, a model, and labelled vectors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines import analysing, checks
from pipelines.analysing import located
from pipelines.comparing import FOLDERS, truth_source, without_truth
from pipelines.groups import (
    Parser,
    UsageError,
    add_limits,
    add_model,
    add_output,
    add_printing,
)
from pipelines.placing import Placing, check_stored, placing_of
from transforms.labels import IMAGENET, builtin_label_sets, builtin_label_text

if TYPE_CHECKING:
    from transforms.labels import LabelSet
    from transforms.splitting import Labelled


@dataclass(frozen=True, slots=True)
class LabelText:
    """A label file: where it is, what it says, and the set that this is."""

    source: str
    text: str
    label_set: LabelSet


def add_subject(parser: Parser, to: str, to_help: str, *, truth_required: bool) -> None:
    """The output, the label file, the truth, and what is written."""
    group = parser.add_argument_group("what to improve")
    add_output(group, "where the tables are; nothing is written there")
    group.add_argument(
        "--labels",
        required=True,
        type=checks.nonempty,
        metavar="FILE",
        help="a label-set file (YAML), or the name of a built-in label set",
    )
    group.add_argument(
        "--truth",
        required=truth_required,
        type=truth_source,
        metavar="FILE",
        help="what some items are: CSV or Parquet of uri,label, or `folders` for the names of the "
        "folders that they are in",
    )
    group.add_argument(
        "--unknown",
        choices=("error", "ignore"),
        default="error",
        help="what to do with a truth that is no label of the set (default: %(default)s)",
    )
    group.add_argument("--to", required=True, type=checks.output_url, metavar=to, help=to_help)
    group.add_argument(
        "--overwrite", action="store_true", help="write --to also where there is a file already"
    )


def add_checking(parser: Parser, force_help: str | None) -> None:
    """How the items are parted, and what happens if it is not worth it."""
    group = parser.add_argument_group("how it is checked")
    group.add_argument(
        "--held_out",
        type=_part,
        default=0.3,
        metavar="SHARE",
        help="the share of the labelled items that figures are taken of (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the random choice of these items (default: %(default)s)",
    )
    if force_help is not None:
        group.add_argument("--force", action="store_true", help=force_help)


def add_rest(parser: Parser) -> None:
    """The model, example pictures, and what is printed."""
    add_model(parser)
    add_limits(parser.add_argument_group("example pictures of labels"))
    add_printing(parser.add_argument_group("what is printed"))


def _part(text: str) -> float:
    share = checks.share(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and below 1")
    return share


def main(
    job: str,
    argv: Sequence[str] | None,
    parser: Parser,
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Run a job that writes `--to`, which must not be there yet; gives the exit status."""

    def checked(options: argparse.Namespace) -> int:
        filesystem, path = located("to", options.to)
        if not options.overwrite and filesystem.exists(path):
            raise UsageError(f"--to={options.to} is there already (--overwrite writes over it)")
        return run(options)

    return analysing.main(job, argv, parser, checked)


def read_labels(source: str) -> LabelText:
    """The label file. Raises `UsageError` for ImageNet's, which is none, and `LabelFileError`."""
    from transforms.labelfile import parse_label_set
    from transforms.labelsources import read_text

    if source == IMAGENET:
        raise UsageError(
            f"--labels={IMAGENET} is not a file: write one with `includes: [{IMAGENET}]`"
        )
    is_builtin = source in builtin_label_sets()
    text = builtin_label_text(source) if is_builtin else read_text(source)
    return LabelText(source, text, parse_label_set(text, source))


def find_model(options: argparse.Namespace) -> Placing:
    """The model, whose vectors there must be. Raises `UsageError` and `ModelError`."""
    placing = placing_of(options)
    check_stored(options.output, placing.info.model_id)
    return placing


def read_labelled(options: argparse.Namespace, label_set: LabelSet, model_id: str) -> Labelled:
    """The vectors of the items with truth. Raises `UsageError`, `TruthError`, and a store's."""
    from transforms.latest import collect, latest_vectors
    from transforms.splitting import Labelled
    from transforms.truth import read_truth, stored_uris

    uris = stored_uris(options.output, model_id) if options.truth == FOLDERS else ()
    truth = read_truth(options.truth, label_set, uris, options.unknown)
    found = collect(latest_vectors(options.output, model_id, truth.labels))
    if not found.uris:
        raise without_truth(options, model_id, truth)
    # In an order of their own: how the output is parted into files says nothing of them.
    order = sorted(range(len(found.uris)), key=found.uris.__getitem__)
    return Labelled(
        found.vectors[order], truth.stated([found.uris[row] for row in order], label_set)
    )
