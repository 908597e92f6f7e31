"""A run's job on Dataflow: what it is called, and whether it runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger("beamtag")

_JOB = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs/(?P<id>[^/]+)")
# The service has more states between its first and its last; all of them go on.
_OVER = frozenset(
    {"JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_UPDATED",
     "JOB_STATE_DRAINED"}
)  # fmt: skip


def job_of(result: Any, options: Any) -> str:
    """The resource name of a submitted pipeline's job; nothing where it is not Dataflow's."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

    if not isinstance(result, DataflowPipelineResult):
        return ""
    cloud = options.view_as(GoogleCloudOptions)
    return f"projects/{cloud.project}/locations/{cloud.region}/jobs/{result.job_id()}"


def job_runs(job: str, beam_args: Sequence[str]) -> bool | None:
    """Whether a job is not over, as Dataflow says; None where it cannot be asked.

    `beam_args` say by which endpoint and credentials.
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

        state = DataflowApplicationClient(options).get_job(named["id"]).current_state.name
    # No client installed, no credentials, no network, no permission: no answer.
    except Exception as error:
        logger.warning("%s: cannot ask Dataflow whether it runs: %s", job, error)
        return None
    return state not in _OVER
