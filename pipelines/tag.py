"""The main job: media and words in, tables out."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipelines import options, report
from pipelines.flags import UsageError
from pipelines.options import TagSpec

if TYPE_CHECKING:
    import apache_beam as beam

    from transforms.modelstore import ModelInfo

logger = logging.getLogger("beamtag")

SETTINGS = (
    "shard_size",
    "batch_size",
    "text_weight",
    "limits",
    "max_pixels",
    "background",
    "selection",
)
VERSIONED = ("beamtag", "apache-beam", "torch", "open_clip_torch", "pillow", "pyarrow", "fsspec")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 accounted for, 1 failed, 2 bad usage."""
    try:
        spec = options.parse_tag(sys.argv[1:] if argv is None else argv)
        report.set_up_logging(quiet=spec.quiet or spec.json, local=spec.is_local)
        # Only now: a command line with a mistake in it does not wait for torch and Beam.
        from transforms.modelstore import ModelError

        try:
            return run(spec)
        except ModelError as error:
            raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        return _failed("interrupted before any work")
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"beamtag tag: error: {line}", file=sys.stderr)  # noqa: T201
        return 2


def run(spec: TagSpec) -> int:
    """Run a checked job and report it.

    Raises `UsageError` and `ModelError`, both before any work starts.
    """
    import apache_beam as beam

    from transforms.model import shared_model
    from transforms.modelstore import describe_model
    from transforms.progress import progress
    from transforms.writing import publish_record

    beam_options = _beam_options(spec)
    _check_inputs(spec)
    model = describe_model(spec.model)
    # Loaded here, where a broken checkpoint or an absent device is a line and not a stack of
    # Beam's; the stages of a local run find it loaded.
    device = shared_model(spec.model).device.type if spec.is_local else spec.model.device
    header = _header(spec, model, device)
    record_url = f"{spec.run.output}/runs/{spec.run.run_id}.json"
    try:
        pipeline = beam.Pipeline(runner=_runner(spec), options=beam_options)
    except ValueError as error:
        raise UsageError(_one_line(error)) from error
    build(pipeline, spec, model, record_url, header)
    try:
        # Also the trace of a run that was killed.
        publish_record(record_url, {**header, "status": "running"})
    # Any store's client, any error of its own: nothing can be written there.
    except Exception as error:
        raise UsageError(f"cannot write to {spec.run.output}: {_one_line(error)}") from error

    progress.reset()
    try:
        with report.live_progress(shown=spec.is_local and not (spec.quiet or spec.json)):
            pipeline.run().wait_until_finish()
    # Whatever broke the run, the operator gets the trace, one last line, and a record of it.
    except (Exception, KeyboardInterrupt) as error:
        return _broken(error, record_url, header, traced=not (spec.quiet or spec.json))
    return report.close(record_url, quiet=spec.quiet, as_json=spec.json)


def _broken(error: BaseException, record_url: str, header: dict[str, Any], *, traced: bool) -> int:
    from transforms.writing import publish_record

    cause = _one_line(error)
    interrupted = cause.startswith("KeyboardInterrupt")
    if traced and not interrupted:
        _print_trace(error)
    status = "interrupted" if interrupted else "failed"
    try:
        publish_record(record_url, {**header, "status": status, "error": cause})
    # The store that broke the run may break this too, and must not hide what it was.
    except Exception as unwritable:
        logger.error("and its record cannot be written: %s", unwritable)
    return _failed("interrupted; the same command starts it over" if interrupted else cause)


def build(
    pipeline: beam.Pipeline,
    spec: TagSpec,
    model: ModelInfo,
    record_url: str,
    header: dict[str, Any],
) -> None:
    """Wire the job: references are listed and grouped, then all the rest is one fused stage."""
    import apache_beam as beam

    from transforms.accounting import Account
    from transforms.decoding import ImageDecoder
    from transforms.embedding import EmbedLabels, EmbedMedia
    from transforms.listing import GroupIntoShards, ListManifests, ListMedia, ListTars
    from transforms.reading import ReadMedia
    from transforms.scoring import ScoreLabels
    from transforms.writing import WriteRunRecord, WriteShards

    decoder = ImageDecoder(model.preprocess, spec.max_pixels, spec.background)

    stores = spec.storage_options

    inputs = pipeline | "Inputs" >> beam.Create([spec.inputs])
    objects = inputs | "ListMedia" >> ListMedia(spec.selection, stores)
    rows = inputs | "ListManifests" >> ListManifests(spec.run.carry, stores)
    tars = inputs | "ListTars" >> ListTars(stores)
    # Grouped before they come together: a local runner keeps what goes into a Flatten.
    shards = (
        objects | "GroupIntoShards" >> GroupIntoShards(spec.shard_size),
        rows | "GroupRows" >> GroupIntoShards(spec.shard_size, "rows"),
        tars,
    ) | "Shards" >> beam.Flatten()
    label_vectors = (
        pipeline
        | "LabelSets" >> beam.Create(spec.label_sets)
        | "EmbedLabels" >> EmbedLabels(spec.model, stores)
    )
    written = (
        shards
        | "ShuffleShards" >> beam.Reshuffle()
        | "ReadMedia"
        >> ReadMedia(decoder, spec.limits, spec.batch_size, spec.shard_size, spec.run.carry, stores)
        | "EmbedMedia" >> EmbedMedia(spec.model, model.dim, spec.run, spec.text_weight, stores)
        | "ScoreLabels" >> ScoreLabels(label_vectors, spec.run)
        | "WriteShards" >> WriteShards(spec.run, model.model_id, stores)
    )
    listed = (
        shards
        # What is in a tar is found, and counted, by reading it.
        | "ListedPerShard" >> beam.Map(lambda shard: 0 if shard.tar else len(shard.refs))
        | "CountListed" >> beam.CombineGlobally(sum)
        | "AccountListed" >> beam.Map(lambda count: Account(listed=count))
    )
    _ = (
        (listed, written)
        | "Accounts" >> beam.Flatten()
        | "WriteRunRecord" >> WriteRunRecord(record_url, header, stores)
    )


