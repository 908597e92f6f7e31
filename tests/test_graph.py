"""The shape of the graph: what is fused, and that only references cross a shuffle."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, translations

from pipelines.graph import build
from pipelines.options import parse_tag
from transforms.modelstore import describe_model


@pytest.fixture
def graph(labels, vit, tmp_path):
    spec = parse_tag(
        [
            f"--input={tmp_path}",
            f"--labels={labels}",
            "--output=/nowhere",
            f"--model=local-dir:{vit}",
        ]
    )
    pipeline = beam.Pipeline(runner=FnApiRunner())
    header = {"started_at": "2026-01-01T00:00:00+00:00", "label_sets": {}}
    build(pipeline, spec, describe_model(spec.model), "/nowhere/run.json", header)
    return pipeline.to_runner_api()


def test_what_crosses_a_shuffle(graph):
    shuffles = {
        transform.unique_name.split("/")[0]
        for transform in graph.components.transforms.values()
        if transform.spec.urn == "beam:transform:group_by_key:v1"
    }
    # References, files' names, counts, label vectors and accounts. WriteShards' is for engines that
    # do not fuse it with reading: vectors and tags may cross that one, a pixel never does.
    assert shuffles == {
        "ShuffleShards", "CountShards", "EmbedLabels", "ReadStored", "WriteShards", "WriteScored",
        "WriteRunRecord",
    }  # fmt: skip


def test_everything_from_reading_to_writing_is_one_stage(graph):
    _, stages = translations.create_and_optimize_stages(
        graph,
        phases=[translations.annotate_downstream_side_inputs, translations.lift_combiners,
                translations.expand_sdf, translations.expand_gbk, translations.greedily_fuse],
        known_runner_urns=frozenset(),
    )  # fmt: skip
    together = [
        {transform.unique_name.split("/")[0] for transform in stage.transforms} for stage in stages
    ]
    (main,) = [names for names in together if "ReadMedia" in names]
    assert {"ReadMedia", "EmbedMedia", "ScoreLabels", "WriteShards"} <= main


def test_no_resource_hint_makes_a_second_environment(graph):
    assert len(graph.components.environments) == 1
    (environment,) = graph.components.environments.values()
    assert not environment.resource_hints


def test_step_names_are_stable(graph):
    # A running Dataflow job is updated by these: change one only with a line in CHANGELOG.md.
    (root,) = graph.root_transform_ids
    top = graph.components.transforms[root].subtransforms
    assert [graph.components.transforms[name].unique_name for name in top] == [
        "Inputs", "ListMedia", "ListManifests", "ListTars", "SkipDone", "SkipDoneRows",
        "SkipDoneTars", "GroupIntoShards", "GroupRows", "Shards", "ListedAccounts", "CountShards",
        "LabelSets", "EmbedLabels", "ShuffleShards", "ReadMedia", "EmbedMedia", "ScoreLabels",
        "WriteShards", "Unscored", "ReadStored", "ScoreStored", "WriteScored", "AccountShards",
        "Accounts", "WriteRunRecord",
    ]  # fmt: skip
