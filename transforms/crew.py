"""Crew: processes of this machine that are given work piece by piece, and heard until it is done.

Of what the work is, nothing is known here. A member is a module run as a program, which holds the
other end as `Foreman`. It gets a first piece when it is started, and others when it asks for them,
so that whoever is quicker does more. Imports nothing heavy: a member listens before it has loaded
anything.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)
_ASKS, _NOTE, _DONE, _BROKEN = range(4)
"""What a member says: that it wants more, something on the way, its last word, why it cannot."""


class MemberError(Exception):
    """A member was ended from outside, or by itself without a word."""


class InMemberError(Exception):
    """What went wrong in a member, in the words that it would have in this process."""


@dataclass(slots=True)
class _Member:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    has_ended: bool = False

    def send(self, message: Any) -> None:
        try:
            self.connection.send_bytes(pickle.dumps(message))
        except OSError:
            # It has ended, and may have said why before.
            while True:
                kind, told = self.hear()
                if kind == _BROKEN:
                    raise InMemberError(told) from None

    def hear(self) -> tuple[int, Any]:
        try:
            told: tuple[int, Any] = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return told

    def _lost(self) -> MemberError:
        """How it ended, which it has: only that closes its end."""
        status = self.process.wait()
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        return MemberError(f"worker {self.number} (process {self.process.pid}) ended by {how}")


class Crew:
    """Up to as many processes of `module` as there are `environments`, each started with one.

    Each gets `order` before its first piece of work. `heard` takes what they say on the way. Any
    error ends all of them; so does the end of this process, in whatever way it comes.
    """

    def __init__(
        self,
        module: str,
        environments: Sequence[Mapping[str, str]],
        order: Any,
        heard: Callable[[Any], None],
    ) -> None:
        self._module = module
        self._environments = environments
        self._order = order
        self._heard = heard
        self._members: list[_Member] = []
        self._waiting: deque[_Member] = deque()
        self._results: list[Any] = []

    def give(self, work: Any) -> None:
        """Hand out a piece of work, once somebody is there for it.

        Raises MemberError, InMemberError and what `heard` raises.
        """
        with self._ended_by_errors():
            if len(self._members) < len(self._environments):
                member = self._start(len(self._members))
                member.send(self._order)
            else:
                while not self._waiting:
                    self._hear()
                member = self._waiting.popleft()
            member.send((work,))

    def finish(self) -> list[Any]:
        """The last word of each, when all work is done. Raises as `give`."""
        with self._ended_by_errors():
            for member in self._members:
                member.send(())
            while not all(member.has_ended for member in self._members):
                self._hear()
        self.end()
        return self._results

    def end(self) -> None:
        """End all that still run, at once: what they publish is whole, or not there."""
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.wait()
            member.connection.close()
        self._members.clear()

    @contextlib.contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise

    def _start(self, place: int) -> _Member:
        ours, theirs = Pipe()
        # A new interpreter: this one has threads, of which a forked process would have none.
        command = [sys.executable, "-P", "-m", self._module, str(theirs.fileno())]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # What ends this process may be sent to all of its group; how they end is for this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            with theirs:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONPATH": paths, **self._environments[place]},
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # The other is for this process's summary.
                )
            member = _Member(place + 1, process, ours)
            self._members.append(member)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return member

    def _hear(self) -> None:
        """Wait until somebody says something, and take it in."""
        talking = {m.connection: m for m in self._members if not m.has_ended}
        for connection in wait(list(talking)):
            member = talking[connection]  # type: ignore[index]
            kind, told = member.hear()
            if kind == _ASKS:
                self._waiting.append(member)
            elif kind == _NOTE:
                self._heard(told)
            elif kind == _DONE:
                member.has_ended = True
                self._results.append(told)
            else:
                raise InMemberError(told)


class Foreman:
    """A member's end: what it is to do, and whom it tells. It ends at once with its foreman."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._speaking = threading.Lock()
        self._orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self._orders.put(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(1)

    def order(self) -> Any:
        """What came before all work."""
        return pickle.loads(self._orders.get())

    def work(self) -> Iterator[Any]:
        """The pieces of work; by taking one, the last one is said to be in hand."""
        while piece := pickle.loads(self._orders.get()):
            yield piece[0]
            self._say(_ASKS, None)

    def note(self, told: Any) -> None:
        """Say something on the way."""
        self._say(_NOTE, told)

    def done(self, result: Any) -> NoReturn:
        """Say the last word, and end."""
        self._leave(_DONE, result)

    def broken(self, cause: str) -> NoReturn:
        """Say why there is no more to come, and end."""
        self._leave(_BROKEN, cause)

    def _say(self, kind: int, told: Any) -> None:
        message = pickle.dumps((kind, told))
        with self._speaking:
            try:
                self._connection.send_bytes(message)
            except OSError:
                os._exit(1)

    def _leave(self, kind: int, told: Any) -> NoReturn:
        sys.stderr.flush()
        self._say(kind, told)
        os._exit(0)
