"""ReadingThreads: as many threads read items as their store makes wait, and no more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from transforms.items import Item
from transforms.records import Effort

MEMORY = 0.97
"""How much of what is known of earlier items counts beside one more: about thirty count."""

SPARE = 2.0
"""How much longer than lately the store may make wait before a core has nothing to decode."""


class ReadingThreads:
    """Up to `most` threads, that read items in the order of their submission.

    Threads that fetch while others wait for a core to decode on only take the interpreter from
    them, and fill memory with what is not decoded yet: from a local disk, of large pictures, all
    32 of them read a twentieth slower than four. So only as many read as keep `cores` busy, by what
    fetching and decoding have taken lately.
    """

    def __init__(self, most: int, cores: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="beamtag-read")
        self._waiting: deque[tuple[Future[Item], Callable[[], Item]]] = deque()
        self._lock = threading.Lock()
        self._most = self._wanted = most
        self._cores = cores
        self._reading = 0
        self._fetch = self._decode = 0.0

    def submit(self, read: Callable[[], Item]) -> Future[Item]:
        """Begin to read an item, once a thread is free for it."""
        item: Future[Item] = Future()
        with self._lock:
            self._waiting.append((item, read))
            self._send_more()
        return item

    def shutdown(self) -> None:
        """Read nothing more; this does not wait for what is being read."""
        with self._lock:
            while self._waiting:
                self._waiting.popleft()[0].cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send_more(self) -> None:
        if self._reading < self._wanted and self._waiting:
            self._pool.submit(self._work)
            self._reading += 1

    def _work(self) -> None:
        """Read, until there is nothing to read, or there are threads enough without this one."""
        effort: Effort | None = None
        while True:
            with self._lock:
                if effort is not None:
                    self._learn(effort)
                self._send_more()
                if self._reading > self._wanted or not self._waiting:
                    self._reading -= 1
                    return
                item, read = self._waiting.popleft()
            effort = _read(item, read) if item.set_running_or_notify_cancel() else None

    def _learn(self, effort: Effort) -> None:
        self._fetch = MEMORY * self._fetch + effort.seconds.get("fetch", 0.0)
        self._decode = MEMORY * self._decode + effort.seconds.get("decode", 0.0)
        share = self._fetch / max(self._decode, 1e-9)
        # One more than decode, as in `ItemReader`, and one on its way.
        self._wanted = min(self._most, self._cores + 2 + int(SPARE * share * self._cores))


def _read(item: Future[Item], read: Callable[[], Item]) -> Effort | None:
    try:
        done = read()
    # Whatever it is, it is for whoever waits for the item.
    except BaseException as error:
        item.set_exception(error)
        return None
    item.set_result(done)
    return done.effort
