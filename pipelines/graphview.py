"""A graph as a person reads it: named steps, which of them run in one pass, what is shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.portability.fn_api_runner import translations

SHUFFLE = "beam:transform:group_by_key:v1"


@dataclass(slots=True)
class Step:
    """A named step; `label` is its own word, `name` the whole way to it.

    `passes` are numbers of stages: steps of the same one are fused, and what flows between them
    stays in the worker. A step in several of them has a shuffle or a side input inside.
    """

    name: str
    label: str
    passes: tuple[int, ...] = ()
    shuffles: bool = False
    steps: list[Step] = field(default_factory=list)


def steps_of(pipeline: beam.Pipeline) -> list[Step]:
    """A pipeline's steps down to where Beam's own parts begin, with the stages that a runner fuses.

    The stages are those of Beam's greedy fusion, which the local runner and Dataflow do.
    """
    visitor = _Steps()
    pipeline.visit(visitor)
    proto = pipeline.to_runner_api()
    shuffles = [
        transform.unique_name
        for transform in proto.components.transforms.values()
        if transform.spec.urn == SHUFFLE
    ]
    stages = _stages(proto)
    numbers: dict[int, int] = {}
    for step in walk(visitor.top):
        step.shuffles = any(_is_in(name, step) for name in shuffles)
        found = [
            place for place, names in enumerate(stages) if any(_is_in(name, step) for name in names)
        ]
        step.passes = tuple(sorted(numbers.setdefault(place, len(numbers) + 1) for place in found))
    return visitor.top


def walk(steps: list[Step]) -> Iterator[Step]:
    """All steps, each before what is in it."""
    for step in steps:
        yield step
        yield from walk(step.steps)


def _is_in(name: str, step: Step) -> bool:
    return name == step.name or name.startswith(f"{step.name}/")


def _stages(proto: Any) -> list[list[str]]:
    """The names of the transforms of each stage."""
    _, stages = translations.create_and_optimize_stages(
        proto,
        phases=[
            translations.annotate_downstream_side_inputs,
            translations.lift_combiners,
            translations.expand_sdf,
            translations.expand_gbk,
            translations.greedily_fuse,
        ],
        known_runner_urns=frozenset(),
    )
    return [[transform.unique_name for transform in stage.transforms] for stage in stages]


class _Steps(PipelineVisitor):
    """Collects the steps that are ours: what is inside of a transform of Beam is Beam's."""

    def __init__(self) -> None:
        self.top: list[Step] = []
        self._inside: list[Step | None] = []

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        self._inside.append(self._add(transform_node))

    def leave_composite_transform(self, transform_node: AppliedPTransform) -> None:
        self._inside.pop()

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self._add(transform_node)

    def _add(self, node: AppliedPTransform) -> Step | None:
        """The step, None for one that is Beam's and what is in it."""
        if not self._inside:  # the root
            return Step("", "")
        around = self._inside[-1]
        if around is None:
            return None
        step = Step(node.full_label, node.full_label.rsplit("/", 1)[-1])
        (around.steps if around.name else self.top).append(step)
        is_beams = type(node.transform).__module__.startswith("apache_beam.")
        return None if is_beams else step
