"""Stored vectors and label sets to predictions: no picture is read, no image tower loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.groups import (
    Parser,
    add_labels,
    add_limits,
    add_model,
    add_output,
    add_running,
    add_tags,
)
from pipelines.options import JobSpec, refuse_stray, shared
from pipelines.placing import check_stored
from pipelines.running import main as run_main
from pipelines.running import record_header, resolved, run_graph

if TYPE_CHECKING:
    import apache_beam as beam

    from transforms.modelstore import ModelInfo

EPILOG = """\
Any other option is Beam's, as for tag.

exit status:
  0  every vector of the model has predictions of the label sets
  1  the run failed
  2  bad usage, said in one line before any work

example:
  beamtag rescore --output=gs://bucket/tags --labels=labels.yaml --model=ViT-B-32 \\
      --pretrained=laion2b_s34b_b79k
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreSpec(JobSpec):
    """A rescore job's command line, checked; with `again` what has predictions is scored too."""

    again: bool


def parser(prog: str = "beamtag rescore") -> Parser:
    """The parser of the rescore job."""
    parser = Parser(
        prog, "Score the stored vectors of an output against label sets, without a picture.", EPILOG
    )
    group = parser.add_argument_group("what to score")
    add_output(group, "where the tables are, and are written")
    add_labels(group)
    group.add_argument(
        "--again",
        action="store_true",
        help="also score files that have predictions of these label sets",
    )
    add_model(parser)
    add_tags(parser)
    add_limits(parser.add_argument_group("example pictures of labels"))
    add_running(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 all is scored, 1 failed, 2 bad usage."""
    return run_main("rescore", argv, _parse, run)


def _parse(argv: Sequence[str]) -> RescoreSpec:
    options, beam_args = parser().parse_known_args(argv)
    refuse_stray(beam_args, "beamtag rescore")
    return RescoreSpec(**shared(options, beam_args), again=options.again)


def run(spec: RescoreSpec) -> int:
    """Run a checked job and report it.

    Raises `UsageError` and `ModelError`, both before any work starts.
    """
    from transforms.model import check_device
    from transforms.modelstore import describe_model

    model = describe_model(spec.model)
    if spec.is_local:
        check_device(spec.model)
    check_stored(spec.run.output, model.model_id, hint="")
    spec = resolved(spec, model)
    header = {**record_header(spec, model, ("again",)), "inputs": []}
    return run_graph("rescore", spec, header, partial(_build, spec, model, header))


def _build(
    spec: RescoreSpec,
    model: ModelInfo,
    header: dict[str, Any],
    pipeline: beam.Pipeline,
    record_url: str,
) -> None:
    from pipelines.graph import build_rescore

    build_rescore(pipeline, spec, model, record_url, header, again=spec.again)


if __name__ == "__main__":
    from pipelines.cli import leave

    leave(main())
