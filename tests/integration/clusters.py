"""A real Flink cluster on this machine, with Beam's job server: what `make flink` has fetched."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from servers import free_port

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build"
PRISM = BUILD / "bin" / "prism"
BOOT = BUILD / "bin" / "container"
"""Beam's own program that starts a Python worker."""

STARTS_WITHIN_S = 90
KEPT_S = 8
"""How long a worker outlives its stage; a job that starts over sooner would get the dead one."""
# Of Flink's own configuration for Java 17.
_OPENED = [
    "java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio",
    "java.text", "java.time", "java.util", "java.util.concurrent", "java.util.concurrent.atomic",
    "java.util.concurrent.locks", "sun.nio.ch",
]  # fmt: skip
_JAVA = ["java", *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED)]
# Beam's beside Flink's own: a worker outlives its stage only where Flink itself has loaded them.
_JARS = f"{BUILD}/flink/lib/*:{BUILD}/jobserver/*"


def worker_environment() -> dict[str, str]:
    """Of whatever starts Python workers: they run this checkout, by this Python."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
        # Several workers share this machine's cores.
        "OMP_NUM_THREADS": "1",
    }


def wait_for(what: str, holds: Callable[[], bool], within_s: float = STARTS_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:.0f} s"
        time.sleep(0.2)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, which may outlive it."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(place.name)) == process.pid:
                os.kill(int(place.name), signal.SIGKILL)
    process.wait()


@dataclass
class Cluster:
    """A job manager, task managers of one slot each, and a job server; logs lie in `folder`."""

    folder: Path
    rest_port: int = field(default_factory=free_port)
    job_port: int = field(default_factory=free_port)
    task_managers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def flags(self) -> list[str]:
        """Of a job: it runs here, its workers started by the task managers."""
        return [
            "--runner=PortableRunner",
            f"--parallelism={len(self.task_managers)}",
            f"--job_endpoint=localhost:{self.job_port}",
            "--environment_type=PROCESS",
            f"--environment_cache_millis={KEPT_S * 1000}",
            f"--environment_config={json.dumps({'command': str(BOOT)})}",
        ]

    def start(self, task_managers: int = 2) -> None:
        settings = {
            **yaml.safe_load((REPOSITORY / "deploy" / "flink" / "config.yaml").read_text()),
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": free_port(),
            "jobmanager.memory.process.size": "1024m",
            "taskmanager.memory.process.size": "1800m",
            "restart-strategy.fixed-delay.delay": f"{2 * KEPT_S} s",
            # Tests share their machine with others.
            "pekko.startup-timeout": "60 s",
            "pekko.ask.timeout": "60 s",
            "rest.address": "localhost",
            "rest.port": self.rest_port,
            "io.tmp.dirs": self.folder / "tmp",
        }
        (self.folder / "tmp").mkdir()
        told = "".join(f"{key}: {value}\n" for key, value in settings.items())
        (self.folder / "config.yaml").write_text(told)
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self.others.append(self._flink("jobmanager", main, "GET_JM_RESOURCE_PARAMS"))
        for _ in range(task_managers):
            self.start_task_manager()
        self.others.append(
            self._java(
                "jobserver",
                "org.apache.beam.runners.flink.FlinkJobServerDriver",
                [f"--flink-master=localhost:{self.rest_port}", f"--job-port={self.job_port}",
                 "--artifact-port=0", "--expansion-port=-1",
                 f"--artifacts-dir={self.folder / 'staged'}"],
            )
        )  # fmt: skip
        wait_for("the task managers", lambda: self.slots == task_managers)
        wait_for("the job server", lambda: answers(self.job_port))

    def start_task_manager(self) -> None:
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        name = f"taskmanager-{next(self._numbers)}"
        self.task_managers.append(self._flink(name, main, "GET_TM_RESOURCE_PARAMS"))

    def kill(self, task_manager: subprocess.Popen[bytes]) -> None:
        """Itself only: its workers see that it is gone as soon as they come to look."""
        task_manager.kill()
        task_manager.wait()
        self.task_managers.remove(task_manager)

    @property
    def slots(self) -> int:
        """How many slots the job manager knows of; 0 while there is none to ask."""
        with contextlib.suppress(OSError):
            total: int = self.asked("/overview")["slots-total"]
            return total
        return 0

    def asked(self, path: str) -> Any:
        """What the job manager answers."""
        with urllib.request.urlopen(f"http://localhost:{self.rest_port}{path}", timeout=5) as said:
            return json.load(said)

    def cancel(self) -> None:
        """Cancel the jobs that run, and wait for their end."""

        def running() -> list[str]:
            jobs = self.asked("/jobs/overview")["jobs"]
            return [job["jid"] for job in jobs if job["end-time"] < 0]

        for job in running():
            place = f"http://localhost:{self.rest_port}/jobs/{job}?mode=cancel"
            urllib.request.urlopen(urllib.request.Request(place, method="PATCH")).close()
        wait_for("the jobs' end", lambda: not running())

    def stop(self) -> None:
        for process in [*self.task_managers, *self.others]:
            end_session(process)

    def _flink(self, name: str, main: str, resources: str) -> subprocess.Popen[bytes]:
        """With the memory that Flink's own scripts would give it."""
        told = subprocess.run(
            ["java", "-cp", f"{BUILD}/flink/bin/*:{_JARS}",
             "org.apache.flink.runtime.util.bash.BashJavaUtils", resources,
             "--configDir", str(self.folder)],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        jvm, dynamic = (
            shlex.split(line.partition(":")[2])
            for line in told
            if line.startswith("BASH_JAVA_UTILS_EXEC_RESULT:")
        )
        arguments = ["--configDir", str(self.folder), *dynamic]
        return self._java(name, main, arguments, jvm)

    def _java(
        self, name: str, main: str, arguments: list[str], jvm: list[str] | None = None
    ) -> subprocess.Popen[bytes]:
        # Log4j's own default: to standard output.
        command = [*_JAVA, *(jvm or []), "-Dlog4j2.level=INFO", "-cp", _JARS, main]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*command, *arguments],
                env=worker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # Where Beam's boot program leaves a file.
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    started = Cluster(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()
