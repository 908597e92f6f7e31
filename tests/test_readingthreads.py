"""Threads that read: as many as the store makes wait, none lost, and nothing left unread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait

import pytest

from transforms.items import Item, Known
from transforms.readingthreads import ReadingThreads
from transforms.records import Effort

MOST, CORES = 24, 2


@pytest.fixture
def threads() -> Iterator[ReadingThreads]:
    threads = ReadingThreads(MOST, CORES)
    yield threads
    threads.shutdown()


class Reader:
    """Reads as a store and a decoder would that take so long; knows how many threads do so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def read(self, fetch: float, decode: float) -> Item:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.002)
        with self._lock:
            self._now -= 1
        return Item(Known(), None, Effort({"fetch": fetch, "decode": decode}))

    def taking(self, fetch: float, decode: float) -> Callable[[], Item]:
        return lambda: self.read(fetch, decode)


def read_all(threads: ReadingThreads, read: Callable[[], Item], count: int = 200) -> None:
    items = [threads.submit(read) for _ in range(count)]
    done, _ = wait(items, timeout=60)
    assert len(done) == count
    assert all(item.result().outcome == Known() for item in items)


def test_of_a_store_that_answers_late_all_threads_read(threads: ReadingThreads) -> None:
    reader = Reader()
    read_all(threads, reader.taking(0.05, 0.001))
    assert reader.most == MOST


def test_of_one_that_answers_at_once_few_do(threads: ReadingThreads) -> None:
    read_all(threads, Reader().taking(0.0001, 0.01))
    later = Reader()
    read_all(threads, later.taking(0.0001, 0.01))
    assert CORES < later.most <= CORES + 2


def test_a_store_that_becomes_slow_gets_all_of_them_again(threads: ReadingThreads) -> None:
    read_all(threads, Reader().taking(0.0, 0.01))
    slow = Reader()
    read_all(threads, slow.taking(0.1, 0.001))
    assert slow.most == MOST


def test_one_at_a_time_is_never_forgotten(threads: ReadingThreads) -> None:
    read = Reader().taking(0.0, 0.0)
    for _ in range(300):
        threads.submit(read).result(timeout=60)


def test_what_a_read_raises_is_raised_where_it_is_waited_for(threads: ReadingThreads) -> None:
    def fails() -> Item:
        raise RuntimeError("broken")

    broken = [threads.submit(fails) for _ in range(2 * MOST)]
    for item in broken:
        with pytest.raises(RuntimeError, match="broken"):
            item.result(timeout=60)
    read_all(threads, Reader().taking(0.0, 0.0))


def test_what_nobody_waits_for_is_not_read(threads: ReadingThreads) -> None:
    all_read, go_on = threading.Barrier(MOST + 1), threading.Event()
    reader = Reader()

    def held() -> Item:
        all_read.wait(60)
        go_on.wait(60)
        return reader.read(0.0, 0.0)

    first = [threads.submit(held) for _ in range(MOST)]
    all_read.wait(60)
    unread = [threads.submit(pytest.fail) for _ in range(10)]
    assert all(item.cancel() for item in unread[:5])
    threads.shutdown()
    go_on.set()
    assert all(item.result(timeout=60).outcome == Known() for item in first)
    for item in unread:
        with pytest.raises(CancelledError):
            item.result(timeout=60)
