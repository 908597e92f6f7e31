"""A tag job on Dataflow every night; where it runs is said by Airflow's variables."""

from __future__ import annotations

import datetime

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk import DAG

with DAG(
    dag_id="beamtag_nightly",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    # The second would be told that the first one holds the output.
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": datetime.timedelta(minutes=30)},
    tags=["beamtag"],
    doc_md=__doc__,
) as dag:
    BeamRunPythonPipelineOperator(
        task_id="tag",
        # Installed on the workers, in an environment of its own. It submits the job and leaves it
        # to itself; the operator waits for its end, and the job fails where its run does.
        py_file="/opt/beamtag/deploy/dataflow/main.py",
        py_interpreter="/opt/beamtag/bin/python",
        runner="DataflowRunner",
        pipeline_options={
            # The job's own options: label sets must stand there, for `labels` is Dataflow's here.
            "config": "{{ var.value.beamtag_config }}",
            "device": "cuda",
            "temp_location": "{{ var.value.beamtag_bucket }}/temp",
            "staging_location": "{{ var.value.beamtag_bucket }}/staging",
            "sdk_container_image": "{{ var.value.beamtag_image }}",
            "sdk_location": "container",
            "subnetwork": "{{ var.value.beamtag_subnetwork }}",
            "no_use_public_ips": True,
            "worker_machine_type": "g2-standard-8",
            "dataflow_service_options": [
                "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
            ],
            "experiments": ["no_use_multiple_sdk_containers"],
            "autoscaling_algorithm": "THROUGHPUT_BASED",
            "max_num_workers": 10,
            "disk_size_gb": 100,
        },
        dataflow_config={
            "job_name": "beamtag-nightly",
            "project_id": "{{ var.value.beamtag_project }}",
            "location": "{{ var.value.beamtag_region }}",
            "service_account": "{{ var.value.beamtag_service_account }}",
            "wait_until_finished": True,
        },
    )
