"""The main job: media and words in, tables out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import logging
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipelines import options, report
from pipelines.flags import UsageError
from pipelines.options import TagSpec

if TYPE_CHECKING:
    from transforms.modelstore import ModelInfo
    from transforms.runlock import Place

logger = logging.getLogger("beamtag")

_STAGE = re.compile(r" \[while running '.*'\]$")
SETTINGS = (
    "shard_size",
    "batch_size",
    "text_weight",
    "limits",
    "max_pixels",
    "background",
    "selection",
    "retry",
    "max_failures",
    "prune",
)
_OWN_ERROR = re.compile(
    r"(?:transforms\.\w+\.)?"
    "(ModelError|PublishError|LostPlaceError|PruneError|TooManyFailuresError|DamagedError): "
)
# Of a place that is as it was meant, and tomorrow may do.
_LIMITS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM)
VERSIONED = ("beamtag", "apache-beam", "torch", "open_clip_torch", "pillow", "pyarrow", "fsspec")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 accounted for, 1 failed, 2 bad usage."""
    try:
        spec = options.parse_tag(sys.argv[1:] if argv is None else argv)
        report.set_up_logging(quiet=spec.quiet or spec.json, local=spec.is_local)
        # Only now: a command line with a mistake in it does not wait for torch and Beam.
        from transforms.modelstore import ModelError

        try:
            with _ended_by_sigterm():
                return run(spec)
        except ModelError as error:
            raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        return _failed("interrupted before any work")
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"beamtag tag: error: {line}", file=sys.stderr)  # noqa: T201
        return 2


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends a job like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: object) -> None:
        # Once: while it is ending it is not to be broken off again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(spec: TagSpec) -> int:
    """Run a checked job and report it.

    Raises `UsageError` and `ModelError`, both before any work starts.
    """
    from transforms.model import check_device
    from transforms.modelstore import describe_model
    from transforms.runlock import HeldError, take_place

    beam_options = _beam_options(spec)
    _check_inputs(spec)
    model = describe_model(spec.model)
    check_device(spec.model)
    try:
        place = take_place(spec.run.output, spec.run.run_id, take_over=spec.take_over)
    except HeldError as error:
        return _failed(str(error))
    # Any store's client, any error of its own: nothing can be written there.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _LIMITS:
            return _failed(f"cannot write to {spec.run.output}: {_one_line(error)}")
        raise UsageError(f"cannot write to {spec.run.output}: {_one_line(error)}") from error
    with place:
        place.start_beating()
        return _run_in_place(spec, model, beam_options, place)


def _run_in_place(spec: TagSpec, model: ModelInfo, beam_options: Any, place: Place) -> int:
    import apache_beam as beam

    from pipelines.graph import build
    from transforms.model import forget_models
    from transforms.progress import progress
    from transforms.writing import publish_record

    output, run_id = spec.run.output, spec.run.run_id
    header = _header(spec, model)
    record_url = f"{output}/runs/{run_id}.json"
    try:
        pipeline = beam.Pipeline(runner=_runner(spec), options=beam_options)
    except ValueError as error:
        raise UsageError(_one_line(error)) from error
    if spec.is_local:
        # What this run loads, the record tells.
        forget_models()
    progress.reset()
    try:
        # Also the trace of a run that was killed.
        publish_record(record_url, {**header, "status": "running"})
    except OSError as error:
        raise UsageError(_one_line(error)) from error
    try:
        _tidy_up(output, place)
        build(pipeline, spec, model, record_url, header)
        with report.live_progress(shown=spec.is_local and not (spec.quiet or spec.json)):
            pipeline.run().wait_until_finish()
        if spec.is_local:
            _tell_of_model(record_url)
        if spec.prune:
            _prune(spec, record_url)
    # Whatever broke the run, the operator gets the trace, one last line, and a record of it.
    except (Exception, KeyboardInterrupt) as error:
        return _broken(error, record_url, header, traced=not (spec.quiet or spec.json))
    return report.close(record_url, quiet=spec.quiet, as_json=spec.json)


