"""How a job ends on runners that run it elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jobs import REPOSITORY

from pipelines.endings import one_line

WORKER = """\
Traceback (most recent call last):
  File "transforms/stored.py", line 89, in open_held
    with open_parquet(url) as file:
pyarrow.lib.ArrowInvalid: no footer

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
  File "transforms/stored.py", line 92, in open_held
    raise DamagedError(url, error) from error
           ^^^^^^^^^^^
"""


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("RuntimeError: transforms.stored.DamagedError: cannot read x [while running 'A/B']",
         "transforms.stored.DamagedError: cannot read x"),
        ("transforms.publishing.PublishError: cannot write x [while running 'A']",
         "transforms.publishing.PublishError: cannot write x"),
        ("ValueError: first\nsecond [while running 'A']", "ValueError: first"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "said",
    ["Pipeline job-1 failed in state FAILED: bundle inst1 failed:{}\n",
     "Pipeline BeamApp failed in state FAILED: java.lang.RuntimeException: Error received from SDK "
     "harness for instruction 4: {}\n\tat org.apache.beam.Runner.run(Runner.java:1)\n"],
)  # fmt: skip
def test_of_what_a_runner_says_the_line_is_what_its_worker_raised(said, raised, line):
    assert one_line(RuntimeError(said.format(WORKER + raised))) == line


def test_a_runner_that_says_nothing_of_a_worker_is_taken_at_its_word():
    said = "Pipeline BeamApp failed in state FAILED: java.io.IOException: no buffers"
    assert one_line(RuntimeError(said)) == f"RuntimeError: {said}"


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_what_asked_to_be_told_of_the_end_is_told():
    """By that Beam stops job servers and workers, which would stay behind."""
    ended = run(
        "import atexit, pipelines.cli\natexit.register(print, 'stopped')\npipelines.cli.leave(3)"
    )
    assert (ended.returncode, ended.stdout) == (3, "stopped\n")


@pytest.mark.parametrize("quiet", [True, False])
def test_a_runners_own_chatter_is_not_printed(quiet):
    ended = run(
        "import logging, pipelines.report\n"
        f"pipelines.report.set_up_logging(quiet={quiet}, local=False)\n"
        "job_server = logging.getLogger('PrismJobServer')\n"
        "job_server.setLevel(logging.INFO)\n"
        "job_server.info('serving')\n"
        "job_server.error('broken')\n"
        "logging.getLogger('beamtag').info('ours')"
    )
    assert ended.stderr == ("broken\n" if quiet else "broken\nours\n")
