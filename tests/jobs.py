"""Jobs in processes of their own, which end or stand still at the write that a test chooses.

Importing torch and Beam takes seconds, so one process imports them and is forked for every job.
`python tests/jobs.py` is that process; `Jobs` is what a test holds of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parent.parent
LONGEST_S = 120


@dataclass
class Running:
    """A job's process; `writes` are the events of what it writes, as far as it has come."""

    pid: int
    folder: Path
    said: queue.SimpleQueue[dict[str, Any]]

    def stands_still(self) -> None:
        """Wait until it has stopped itself."""
        told = self.said.get(timeout=LONGEST_S)
        assert "stopped" in told, (told, self.err)

    def ends(self, within_s: float = LONGEST_S) -> int:
        """Its exit status, or less the signal that ended it; raises `queue.Empty`."""
        status: int = self.said.get(timeout=within_s)["status"]
        return status

    def send(self, name: str) -> None:
        os.kill(self.pid, signal.Signals[name])

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def writes(self) -> list[str]:
        return (self.folder / "writes").read_text().splitlines()


class Jobs:
    """Starts jobs, at any time and from any thread."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._numbers = itertools.count()
        self._queues: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._asking = threading.Lock()
        self.pid = process.pid
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self,
        *argv: str,
        at: int | None = None,
        how: str = "SIGKILL",
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """A `beamtag tag`; at its write event number `at` happens what `how` says (`_Writes`)."""
        number = next(self._numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        self._queues[number] = queue.SimpleQueue()
        order = {"argv": argv, "at": at, "how": how, "env": env or {}, "folder": str(folder)}
        with self._asking:
            print(json.dumps({"number": number, **order}), file=self._process.stdin, flush=True)
        pid = self._queues[number].get(timeout=LONGEST_S)["pid"]
        return Running(pid, folder, self._queues[number])

    def run(self, *argv: str, **options: Any) -> tuple[int, Running]:
        """A job to its end."""
        job = self.start(*argv, **options)
        return job.ends(), job

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            self._queues[told.pop("number")].put(told)


@contextlib.contextmanager
def forking(prefix: Sequence[str] = ()) -> Iterator[Jobs]:
    """The process that is forked for every job; `prefix` is a command that starts others."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (
        tempfile.TemporaryDirectory(prefix="beamtag-jobs-") as folder,
        subprocess.Popen(
            [*prefix, sys.executable, __file__],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        try:
            yield Jobs(process, Path(folder))
        finally:
            # It ends its jobs, those that stand still too.
            assert process.stdin
            process.stdin.close()


# What jobs have written.

Rows = dict[str, list[tuple[dict[str, Any], list[float]]]]
"""Of each table the rows: what is the same whoever writes them, and numbers that may vary."""

_OWN = ("run_id", "embedded_at", "tagged_at", "failed_at")
_NUMBERS = ("embedding", "score", "similarity")
_ORDER = ("uri", "version", "id", "label_set", "rank")


def rows(output: Path | str, storage: Mapping[str, Any] | None = None) -> Rows:
    """All rows of an output's tables, in an order of their own, with what paths tell of them."""
    filesystem, root = fsspec.url_to_fs(str(output), **(storage or {}))
    found: Rows = {"embeddings": [], "predictions": [], "failures": []}
    for path in filesystem.find(root):
        table, *folders = path[len(root) :].strip("/").split("/")
        if table not in found:
            continue
        name = folders.pop()
        assert name.endswith(".parquet"), path
        told = dict(folder.split("=", 1) for folder in folders)
        for row in pq.ParquetFile(pa.BufferReader(filesystem.cat_file(path))).read().to_pylist():
            row = {**row, **told}
            values = [row.pop(name, None) for name in _NUMBERS]
            numbers = [number for value in values for number in np.ravel(value or 0.0)]
            found[table].append(({k: v for k, v in row.items() if k not in _OWN}, numbers))
    for table in found.values():
        table.sort(key=lambda pair: [str(pair[0].get(name)) for name in _ORDER])
    return found


def assert_same(output: Path | str, expected: Rows, **storage: Any) -> None:
    """The same rows, each once, with vectors and scores that are equal to 1e-5."""
    found = rows(output, storage)
    for table, wanted in expected.items():
        assert [row for row, _ in found[table]] == [row for row, _ in wanted], table
        numbers = [[number for _, row in part for number in row] for part in (found[table], wanted)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-5)


def records(output: Path) -> list[dict[str, Any]]:
    """The runs' records, in the order of their beginnings."""
    told = [json.loads(path.read_text()) for path in (output / "runs").glob("*.json")]
    return sorted(told, key=lambda record: str(record["started_at"]))


def left_aside(output: Path) -> list[str]:
    """Whatever a finished run should not leave: all but tables and records."""
    names = (str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    kept = re.compile(
        r"(embeddings|predictions|failures)/.+/shard-[^/.]+\.parquet|runs/[^/.]+\.json"
    )
    return [name for name in names if not kept.fullmatch(name)]


# The process that is forked.


class _Writes:
    """Counts what a job writes under its output, before each thing happens, and ends it at one.

    `how` is a signal to the process itself, the real one. With `torn`, a file that is about to get
    its name has only half of its bytes, as when it is killed while it writes. With `hung`, the
    thread that writes does not go on, as on a disk that does not answer.
    """

    def __init__(self, output: str, log: int, at: int | None, how: str) -> None:
        self._output = output.rstrip("/")
        self._log = log
        self._at = at
        name, *more = how.split(" ")
        self._signal = signal.Signals[name]
        self._torn, self._hung = "torn" in more, "hung" in more
        self._numbers = itertools.count(1)
        self._counting = threading.Lock()

    def __call__(self, event: str, told: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = told
            # A folder is opened to flush it to the disk.
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
                return
        elif event in ("os.rename", "os.link", "os.remove", "os.mkdir"):
            path = told[0]
        else:
            return
        if not isinstance(path, (str, os.PathLike)) or not self._is_under(os.fspath(path)):
            return
        with self._counting:
            number = next(self._numbers)
            name = os.fspath(path)[len(self._output) :]
            os.write(self._log, f"{event} {name}\n".encode())
        if number == self._at:
            self._break_off(event, path)

    def _is_under(self, path: str) -> bool:
        return path == self._output or path.startswith(f"{self._output}/")

    def _break_off(self, event: str, path: str) -> None:
        if self._torn and event in ("os.rename", "os.link"):
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), self._signal)
        while self._hung and threading.current_thread() is not threading.main_thread():
            time.sleep(60)


def _main() -> None:
    os.setpgid(0, 0)
    # All that a job would import. Nothing of it has run, so there is no thread to lose.
    import open_clip  # noqa: F401
    import s3fs  # noqa: F401
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # noqa: F401

    import pipelines.cli
    import pipelines.graph
    import pipelines.tag
    import transforms.model
    import transforms.pruning  # noqa: F401

    assert threading.active_count() == 1
    run: Callable[[Sequence[str]], int] = pipelines.tag.main
    leave: Callable[[int], NoReturn] = pipelines.cli.leave
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    numbers: dict[int, int] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
            _tell_of_children(numbers)
        if 0 in ready:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *orders, unread = (unread + read).split(b"\n")
            for order in map(json.loads, orders):
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _be(order, run, leave)
                numbers[pid] = order["number"]
                _tell(order["number"], pid=pid)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in numbers:
        os.kill(pid, signal.SIGKILL)


def _be(
    order: dict[str, Any], run: Callable[[Sequence[str]], int], leave: Callable[[int], NoReturn]
) -> NoReturn:
    """This process is a job from now on."""
    folder = Path(order["folder"])
    for name, descriptor in {"out": 1, "err": 2}.items():
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["env"])
    [output] = [word[9:] for word in order["argv"] if word.startswith("--output=")]
    log = os.open(folder / "writes", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    sys.addaudithook(_Writes(output, log, order["at"], order["how"]))
    try:
        leave(run(order["argv"]))
    finally:
        os._exit(70)


def _tell_of_children(numbers: dict[int, int]) -> None:
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return
        if os.WIFSTOPPED(status):
            _tell(numbers[pid], stopped=True)
        else:
            _tell(numbers.pop(pid), status=os.waitstatus_to_exitcode(status))


def _tell(number: int, **told: Any) -> None:
    print(json.dumps({"number": number, **told}), flush=True)


if __name__ == "__main__":
    _main()
