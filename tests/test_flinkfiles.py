"""deploy/flink: what it says holds together, as far as that shows without a cluster."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml
from apache_beam.options.pipeline_options import PortableOptions
from jobs import REPOSITORY

from pipelines.options import parse_tag

FLINK = REPOSITORY / "deploy" / "flink"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    told = yaml.safe_load_all((FLINK / "cluster.yaml").read_text())
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in told}


@pytest.fixture(scope="module")
def kustomization() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FLINK / "kustomization.yaml").read_text())
    return read


def launched(*more: str) -> list[str]:
    """The words of the command that launch.sh runs."""
    told = {"BEAMTAG": "printf %s\\n", "JOB_ENDPOINT": "jobs:8099", "PARALLELISM": "2"}
    ended = subprocess.run(
        [str(FLINK / "launch.sh"), *more],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", **told},
    )  # fmt: skip
    return ended.stdout.splitlines()


def pods(objects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    specs = [one["spec"] for kind, one in objects.items() if not kind.startswith("Service")]
    templates = [spec.get("jobTemplate", {}).get("spec", spec)["template"] for spec in specs]
    return [template["spec"] for template in templates]


def test_every_image_and_file_is_one_that_kustomize_gives(objects, kustomization):
    images = {image["name"] for image in kustomization["images"]}
    files = {config["name"] for config in kustomization["configMapGenerator"]}
    assert (FLINK / "config.yaml").exists()
    for pod in pods(objects):
        assert {container["image"] for container in pod["containers"]} <= images
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {v["configMap"]["name"] for v in volumes.values() if "configMap" in v} <= files
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()


def test_a_service_finds_its_pods(objects):
    for name, one in objects.items():
        if name.startswith("Service"):
            behind = objects[f"Deployment/{one['metadata']['name']}"]["spec"]["template"]
            assert behind["metadata"]["labels"].items() >= one["spec"]["selector"].items()
            (container,) = behind["spec"]["containers"]
            ports = {port["containerPort"] for port in container["ports"]}
            assert {port["port"] for port in one["spec"]["ports"]} <= ports


def test_the_nightly_job_is_a_command_that_beamtag_takes(objects, labels):
    (container,) = objects["CronJob/beamtag-nightly"]["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]["containers"]
    arguments = [
        f"--labels={labels}" if word.startswith("--labels=") else word for word in container["args"]
    ]
    job, *options = launched(*arguments)
    assert job == "tag"
    spec = parse_tag(options)
    assert (spec.runner, spec.is_local) == ("PortableRunner", False)
    told = PortableOptions(list(spec.beam_args))
    assert told.job_endpoint == "jobs:8099"
    assert told.environment_config == "localhost:50000"
    settings = {setting["name"]: setting["value"] for setting in container["env"]}
    assert settings.keys() == {"JOB_ENDPOINT", "PARALLELISM"}
    slots = objects["Deployment/flink-taskmanager"]["spec"]["replicas"]
    assert settings["PARALLELISM"] == str(slots)


def test_a_job_that_starts_over_is_not_given_the_worker_that_has_died():
    config = yaml.safe_load((FLINK / "config.yaml").read_text())
    delay, unit = config["restart-strategy.fixed-delay.delay"].split()
    assert unit == "s"
    cached = PortableOptions(launched()[1:]).environment_cache_millis
    assert 1000 * int(delay) > int(cached) > 0
