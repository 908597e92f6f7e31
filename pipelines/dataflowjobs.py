"""A run's job on Dataflow: what it is called, and whether it runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

logger = logging.getLogger("beamtag")

_JOB = re.compile(r"dataflow:(?P<project>[^/]+)/(?P<region>[^/]+)/(?P<name>[^/]+)")
# The service has more states between its first and its last; all of them go on.
_OVER = frozenset(
    {"JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_UPDATED",
     "JOB_STATE_DRAINED"}
)  # fmt: skip
_SLACK = timedelta(minutes=10)
"""How much later than its lock was written a job may have been made, by two clocks."""


def job_of(options: Any) -> str:
    """What a submitted job is called, by name: a template's job has no id before its launcher ends.

    Empty where `options` are another runner's.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

    if options.view_as(StandardOptions).runner != "DataflowRunner":
        return ""
    cloud = options.view_as(GoogleCloudOptions)
    return f"dataflow:{cloud.project}/{cloud.region}/{cloud.job_name}"


def job_runs(job: str, seen: datetime, beam_args: Sequence[str]) -> bool | None:
    """Whether a job that a lock named at the time `seen` is not over; None where nobody can tell.

    Later jobs of the same name do not count: a schedule gives every night's the same. `beam_args`
    have the endpoint and the credentials to ask by.
    """
    named = _JOB.fullmatch(job)
    if named is None:
        return None
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    options = PipelineOptions(list(beam_args))
    cloud = options.view_as(GoogleCloudOptions)
    cloud.project, cloud.region = named["project"], named["region"]
    try:
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient
        from google.cloud import dataflow

        found = DataflowApplicationClient(options)._jobs_client.list_jobs(
            dataflow.ListJobsRequest(
                project_id=named["project"], location=named["region"], name=named["name"]
            )
        )
        return any(
            known.name == named["name"]
            and known.current_state.name not in _OVER
            and known.create_time <= seen + _SLACK
            for known in found
        )
    # No client installed, no credentials, no network, no permission: no answer.
    except Exception as error:
        logger.warning("%s: cannot ask Dataflow whether it runs: %s", job, error)
        return None