def _beam_options(spec: TagSpec) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = list(spec.beam_args)
    if spec.is_local:
        _refuse_unknown(arguments)
    else:
        arguments.append(f"--runner={spec.runner}")
    return PipelineOptions(arguments)


def _refuse_unknown(arguments: Sequence[str]) -> None:
    """Beam would drop a flag that it does not know with a warning; a typing error is an error.

    Only for a local run: a job server tells of more options when it is asked.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    parser = _BeamArgumentParser(allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        what = "unknown option" if unknown[0].startswith("-") else "unexpected argument"
        raise UsageError(f"{what} {unknown[0]} (see beamtag tag --help)")


def _runner(spec: TagSpec) -> Any:
    if not spec.is_local:
        return None  # Beam reads --runner.
    if spec.runner == "DirectRunner":
        logger.info("runner: DirectRunner means a local run on FnApiRunner here")
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # Named, because DirectRunner chooses among three runners by what the graph contains.
    return FnApiRunner()


def _check_inputs(spec: TagSpec) -> None:
    from transforms.listing import input_exists, list_inputs
    from transforms.manifestrows import ManifestError
    from transforms.manifests import check_manifest
    from transforms.schemas import RESERVED

    if taken := RESERVED.intersection(spec.run.carry):
        raise UsageError(f"--carry: the tables have a column {min(taken)} of their own")
    for given in spec.inputs:
        try:
            exists = input_exists(given.url)
        # Any store's client, any error of its own; without its package there is none.
        except Exception as error:
            raise _unseen(given.url, error) from error
        if not exists:
            raise UsageError(f"--input={given.url} does not exist")
        if given.kind == "manifest":
            try:
                for ref in list_inputs([given], "manifest", None, spec.storage_options):
                    check_manifest(ref.uri, spec.run.carry)
            except ManifestError as error:
                raise UsageError(str(error)) from error
            except Exception as error:  # as above
                raise _unseen(given.url, error) from error


def _unseen(url: str, error: Exception) -> UsageError:
    return UsageError(f"cannot look at --input={url}: {_one_line(error)}")


def _header(spec: TagSpec, model: ModelInfo, device: str) -> dict[str, Any]:
    """What a run's record says before anything ran."""
    return {
        "run_id": spec.run.run_id,
        "run_date": spec.run.run_date,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "inputs": [_masked(given.url) for given in spec.inputs],
        "output": spec.run.output,
        "model_id": model.model_id,
        "model": {**dataclasses.asdict(spec.model), "device": device},
        "label_sets": {
            label_set.label_set_id: dataclasses.asdict(label_set) for label_set in spec.label_sets
        },
        "settings": {name: _plain(getattr(spec, name)) for name in SETTINGS},
        "carry": spec.run.carry,
        "runner": spec.runner,
        "beam_args": spec.beam_args,
        "versions": {name: metadata.version(name) for name in VERSIONED},
    }


def _masked(url: str) -> str:
    """The URL without the password that it may have."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    login, at, host = place.rpartition("@")
    user, colon, _ = login.partition(":")
    # On GitHub `org:repo@ref` is no login.
    if not mark or not at or not colon or scheme == "github":
        return url
    return f"{scheme}://{user}:***@{host}{slash}{path}"


def _plain(value: Any) -> Any:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_record else value


def _failed(cause: str) -> int:
    print(f"beamtag tag: failed: {cause}", file=sys.stderr)  # noqa: T201
    return 1


def _print_trace(error: BaseException) -> None:
    """Where it broke: the trace of the first error, without those of Beam's passing it on."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    traceback.print_exception(error, chain=False)


def _one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines()
    if lines and "[while running" in lines[-1]:
        return lines[0]  # Beam's wrapper: the cause with its type, and the stage it was in
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
