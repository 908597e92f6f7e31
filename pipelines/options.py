"""A command line turned into the values that the stages take, all of it checked.

Importing this module imports neither torch nor Beam: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import datetime
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config import Told
from pipelines.flags import tag_parser
from pipelines.groups import UsageError, limits_of
from transforms.accounting import MaxFailures
from transforms.batchsizes import TRIED
from transforms.labelfile import LabelFileError, read_label_set
from transforms.labels import LabelSet
from transforms.names import kind_of
from transforms.records import (
    Decode,
    Input,
    ModelSpec,
    ReadLimits,
    Retry,
    RunSpec,
    Selection,
)

LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner")
DATAFLOW = "DataflowRunner"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What every job that writes is told."""

    storage_options: dict[str, dict[str, Any]]
    label_sets: tuple[LabelSet, ...]
    run: RunSpec
    model: ModelSpec
    limits: ReadLimits
    max_pixels: int
    background: tuple[int, int, int]
    take_over: bool
    runner: str
    beam_args: tuple[str, ...]
    detach: bool
    explain: bool
    told: tuple[Told, ...]
    quiet: bool
    json: bool

    @property
    def is_local(self) -> bool:
        """Whether the job runs in this process, or in workers that are its own."""
        return self.runner in LOCAL_RUNNERS


@dataclass(frozen=True, slots=True, kw_only=True)
class TagSpec(JobSpec):
    """A tag job's command line, checked."""

    inputs: tuple[Input, ...]
    selection: Selection
    shard_size: int
    batch_size: int
    text_weight: float
    decode: Decode
    workers: int
    retry: Retry
    max_failures: MaxFailures | None
    prune: bool

    @property
    def abort_after(self) -> MaxFailures | None:
        """What a local run does not go on beyond: a share only where all items are listed first."""
        most = self.max_failures if self.is_local else None
        read_to_list = any(given.kind == "tar" for given in self.inputs)
        return None if most and most.share is not None and read_to_list else most


def parse_tag(argv: Sequence[str], prog: str = "beamtag tag") -> TagSpec:
    """Read a tag job's command line. Raises `UsageError`; label files are read and checked."""
    options, beam_args = tag_parser(prog).parse_known_args(argv)
    refuse_stray(beam_args, prog)
    return tag_spec(options, beam_args, options.workers)


def tag_spec(
    options: argparse.Namespace, beam_args: Sequence[str] = (), workers: int = 1
) -> TagSpec:
    """A tag job of these options. Raises `UsageError`; label files are read and checked."""
    if workers > 1:
        _check_workers(options, beam_args)
    if options.detach and options.prune:
        raise UsageError("--prune needs the run's end, and --detach does not wait for it")
    if options.precision == "int8" and options.device == "cuda":
        raise UsageError("--precision=int8 is for processors; a GPU has bf16 and fp16")
    model = ModelSpec(
        options.model,
        options.pretrained,
        options.device,
        options.precision,
        options.batch_size,
        options.compile,
    )
    return TagSpec(
        inputs=tuple(_input(url, options.input_format) for url in dict.fromkeys(options.input)),
        selection=Selection(tuple(options.include), tuple(options.exclude), options.extensions),
        **{**shared(options, beam_args, options.run_date, options.carry), "model": model},
        shard_size=options.shard_size,
        # What is read together is cut into what the model likes best.
        batch_size=options.batch_size or TRIED[-1],
        text_weight=options.text_weight,
        decode=options.decode,
        workers=workers,
        retry=options.retry,
        max_failures=options.max_failures,
        prune=options.prune,
    )


def _check_workers(options: argparse.Namespace, beam_args: Sequence[str]) -> None:
    if options.runner not in LOCAL_RUNNERS:
        raise UsageError(
            "--workers is for a local run: other runners have flags of their own, "
            "such as --max_num_workers of Dataflow and --parallelism of Flink"
        )
    if any(argument.startswith("--direct_num_workers") for argument in beam_args):
        raise UsageError("--workers and --direct_num_workers do not go together")
    if options.precision == "auto":
        raise UsageError("--precision=auto may choose otherwise in each of several --workers")


def shared(
    options: argparse.Namespace,
    beam_args: Sequence[str],
    run_date: str | None = None,
    carry: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The fields of `JobSpec`. Raises `UsageError`; label files are read and checked."""
    if options.detach and options.runner != DATAFLOW:
        raise UsageError(f"--detach goes with --runner={DATAFLOW}: other jobs are waited for")
    now = datetime.datetime.now(datetime.UTC)
    return {
        "storage_options": options.storage_options,
        "label_sets": read_label_sets(options),
        "run": RunSpec(
            run_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            run_date=run_date or f"{now:%Y-%m-%d}",
            output=options.output,
            carry=carry,
        ),
        "model": ModelSpec(options.model, options.pretrained, options.device),
        "limits": limits_of(options),
        "max_pixels": options.max_pixels,
        "background": options.background,
        "take_over": options.take_over,
        "runner": options.runner,
        "beam_args": tuple(beam_args),
        "detach": options.detach,
        "explain": options.explain,
        "told": options.told,
        "quiet": options.quiet,
        "json": options.json,
    }


def read_label_sets(options: argparse.Namespace) -> tuple[LabelSet, ...]:
    """The sets of `--labels`, with what the command line says in place of the files.

    Raises `UsageError`. The stores' options are in force from here on.
    """
    # Not at the top: --help does not wait for fsspec.
    from transforms.storage import use_storage_options

    use_storage_options(options.storage_options)
    try:
        label_sets = tuple(
            _override(read_label_set(source), source, options.top_k, options.threshold)
            for source in options.labels
        )
    except LabelFileError as error:
        raise UsageError(str(error)) from error
    _refuse_repeated(label_sets)
    return label_sets


def refuse_stray(beam_args: Sequence[str], prog: str) -> None:
    """Raise `UsageError` for a word that is neither a flag nor a flag's value."""
    stray = [argument for argument in beam_args if not argument.startswith("-")]
    if stray and not _follows_a_flag(beam_args, stray[0]):
        raise UsageError(f"unexpected argument {stray[0]!r} (see {prog} --help)")


def _input(url: str, input_format: Any) -> Input:
    return Input(url, kind_of(url) if input_format == "auto" else input_format)


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
