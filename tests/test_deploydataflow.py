"""deploy/dataflow: what an operator runs fits the job, as far as can be told without a cloud."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import hcl2
import pytest
from conftest import write_pictures
from dataflowservice import dataflow_service
from google.cloud import dataflow
from servers import both_stores

from pipelines.config import option_name
from pipelines.flags import tag_parser
from pipelines.options import parse_tag

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "deploy" / "dataflow"


def script(name: str) -> dict[str, object]:
    return runpy.run_path(str(FOLDER / name))


@pytest.fixture(scope="module")
def stored():
    return json.loads((FOLDER / "metadata.json").read_text())


def camel(name: str) -> str:
    head, *more = name.split("_")
    return head + "".join(word.capitalize() for word in more)


# The template.


def test_metadata_is_what_the_parser_says(stored):
    # `python deploy/dataflow/metadata.py` writes it.
    assert stored == script("metadata.py")["metadata"]()


def test_metadata_has_every_option_of_the_job(stored):
    excused = script("metadata.py")["NOT_OF_A_TEMPLATE"]
    options = {name for action in tag_parser()._actions if (name := option_name(action))}
    names = [parameter["name"] for parameter in stored["parameters"]]
    assert len(names) == len(set(names))
    assert set(names) - options == {"dataflow_service_options"}
    assert options - set(names) == set(excused)


def test_metadata_is_what_dataflow_takes(stored):
    parsed = dataflow.TemplateMetadata.from_json(json.dumps(stored), ignore_unknown_fields=False)
    assert len(parsed.parameters) == len(stored["parameters"])


def test_a_launch_is_a_job(labels, tmp_path):
    """The parameters as the launcher writes them: all with a value, and labels of its own."""
    argv = [
        f"--input={tmp_path}", f"--labels={labels}", "--output=gs://bucket/tables",
        "--quiet=false", "--take_over=true", "--runner=DataflowRunner", "--region=us-central1",
        '--labels={"goog-dataflow-provided-template-type":"flex"}',
    ]  # fmt: skip
    spec = parse_tag(list(script("main.py")["job_argv"](argv)))
    assert [label_set.name for label_set in spec.label_sets] == ["things"]
    assert (spec.detach, spec.take_over, spec.quiet) == (True, True, False)
    assert '--label={"goog-dataflow-provided-template-type":"flex"}' in spec.beam_args


@pytest.mark.parametrize(
    "source", ["everyday", "labels.yaml", "gs://b/a=b/labels.yaml", "a=b.yaml"]
)
def test_label_sets_stay_label_sets(source):
    assert next(script("main.py")["job_argv"]([f"--labels={source}"])) == f"--labels={source}"


# The image.


def dockerfile() -> list[str]:
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_has_the_versions_of_this_checkout():
    arguments = dict(re.findall(r"ARG (\w+)=(\S+)", "\n".join(dockerfile())))
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
    assert arguments["BEAM"] == pinned["apache-beam"]
    setup = (REPOSITORY / "setup.py").read_text()
    assert f'python_requires=">={arguments["PYTHON"]}"' in setup
    launcher = f"python{arguments['PYTHON'].replace('.', '')}-template-launcher-base"
    assert any(launcher in line for line in dockerfile())
    [install] = [line for line in dockerfile() if "pip install" in line]
    assert "-c constraints.txt" in install
    extras = set(re.search(r"\.\[(.+?)\]", install)[1].split(","))
    assert {f'"{extra}":' for extra in extras} <= set(setup.split())


def test_what_the_image_copies_is_there():
    kept = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
            if line.startswith("!")]  # fmt: skip
    copied = [
        source
        for line in dockerfile() if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]  # fmt: skip
    assert copied
    for source in copied:
        assert (REPOSITORY / source).exists()
    assert sorted(copied) == sorted(kept)


def test_weights_are_baked_by_naming_a_model(tmp_path):
    done = subprocess.run([sys.executable, FOLDER / "bake.py", "demo", ""], capture_output=True,
                          text=True, check=True, cwd=REPOSITORY,
                          env={"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)})  # fmt: skip
    assert done.stdout.startswith("demo-")


# The launch.


def test_launch_sh_submits_a_job_with_gpus(labels, tmp_path):
    """The script as an operator runs it, to a Dataflow on loopback: what that is asked for."""
    beamtag = tmp_path / "beamtag"
    beamtag.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines.cli "$@"\n')
    beamtag.chmod(0o755)
    archive = write_pictures(tmp_path / "archive", 1)
    settings = {
        "PROJECT": "some-project", "REGION": "europe-west4", "BUCKET": "gs://bucket/dataflow",
        "IMAGE": "europe-west4-docker.pkg.dev/some-project/beamtag/beamtag:1",
        "SERVICE_ACCOUNT": "worker@some-project.iam.gserviceaccount.com",
        "SUBNETWORK": "regions/europe-west4/subnetworks/private", "MAX_WORKERS": "25",
        "BEAMTAG": str(beamtag), "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    with (
        both_stores("bucket"),
        dataflow_service() as (service, options),
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in settings.items():
            environment.setenv(name, value)
        done = subprocess.run(
            [FOLDER / "launch.sh", f"--input={archive}", f"--labels={labels}",
             f"--output={tmp_path}/out", "--detach", *options],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [request] = service.requests
    environment = request["environment"]
    assert environment["serviceOptions"] == [
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    ]
    # One process, and one model, for each worker.
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert environment["serviceAccountEmail"] == settings["SERVICE_ACCOUNT"]
    [pool] = environment["workerPools"]
    assert pool["machineType"] == "g2-standard-8"
    assert pool["diskSizeGb"] == 100
    assert pool["subnetwork"] == settings["SUBNETWORK"]
    assert pool["ipConfiguration"] == 2, "private addresses"
    assert pool["autoscalingSettings"] == {"algorithm": 2, "maxNumWorkers": 25}
    [image] = pool["sdkHarnessContainerImages"]
    assert image["containerImage"] == settings["IMAGE"]
    assert not any("main_session" in package["name"] for package in pool.get("packages", []))


def test_launch_sh_says_what_it_needs():
    done = subprocess.run([FOLDER / "launch.sh"], capture_output=True, text=True, check=False,
                          env={"PATH": "/usr/bin:/bin"})  # fmt: skip
    assert done.returncode != 0
    assert "PROJECT: the project that pays" in done.stderr


# The schedule.


@pytest.fixture(scope="module")
def nightly() -> str:
    return (FOLDER / "nightly.tf").read_text()


def fields(block: str, text: str) -> set[str]:
    """The keys of the innermost map of this name."""
    [inside] = re.findall(rf"\b{block}\s*= \{{([^{{}}]*(?:\$\{{[^}}]*\}}[^{{}}]*)*)\}}", text)
    return set(re.findall(r"^\s*(\w+)\s*=", inside, re.M))


def test_nightly_tf_is_hcl_whose_variables_are_all_declared(nightly):
    parsed = hcl2.loads(nightly)
    declared = {name.strip('"') for variable in parsed["variable"] for name in variable}
    assert declared == set(re.findall(r"\bvar\.(\w+)", nightly))


def test_nightly_launches_the_template_with_its_own_parameters(nightly, stored):
    names = {parameter["name"] for parameter in stored["parameters"]}
    assert fields("parameters", nightly)
    assert fields("parameters", nightly) <= names
    known = {camel(name) for name in dataflow.FlexTemplateRuntimeEnvironment.meta.fields}
    assert fields("environment", nightly)
    assert fields("environment", nightly) <= known


def test_the_page_has_the_roles_of_the_schedule(nightly):
    page = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"roles/[\w.]+", page)) == set(re.findall(r"roles/[\w.]+", nightly))


def test_the_page_has_the_settings_of_launch_sh():
    page = (FOLDER / "README.md").read_text()
    text = (FOLDER / "launch.sh").read_text()
    settings = set(re.findall(r"\$\{(\w+):[?-]", text)) - {"BEAMTAG"}
    assert len(settings) == 11
    for name in settings:
        assert f"`{name}`" in page
