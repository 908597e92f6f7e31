"""What calibrate and adapt are told and read alike: a label file, a model, and labelled vectors."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines import checks
from pipelines.comparing import FOLDERS, limits_of
from pipelines.groups import Parser, UsageError, add_limits, add_model, add_output
from transforms.labels import IMAGENET, builtin_label_sets, builtin_label_text
from transforms.records import ModelSpec

if TYPE_CHECKING:
    from transforms.labels import LabelSet
    from transforms.modelstore import ModelInfo
    from transforms.records import LabelVectors
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
        type=_truth,
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
    group = parser.add_argument_group("what is printed")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument(
        "--json", action="store_true", help="print all as one JSON object, and nothing else"
    )


def _truth(text: str) -> str:
    return text if text == FOLDERS else checks.url(text)


def _part(text: str) -> float:
    share = checks.share(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and below 1")
    return share


def main(
    job: str,
    argv: Sequence[str] | None,
    parser: Callable[[], Parser],
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Run a job that tells its mistakes in a line each; gives the exit status."""
    try:
        options = parser().parse_args(sys.argv[1:] if argv is None else argv)
        return _run(job, options, run)
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"beamtag {job}: error: {visible(line)}", file=sys.stderr)  # noqa: T201
        return 2


def _run(job: str, options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    # Only now: a command line with a mistake in it does not wait for fsspec and Arrow.
    from pipelines.report import set_up_logging
    from transforms.storage import locate, use_storage_options
    from transforms.storeerrors import describe

    set_up_logging(quiet=True, local=True)
    use_storage_options(options.storage_options)
    try:
        for flag in ("output", "to"):
            url = getattr(options, flag)
            try:
                filesystem, path = locate(url)
            except (ImportError, ValueError) as error:
                raise UsageError(f"--{flag}={url}: {' '.join(str(error).split())}") from error
        if not options.overwrite and filesystem.exists(path):
            raise UsageError(f"--to={options.to} is there already (--overwrite writes over it)")
        return run(options)
    except UsageError:
        raise
    # Any store's client, any error of its own.
    except Exception as error:
        refuse(job, describe(error))
        return 1


def refuse(job: str, why: str) -> None:
    """Say in one line that nothing was written, and why."""
    print(f"beamtag {job}: failed: {visible(' '.join(why.split()))}", file=sys.stderr)  # noqa: T201


def visible(text: str) -> str:
    """The text, what cannot be seen of it shown by its escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


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


def find_model(options: argparse.Namespace) -> ModelInfo:
    """The model, whose vectors there must be. Raises `UsageError` and `ModelError`."""
    from transforms.model import check_device
    from transforms.modelstore import describe_model
    from transforms.stored import stored_files

    info = describe_model(model_spec(options))
    check_device(model_spec(options))
    has = sorted({file.model for file in stored_files(options.output, "embeddings")})
    if info.model_id not in has:
        others = f"; it has those of {', '.join(has)}: tell --model" if has else ""
        raise UsageError(f"{options.output} has no embeddings of {info.model_id}{others}")
    return info


def model_spec(options: argparse.Namespace) -> ModelSpec:
    """The flags of `add_model`."""
    return ModelSpec(options.model, options.pretrained, options.device)


def place(options: argparse.Namespace, label_set: LabelSet, info: ModelInfo) -> LabelVectors:
    """A label set, and what the files that it names hold, in the model's space.

    Raises what `resolve` and `place_labels` raise.
    """
    from transforms.decoding import ImageDecoder
    from transforms.examples import place_labels, resolve

    limits = limits_of(options)
    decode = ImageDecoder(info.preprocess, options.max_pixels, options.background)
    if label_set.examples or label_set.adapter:
        label_set = resolve(label_set, decode, limits, info.model_id)
    return place_labels(label_set, model_spec(options), decode, limits)


def read_labelled(options: argparse.Namespace, label_set: LabelSet, info: ModelInfo) -> Labelled:
    """The vectors of the items with truth. Raises `UsageError`, `TruthError`, and a store's."""
    from transforms.latest import collect, latest_vectors
    from transforms.splitting import Labelled
    from transforms.truth import read_truth, stored_uris

    uris = stored_uris(options.output, info.model_id) if options.truth == FOLDERS else ()
    truth = read_truth(options.truth, label_set, uris, options.unknown)
    found = collect(latest_vectors(options.output, info.model_id, truth.labels))
    if not found.uris:
        example = next(iter(stored_uris(options.output, info.model_id)), None)
        has = "" if example is None else f", and the output {example}"
        raise UsageError(
            f"no item of {options.output} has truth: {options.truth} has "
            f"{next(iter(truth.labels))}{has}"
        )
    # In an order of their own: how the output is parted into files says nothing of them.
    order = sorted(range(len(found.uris)), key=found.uris.__getitem__)
    return Labelled(
        found.vectors[order], truth.stated([found.uris[row] for row in order], label_set)
    )
