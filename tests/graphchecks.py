"""What is wrong with a job's graph for Dataflow: every rule of it that is broken, in words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import translations

from pipelines.graphview import SHUFFLE, steps_of, walk

PARDO = "beam:transform:pardo:v1"
FUSED = ("ReadMedia", "EmbedMedia", "ScoreLabels", "WriteShards/WriteFiles")
"""Between the first and the last of these, pixels and what is made of them are in memory."""


def problems(pipeline: beam.Pipeline, proto: Any) -> list[str]:
    """The rules that a pipeline, of which Dataflow is given `proto`, breaks."""
    return [*_environments(proto), *_names(pipeline), *_shuffled_pixels(proto), *_unfused(proto)]


def step_names(pipeline: beam.Pipeline) -> list[str]:
    """The names of all steps that are ours, by which a running job is updated."""
    return [step.name for step in walk(steps_of(pipeline))]


def _environments(proto: Any) -> Iterator[str]:
    environments = proto.components.environments
    if len(environments) != 1:
        yield f"{len(environments)} environments: what is in two of them is not fused"
    for environment in environments.values():
        for hint in environment.resource_hints:
            yield f"the resource hint {hint}"


def _names(pipeline: beam.Pipeline) -> Iterator[str]:
    for step in walk(steps_of(pipeline)):
        if not re.fullmatch("[A-Z][A-Za-z]*", step.label):
            yield f"the step {step.name} has no name of its own"


def _leaves(proto: Any) -> Iterator[Any]:
    for transform in proto.components.transforms.values():
        if not transform.subtransforms and transform.spec.urn:
            yield transform


def _shuffled_pixels(proto: Any) -> Iterator[str]:
    """Whatever but a ParDo takes, as its main input, what ReadMedia gives and what comes of it."""
    takers = defaultdict(list)
    for leaf in _leaves(proto):
        for name, collection in leaf.inputs.items():
            takers[collection].append((leaf, name in _side_inputs(leaf)))
    seen = set()
    ahead = [leaf for leaf in _leaves(proto) if _is_in(leaf, FUSED[0])]
    while ahead:
        leaf = ahead.pop()
        if leaf.unique_name in seen:
            continue
        seen.add(leaf.unique_name)
        if leaf.spec.urn != PARDO:
            what = "shuffles" if leaf.spec.urn == SHUFFLE else "breaks the fusion of"
            yield f"{leaf.unique_name} {what} what ReadMedia gives"
        # Past the last of them there are accounts, and rows where an engine has not fused.
        elif not _is_in(leaf, FUSED[-1]):
            for collection in leaf.outputs.values():
                for taker, is_aside in takers[collection]:
                    if is_aside:
                        yield f"{taker.unique_name} has what ReadMedia gives as a side input"
                    ahead.append(taker)
    for name in FUSED:
        if not any(_is_in(leaf, name) for leaf in _leaves(proto) if leaf.unique_name in seen):
            yield f"{name} does not follow from ReadMedia"


def _side_inputs(leaf: Any) -> set[str]:
    if leaf.spec.urn != PARDO:
        return set()
    return set(beam_runner_api_pb2.ParDoPayload.FromString(leaf.spec.payload).side_inputs)


def _unfused(proto: Any) -> Iterator[str]:
    _, stages = translations.create_and_optimize_stages(
        proto,
        phases=[translations.annotate_downstream_side_inputs, translations.lift_combiners,
                translations.expand_sdf, translations.expand_gbk, translations.greedily_fuse],
        known_runner_urns=frozenset(),
    )  # fmt: skip
    for name in FUSED:
        ours = {leaf.unique_name for leaf in _leaves(proto) if _is_in(leaf, name)}
        first = {leaf.unique_name for leaf in _leaves(proto) if _is_in(leaf, FUSED[0])}
        together = [{transform.unique_name for transform in stage.transforms} for stage in stages]
        if not any(ours | first <= names for names in together):
            yield f"{name} is not fused with {FUSED[0]}"


def _is_in(leaf: Any, name: str) -> bool:
    return leaf.unique_name == name or bool(leaf.unique_name.startswith(f"{name}/"))