def _tidy_up(output: str, place: Place) -> None:
    """Remove what runs left that were killed, and say in their records that they were."""
    from transforms.publishing import asides, tidy
    from transforms.writing import publish_record

    # One that was interrupted gave its place back, and left what its threads were writing.
    left = {aside.run_id for aside in asides(output)} - {place.run_id, *place.dead}
    ended = [run_id for run_id in left if _status(output, run_id) not in (None, "running")]
    tidy(output, [*place.dead, *ended])
    for run_id in place.dead:
        # Without one it came to nothing before it had a record.
        if _status(output, run_id) == "running":
            url = f"{output}/runs/{run_id}.json"
            error = f"it did not end; run {place.run_id} took its place"
            publish_record(url, {**_record(url), "status": "interrupted", "error": error})
    place.tidied()


def _status(output: str, run_id: str) -> str | None:
    try:
        status = _record(f"{output}/runs/{run_id}.json").get("status")
    except (FileNotFoundError, ValueError):
        return None
    return None if status is None else str(status)


def _record(url: str) -> dict[str, Any]:
    from transforms.storage import read_object

    record: dict[str, Any] = json.loads(read_object(url))
    return record


def _tell_of_model(record_url: str) -> None:
    """Add to a local run's record what it has loaded."""
    from transforms.model import loaded_towers
    from transforms.storage import read_object
    from transforms.writing import publish_record

    record = json.loads(read_object(record_url))
    record["model"]["loaded"] = sorted(loaded_towers())
    publish_record(record_url, record)


def _prune(spec: TagSpec, record_url: str) -> None:
    from transforms.pruning import prune
    from transforms.storage import read_object
    from transforms.writing import publish_record

    record = json.loads(read_object(record_url))
    if record["status"] != "finished":
        return  # Not on the word of a listing that does not add up.
    pruned = prune(spec.run.output, spec.inputs, spec.selection, spec.run.run_id)
    publish_record(record_url, {**record, "pruned": pruned._asdict()})


def _broken(error: BaseException, record_url: str, header: dict[str, Any], *, traced: bool) -> int:
    from transforms.writing import publish_record

    cause = _one_line(error)
    interrupted = cause.startswith("KeyboardInterrupt")
    own = _OWN_ERROR.match(cause)
    cause = _STAGE.sub("", cause[own.end() :]) if own else cause
    # Our own errors say in their words what there is to know.
    if traced and not interrupted and not own:
        _print_trace(error)
    status = "interrupted" if interrupted else "failed"
    try:
        publish_record(record_url, {**header, "status": status, "error": cause})
    # The store that broke the run may break this too, and must not hide what it was.
    except Exception as unwritable:
        logger.error("and its record cannot be written: %s", unwritable)
    if interrupted:
        return _failed("interrupted; what is written is kept, and the same command goes on from it")
    if own and own[1] == "ModelError":
        # Found out only now, because a run without work loads no model.
        print(f"beamtag tag: error: {cause}", file=sys.stderr)  # noqa: T201
        return 2
    return _failed(cause)


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

    if spec.prune:
        from transforms.pruning import PruneError, check_prunable

        try:
            check_prunable(spec.inputs)
        except PruneError as error:
            raise UsageError(str(error)) from error
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


def _header(spec: TagSpec, model: ModelInfo) -> dict[str, Any]:
    """What a run's record says before anything ran."""
    return {
        "run_id": spec.run.run_id,
        "run_date": spec.run.run_date,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "inputs": [_masked(given.url) for given in spec.inputs],
        "output": spec.run.output,
        "model_id": model.model_id,
        "model": dataclasses.asdict(spec.model),
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
    if lines and _STAGE.search(lines[-1]) and isinstance(error, RuntimeError):
        return lines[0]  # Beam's wrapper: the cause with its type, and the stage it was in
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    from pipelines.cli import leave

    leave(main())
