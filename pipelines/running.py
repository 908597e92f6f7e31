"""What every job that writes has around its graph: its place, its record, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import gc
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines import report
from pipelines.config import beam_parser
from pipelines.endings import broken, failed, one_line
from pipelines.groups import UsageError
from pipelines.options import DATAFLOW, JobSpec

if TYPE_CHECKING:
    import apache_beam as beam

    from transforms.modelstore import ModelInfo
    from transforms.runlock import Place
    from transforms.utilisation import Meter

logger = logging.getLogger("beamtag")

Spec = TypeVar("Spec", bound=JobSpec)

# Of a place that is as it was meant, and tomorrow may do.
_LIMITS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM)
VERSIONED = ("beamtag", "apache-beam", "torch", "open_clip_torch", "pillow", "pyarrow", "fsspec")


def main(
    job: str,
    argv: Sequence[str] | None,
    parse: Callable[[Sequence[str]], Spec],
    run: Callable[[Spec], int],
) -> int:
    """Run a job; gives the exit status: 0 accounted for, 1 failed, 2 bad usage."""
    try:
        spec = parse(sys.argv[1:] if argv is None else argv)
        report.set_up_logging(quiet=spec.quiet or spec.json, local=spec.is_local)
        # Only now: a command line with a mistake in it does not wait for torch and Beam.
        from transforms.lightimports import import_beam
        from transforms.modelstore import ModelError

        if spec.is_local:
            import_beam()
            _refuse_unknown(job, spec.beam_args)

        try:
            with ended_by_sigterm():
                return run(spec)
        except ModelError as error:
            raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        return failed(job, "interrupted before any work")
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"beamtag {job}: error: {line}", file=sys.stderr)  # noqa: T201
        return 2


@contextlib.contextmanager
def interpreter_for_threads() -> Iterator[None]:
    """An interpreter for many short tasks in threads: a decode-bound run takes a tenth less time.

    What is imported is not looked through for garbage again and again, and whoever waits for the
    interpreter's lock, a picture decoded, waits half a millisecond for it and not five.
    """
    switching, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(0.0005)
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        sys.setswitchinterval(switching)
        gc.set_threshold(*thresholds)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
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


def run_graph(
    job: str,
    spec: JobSpec,
    header: dict[str, Any],
    build: Callable[[beam.Pipeline, str], None],
    afterwards: Callable[[str], None] = lambda record_url: None,
) -> int:
    """Run a job's graph in its place on the output and report it; gives the exit status.

    `build` and `afterwards` take the URL of the run's record, which begins with `header`. A job
    that is to be explained is not run, and a dry run is not submitted. Raises `UsageError` before
    any work starts.
    """
    if spec.explain:
        from pipelines.explaining import explain

        return explain(spec, header, build)
    from apache_beam.options.pipeline_options import TestOptions

    from pipelines.dataflowjobs import job_runs
    from transforms.runlock import HeldError, take_place

    if _beam_options(spec).view_as(TestOptions).dry_run:
        return _dry_run(job, spec, build)
    try:
        place = take_place(
            spec.run.output,
            spec.run.run_id,
            take_over=spec.take_over,
            job_runs=partial(job_runs, beam_args=spec.beam_args),
        )
    except HeldError as error:
        return failed(job, str(error))
    # Any store's client, any error of its own: nothing can be written there.
    except Exception as error:
        said = f"cannot write to {spec.run.output}: {one_line(error)}"
        if isinstance(error, OSError) and error.errno in _LIMITS:
            return failed(job, said)
        raise UsageError(said) from error
    with place, interpreter_for_threads():
        place.start_beating()
        return _run_in_place(job, spec, header, build, afterwards, place)


def _dry_run(job: str, spec: JobSpec, build: Callable[[beam.Pipeline, str], None]) -> int:
    """Make Dataflow's job of the graph as its runner does, and submit and write nothing."""
    if spec.runner != DATAFLOW:
        raise UsageError(f"--dry_run is a flag of {DATAFLOW}; for other runs there is --explain")
    pipeline = empty_pipeline(spec)
    build(pipeline, _record_url(spec))
    pipeline.run()
    if not spec.quiet:
        print(f"beamtag {job}: the job was built; as a dry run it is not submitted")  # noqa: T201
    return 0


def _run_in_place(
    job: str,
    spec: JobSpec,
    header: dict[str, Any],
    build: Callable[[beam.Pipeline, str], None],
    afterwards: Callable[[str], None],
    place: Place,
) -> int:
    from pipelines.dataflowjobs import job_of
    from transforms.model import forget_models
    from transforms.progress import progress
    from transforms.recording import publish_record
    from transforms.utilisation import Meter

    record_url = _record_url(spec)
    pipeline = empty_pipeline(spec)
    if spec.is_local:
        # What this run loads, the record tells.
        forget_models()
    meter = Meter()
    progress.reset()
    try:
        # Also the trace of a run that was killed.
        publish_record(record_url, {**header, "status": "running"})
    except OSError as error:
        raise UsageError(one_line(error)) from error
    try:
        _tidy_up(spec.run.output, place)
        build(pipeline, record_url)
        with report.live_progress(shown=spec.is_local and not (spec.quiet or spec.json)), meter:
            result = _started(pipeline)
            if not spec.is_local:
                if name := job_of(pipeline.options):
                    place.goes_on_in(name)
                if spec.detach:
                    return _detached(job, spec, record_url, place)
            _wait_for(result)
        if spec.is_local:
            _tell_of_process(record_url, meter)
        afterwards(record_url)
    # Whatever broke the run, the operator gets the trace, one last line, and a record of it.
    except (Exception, KeyboardInterrupt) as error:
        return broken(job, error, record_url, header, traced=not (spec.quiet or spec.json))
    return report.close(job, record_url, quiet=spec.quiet, as_json=spec.json)


