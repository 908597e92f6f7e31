"""The main job: media and words in, tables out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines import options
from pipelines.groups import UsageError
from pipelines.options import TagSpec
from pipelines.running import main as run_main
from pipelines.running import record_header, resolved, run_graph
from pipelines.terminal import masked

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
    "decode",
    "workers",
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
    from transforms.model import check_decode, check_device, worker_gpus
    from transforms.modelstore import describe_model

    check_inputs(spec)
    model = describe_model(spec.model)
    if spec.is_local:
        # Elsewhere it is the workers who have it, or say that they have not.
        check_device(spec.model)
        check_decode(spec.decode, spec.model)
        worker_gpus(spec.model, spec.workers)
    spec = resolved(spec, model)
    header = record_header(spec, model, SETTINGS)
    header["inputs"] = [masked(given.url) for given in spec.inputs]
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
    from transforms.recording import publish_record
    from transforms.storage import read_object

    record = json.loads(read_object(record_url))
    if record["status"] != "finished":
        return  # Not on the word of a listing that does not add up.
    pruned = prune(spec.run.output, spec.inputs, spec.selection, spec.run.run_id)
    publish_record(record_url, {**record, "pruned": pruned._asdict()})


def check_inputs(spec: TagSpec) -> None:
    """Raise `UsageError` where inputs are not there, or not what this job can do with them."""
    from pipelines import inputs
    from transforms.schemas import RESERVED

    if spec.prune:
        from transforms.pruning import PruneError, check_prunable

        try:
            check_prunable(spec.inputs)
        except PruneError as error:
            raise UsageError(str(error)) from error
    # Warehouses do not tell names apart by case.
    names = Counter(name.lower() for name in spec.run.carry)
    if taken := RESERVED.intersection(names):
        raise UsageError(f"--carry: the tables have a column {min(taken)} of their own")
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"--carry: two columns would be {twice[0]} to a warehouse")
    inputs.check_inputs(spec.inputs, spec.run.carry)


if __name__ == "__main__":
    from pipelines.cli import leave

    leave(main())
