"""The main job: media and words in, tables out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines import options
from pipelines.groups import UsageError
from pipelines.options import TagSpec
from pipelines.running import main as run_main
from pipelines.running import record_header, resolved, run_graph

if TYPE_CHECKING:
    import apache_beam as beam

    from transforms.modelstore import ModelInfo

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 accounted for, 1 failed, 2 bad usage."""
    return run_main("tag", argv, options.parse_tag, run)


def run(spec: TagSpec) -> int:
    """Run a checked job and report it.

    Raises `UsageError` and `ModelError`, both before any work starts.
    """
    from transforms.model import check_device
    from transforms.modelstore import describe_model

    _check_inputs(spec)
    model = describe_model(spec.model)
    if spec.is_local:
        # Elsewhere it is the workers who have it, or say that they have not.
        check_device(spec.model)
    spec = resolved(spec, model)
    header = record_header(spec, model, SETTINGS)
    header["inputs"] = [_masked(given.url) for given in spec.inputs]
    afterwards = partial(_prune, spec) if spec.prune else lambda record_url: None
    return run_graph("tag", spec, header, partial(_build, spec, model, header), afterwards)


def _build(
    spec: TagSpec,
    model: ModelInfo,
    header: dict[str, Any],
    pipeline: beam.Pipeline,
    record_url: str,
) -> None:
    from pipelines.graph import build

    build(pipeline, spec, model, record_url, header)


def _prune(spec: TagSpec, record_url: str) -> None:
    from transforms.pruning import prune
    from transforms.storage import read_object
    from transforms.writing import publish_record

    record = json.loads(read_object(record_url))
    if record["status"] != "finished":
        return  # Not on the word of a listing that does not add up.
    pruned = prune(spec.run.output, spec.inputs, spec.selection, spec.run.run_id)
    publish_record(record_url, {**record, "pruned": pruned._asdict()})


def _check_inputs(spec: TagSpec) -> None:
    from pipelines.inputs import check_inputs
    from transforms.schemas import RESERVED

    if spec.prune:
        from transforms.pruning import PruneError, check_prunable

        try:
            check_prunable(spec.inputs)
        except PruneError as error:
            raise UsageError(str(error)) from error
    if taken := RESERVED.intersection(spec.run.carry):
        raise UsageError(f"--carry: the tables have a column {min(taken)} of their own")
    check_inputs(spec.inputs, spec.run.carry)


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


if __name__ == "__main__":
    from pipelines.cli import leave

    leave(main())