def _started(pipeline: beam.Pipeline) -> Any:
    """The job, once its runner has it; a local runner has done it then."""
    import grpc
    from apache_beam.options.pipeline_options import PortableOptions

    try:
        return pipeline.run()
    except grpc.FutureTimeoutError as error:
        endpoint = pipeline.options.view_as(PortableOptions).job_endpoint
        raise ConnectionError(f"no job server answers at --job_endpoint={endpoint}") from error


def _wait_for(result: Any) -> None:
    """Wait for a job's end; one that this process is told to leave is not left running."""
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        # Elsewhere it would go on without a place on the output. A local run has ended.
        try:
            result.cancel()
        # Whatever the runner says: the job server may have been stopped first.
        except Exception as error:
            logger.warning("the job may still run, it was not cancelled: %s", one_line(error))
        raise


def _detached(job: str, spec: JobSpec, record_url: str, place: Place) -> int:
    """Leave a submitted job to itself: it writes its record, then gives its place back."""
    place.leave()
    if spec.json:
        print(json.dumps({**_record(record_url), "job": place.job}))  # noqa: T201
    elif not spec.quiet:
        print(f"submitted {place.job}\nits record will be {record_url}")  # noqa: T201
    return 0


def _tidy_up(output: str, place: Place) -> None:
    """Remove what runs left that were killed, and say in their records that they were."""
    from transforms.publishing import asides, tidy
    from transforms.recording import publish_record

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


def _tell_of_process(record_url: str, meter: Meter) -> None:
    """Add to a local run's record what this process has loaded, and how busy it was."""
    from transforms.model import loaded_towers, tower_in_use
    from transforms.recording import publish_record

    record = _record(record_url)
    record["model"] |= {**tower_in_use(), "loaded": sorted(loaded_towers())}
    publish_record(record_url, {**record, **meter.told()})


def _beam_options(spec: JobSpec) -> Any:
    from apache_beam.options.pipeline_options import (
        GoogleCloudOptions,
        PipelineOptions,
        SetupOptions,
    )

    runner = [] if spec.is_local else [f"--runner={spec.runner}"]
    options = PipelineOptions([*spec.beam_args, *runner])
    if spec.runner == DATAFLOW and not options.view_as(GoogleCloudOptions).job_name:
        # By this the lock names the job.
        options.view_as(GoogleCloudOptions).job_name = f"beamtag-{spec.run.run_id.lower()}"
    if options.view_as(SetupOptions).save_main_session is None:
        # Whatever is sent is defined in a module of the package.
        options.view_as(SetupOptions).save_main_session = False
    return options


def _refuse_unknown(job: str, arguments: Sequence[str]) -> None:
    """Beam would drop a flag that it does not know with a warning; a typing error is an error.

    Only for a local run: a job server tells of more options when it is asked.
    """
    _, unknown = beam_parser().parse_known_args(list(arguments))
    if unknown:
        what = "unknown option" if unknown[0].startswith("-") else "unexpected argument"
        raise UsageError(f"{what} {unknown[0]} (see beamtag {job} --help)")


def _record_url(spec: JobSpec) -> str:
    return f"{spec.run.output}/runs/{spec.run.run_id}.json"


def empty_pipeline(spec: JobSpec) -> beam.Pipeline:
    """An empty pipeline of the job's runner. Raises `UsageError` for options that it refuses."""
    import apache_beam as beam

    try:
        return beam.Pipeline(runner=_runner(spec), options=_beam_options(spec))
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _runner(spec: JobSpec) -> Any:
    if not spec.is_local:
        return None  # Beam reads --runner.
    if spec.runner == "DirectRunner":
        logger.info("runner: DirectRunner means a local run on FnApiRunner here")
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # Named, because DirectRunner chooses among three runners by what the graph contains.
    return FnApiRunner()


def resolved(spec: Spec, model: ModelInfo) -> Spec:
    """The job with the digests of the files that its label sets name. Raises `UsageError`."""
    if not any(label_set.examples or label_set.adapter for label_set in spec.label_sets):
        return spec
    from transforms.decoding import ImageDecoder
    from transforms.examples import resolve
    from transforms.labelfile import LabelFileError

    decode = ImageDecoder(model.preprocess, spec.max_pixels, spec.background)
    try:
        label_sets = tuple(
            resolve(label_set, decode, spec.limits, model.model_id) for label_set in spec.label_sets
        )
    except LabelFileError as error:
        raise UsageError(str(error)) from error
    return dataclasses.replace(spec, label_sets=label_sets)


def record_header(spec: JobSpec, model: ModelInfo, settings: Sequence[str]) -> dict[str, Any]:
    """What a run's record says before anything ran; `settings` names fields of the job's own."""
    from transforms.labels import plain

    return {
        "run_id": spec.run.run_id,
        "run_date": spec.run.run_date,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "output": spec.run.output,
        "model_id": model.model_id,
        "model": dataclasses.asdict(spec.model),
        "label_sets": {label_set.label_set_id: plain(label_set) for label_set in spec.label_sets},
        "settings": {name: _plain(getattr(spec, name)) for name in settings},
        "carry": spec.run.carry,
        "runner": spec.runner,
        "beam_args": spec.beam_args,
        "versions": {name: metadata.version(name) for name in VERSIONED},
    }


def _plain(value: Any) -> Any:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_record else value
