"""The job as Dataflow is given it, built offline: its graph, its workers, what is staged."""

from __future__ import annotations

import tarfile
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.portability.stager import Stager
from graphchecks import problems, step_names

import pipelines.graph
import transforms.embedding
from pipelines.options import parse_tag
from pipelines.running import _beam_options
from transforms.modelstore import describe_model

REPOSITORY = Path(__file__).parent.parent
STEPS = Path(__file__).parent / "dataflow_steps.txt"
"""The steps that running jobs have: renamed only with a line in CHANGELOG.md."""


class Built:
    """A job that Dataflow's runner has built and, as a dry run, not submitted."""

    def __init__(self, *more: str) -> None:
        arguments = [
            "--input=gs://bucket/archive", "--labels=everyday", "--output=/nowhere",
            "--runner=DataflowRunner", "--project=some-project", "--region=us-central1",
            "--temp_location=gs://bucket/temp", "--dry_run=True",
            "--experiments=disable_logging_submission_environment", *more,
        ]  # fmt: skip
        spec = parse_tag(arguments)
        runner = DataflowRunner()
        self.pipeline = beam.Pipeline(runner=runner, options=_beam_options(spec))
        header = {"started_at": "2026-01-01T00:00:00+00:00", "label_sets": {}}
        model = describe_model(spec.model)
        pipelines.graph.build(self.pipeline, spec, model, "/nowhere/run.json", header)
        self.pipeline.run()
        self.proto = runner.proto_pipeline

    @property
    def problems(self) -> list[str]:
        return problems(self.pipeline, self.proto)


@pytest.fixture(scope="module")
def built():
    return Built("--sdk_container_image=registry/beamtag:1")


def test_nothing_is_wrong_with_the_graph(built):
    assert built.problems == []


def test_the_steps_have_the_names_of_running_jobs(built):
    assert step_names(built.pipeline) == STEPS.read_text().splitlines()


def test_the_workers_image(built):
    [environment] = built.proto.components.environments.values()
    assert b"registry/beamtag:1" in environment.payload


def test_no_main_session_is_sent(built):
    # The packages are in the image; a main module is nothing that a worker needs.
    [environment] = built.proto.components.environments.values()
    assert not any(b"main_session" in each.role_payload for each in environment.dependencies)


def reshuffled(stage: type) -> type:
    """The stage with a shuffle behind it."""

    class Reshuffled(stage):
        def expand(self, pcoll):
            return super().expand(pcoll) | "SpreadBatches" >> beam.Reshuffle()

    return Reshuffled


def counted(stage: type) -> type:
    """The stage with somebody else who takes what it gives."""

    class Counted(stage):
        def expand(self, pcoll):
            batches = super().expand(pcoll)
            _ = (batches | "KeyBatches" >> beam.Map(lambda batch: (batch.position.shard_id, batch))
                 | "GatherBatches" >> beam.GroupByKey())  # fmt: skip
            return batches

    return Counted


def joined(stage: type) -> type:
    """The stage whose output comes together with another's."""

    class Joined(stage):
        def expand(self, pcoll):
            batches = super().expand(pcoll)
            others = batches | "OtherBatches" >> beam.Filter(bool)
            return (batches, others) | "AllBatches" >> beam.Flatten()

    return Joined


def aside(stage: type) -> type:
    """The stage with a step that has all that it gives at once."""

    class Aside(stage):
        def expand(self, pcoll):
            batches = super().expand(pcoll)
            _ = pcoll | "LookBack" >> beam.Map(lambda _, all_of: None, beam.pvalue.AsIter(batches))
            return batches

    return Aside


def unnamed(stage: type) -> type:
    """The stage with a step of no name."""

    class Unnamed(stage):
        def expand(self, pcoll):
            return super().expand(pcoll) | beam.Map(lambda batch: batch)

    return Unnamed


def hinted(stage: type) -> type:
    """The stage with a wish for its workers."""

    def make(*args, **kwargs):
        return stage(*args, **kwargs).with_resource_hints(min_ram="20GB")

    return make


WRONG = {
    "a shuffle of pixels": (
        "ReadMedia", reshuffled,
        "ReadMedia/SpreadBatches/ReshufflePerKey/GroupByKey shuffles what ReadMedia gives",
    ),
    "a shuffle of vectors": (
        "EmbedMedia", reshuffled,
        "EmbedMedia/SpreadBatches/ReshufflePerKey/GroupByKey shuffles what ReadMedia gives",
    ),
    "a shuffle beside the way": (
        "ReadMedia", counted, "ReadMedia/GatherBatches shuffles what ReadMedia gives",
    ),
    "a flatten of pixels": (
        "ReadMedia", joined, "ReadMedia/AllBatches breaks the fusion of what ReadMedia gives",
    ),
    "a side input": (
        "ReadMedia", aside, "ReadMedia/LookBack has what ReadMedia gives as a side input",
    ),
    "a hint": ("EmbedMedia", hinted, "2 environments: what is in two of them is not fused"),
    "an unnamed step": (
        "ScoreLabels", unnamed,
        "the step ScoreLabels/Map(<lambda at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(monkeypatch, what):
    stage, wrong, found = WRONG[what]
    monkeypatch.setattr(pipelines.graph, stage, wrong(getattr(pipelines.graph, stage)))
    problems = Built().problems
    assert any(found in problem for problem in problems), problems


def test_a_hint_of_the_model_s_handler_is_found(monkeypatch):
    hint = {"accelerator": "type:nvidia-l4;count:1;install-nvidia-driver"}
    handler = transforms.embedding.OpenClipHandler
    monkeypatch.setattr(handler, "get_resource_hints", lambda self: hint)
    found = Built().problems
    assert any("resource hint beam:resources:accelerator" in problem for problem in found), found
    assert "EmbedMedia is not fused with ReadMedia" in found


def test_what_setup_py_stages(tmp_path):
    """What `--setup_file=./setup.py` sends to workers whose image has another Beamtag, or none."""
    options = PipelineOptions(
        [f"--setup_file={REPOSITORY}/setup.py", "--sdk_location=container",
         "--experiments=disable_logging_submission_environment", "--no_save_main_session"]
    )  # fmt: skip
    staged = Stager.create_job_resources(options, str(tmp_path))
    [archive] = tmp_path.glob("*.tar.gz")
    assert any(b"workflow.tar.gz" in artifact.role_payload for artifact in staged)
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    in_tree = partial(_files, REPOSITORY)
    for wanted in [*in_tree("pipelines/*.py"), *in_tree("transforms/*.py"),
                   *in_tree("transforms/data/**/*"), "pipelines/py.typed", "setup.py"]:  # fmt: skip
        assert wanted in names
    assert "transforms/data/demo_model/open_clip_config.json" in names
    assert not any(name.startswith(("build/", "demo/", ".venv/")) for name in names)


def _files(folder: Path, pattern: str) -> list[str]:
    paths = (path for path in folder.glob(pattern) if path.is_file())
    return [str(path.relative_to(folder)) for path in paths if path.suffix != ".pyc"]
