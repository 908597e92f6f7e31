"""The DAG in a real Airflow with the real providers, its job sent to a Dataflow on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_pictures
from dataflowservice import dataflow_service
from servers import both_stores

REPOSITORY = Path(__file__).parent.parent.parent
AIRFLOW = REPOSITORY / "build/airflow/bin/python"
"""What `make airflow` sets up."""


def test_the_dag_s_task_submits_a_job(labels, tmp_path):
    archive = write_pictures(tmp_path / "archive", 1)
    config = tmp_path / "job.yaml"
    config.write_text(f"input: {archive}\nlabels: {labels}\noutput: {tmp_path}/out\n")
    with (
        both_stores("bucket"),
        dataflow_service() as (service, options),
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
        environment.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        environment.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", "google-cloud-platform://")
        environment.setenv("PYTHONPATH", str(REPOSITORY))
        endpoint = next(word.partition("=")[2] for word in options if "endpoint" in word)
        told = {
            "variables": {
                "beamtag_config": str(config), "beamtag_bucket": "gs://bucket",
                "beamtag_image": "registry/beamtag:1", "beamtag_project": "some-project",
                "beamtag_region": "europe-west4",
                "beamtag_subnetwork": "regions/europe-west4/subnetworks/private",
                "beamtag_service_account": "worker@some-project.iam.gserviceaccount.com",
            },
            "options": {"dataflow_endpoint": endpoint, "no_auth": True},
            "py_file": str(REPOSITORY / "deploy/dataflow/main.py"),
            "py_interpreter": sys.executable,
        }  # fmt: skip
        done = subprocess.run(
            [AIRFLOW, REPOSITORY / "tests/integration/airflow_task.py",
             REPOSITORY / "deploy/airflow", json.dumps(told)],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
        # It leaves as soon as it has read the id; the job's launcher ends a moment later.
        lock = tmp_path / "out" / "_beamtag_lock.json"
        deadline = time.monotonic() + 30
        while not json.loads(lock.read_text()).get("job") and time.monotonic() < deadline:
            time.sleep(0.2)
    [job_id] = service.jobs
    [request] = service.requests
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["schedule"], found["job"]) == ("0 2 * * *", job_id)
    assert found["py_file"].endswith("deploy/dataflow/main.py")
    # Airflow's labels are the job's, and no label set of ours.
    assert request["labels"] == {"airflow-version": "v3-3-2"}
    assert request["name"].startswith("beamtag-nightly-")
    assert json.loads(lock.read_text())["job"].endswith(f"/{request['name']}")
    environment = request["environment"]
    assert environment["serviceOptions"] == [
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    ]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert environment["serviceAccountEmail"].startswith("worker@")
    [pool] = environment["workerPools"]
    assert pool["autoscalingSettings"] == {"algorithm": 2, "maxNumWorkers": 10}
    assert pool["sdkHarnessContainerImages"][0]["containerImage"] == "registry/beamtag:1"
