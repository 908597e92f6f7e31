"""deploy/flink as it is written: its launcher, and a worker pool beside a task manager."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import (
    BOOT,
    REPOSITORY,
    Cluster,
    answers,
    end_session,
    wait_for,
    worker_environment,
)
from engines import Archive
from servers import free_port

from pipelines import verify

pytestmark = pytest.mark.timeout(1200)

LAUNCH = REPOSITORY / "deploy" / "flink" / "launch.sh"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[int]:
    """A worker pool as its image starts it; gives its port."""
    port = free_port()
    environment = worker_environment()
    # What the image has in its place.
    arguments = [f"--service_port={port}", f"--container_executable={BOOT}"]
    process = subprocess.Popen(
        ["python", "-m", "apache_beam.runners.worker.worker_pool_main", *arguments],
        env=environment, stdin=subprocess.DEVNULL, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for("the worker pool", lambda: answers(port))
        yield port
    finally:
        end_session(process)


def test_launching_on_a_host_with_a_worker_pool(pool: int, archive: Archive, tmp_path: Path):
    host = Cluster(tmp_path)
    try:
        host.start(task_managers=1)
        launched = subprocess.run(
            [str(LAUNCH), *archive.argv, f"--output={tmp_path}/out", "--quiet"],
            env={
                **worker_environment(),
                "BEAMTAG": f"{sys.executable} -m pipelines.cli",
                "JOB_ENDPOINT": f"localhost:{host.job_port}",
                "WORKER_POOL": f"localhost:{pool}",
                "PARALLELISM": "1",
            },
            cwd=tmp_path, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    finally:
        host.stop()
    assert launched.returncode == 0, launched.stderr
    assert verify.main(["--quiet", f"--output={tmp_path}/out", *archive.inputs]) == 0
    # Nothing that the hosts would have to share.
    assert not [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]


def test_a_launcher_that_lacks_something_says_what():
    launched = subprocess.run([str(LAUNCH)], capture_output=True, text=True, env={"PATH": "/bin"})
    assert launched.returncode != 0
    assert "JOB_ENDPOINT: where the job server listens" in launched.stderr
