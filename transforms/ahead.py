"""Reading ahead: an iterator, or work on its items, in other threads, a bounded number in front."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class _End(NamedTuple):
    """What follows the last item: nothing, or the error that came instead of another."""

    error: BaseException | None


class Ahead(Iterator[T], Generic[T]):
    """The items of an iterator that runs in a thread; see `ahead`."""

    def __init__(self, items: Iterable[T], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"a depth of {depth}: it must be at least 1")
        # Items in tuples of one, so that no item is mistaken for the end.
        self._queue: queue.Queue[tuple[T] | _End] = queue.Queue(depth)
        stopped = threading.Event()
        # Neither the thread nor the finalizer knows this object: abandoned, it is collected, and
        # the thread ends then. At exit there is nothing to do, the thread is a daemon.
        self._stop = weakref.finalize(self, _stop, self._queue, stopped)
        self._stop.atexit = False
        threading.Thread(
            target=_produce, args=(items, self._queue, stopped), name="ahead", daemon=True
        ).start()

    def __next__(self) -> T:
        if not self._stop.alive:
            raise StopIteration
        arrived = self._queue.get()
        if not isinstance(arrived, _End):
            return arrived[0]
        self.close()
        if arrived.error is None:
            raise StopIteration
        raise arrived.error

    def close(self) -> None:
        """Stop: the thread ends once it has made the item it is at; this does not wait for it."""
        self._stop()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def ahead(items: Iterable[T], depth: int) -> Ahead[T]:
    """The same items in the same order, made in a background thread that starts at once.

    Up to `depth` of them wait for the consumer, and one more is in the making. What `items` raises
    is raised here after the items before it. The thread ends with the items, when the result is
    closed (`close`, or the end of a `with`), or when it is abandoned; if `items` is a generator,
    the thread closes it. Raises ValueError for a depth below 1.
    """
    return Ahead(items, depth)


def _produce(
    items: Iterable[T], waiting: queue.Queue[tuple[T] | _End], stopped: threading.Event
) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            waiting.put((item,))
            if stopped.is_set():
                break
            del item  # Or one more than `depth` would be held while the next is made.
    # Whatever it is, it is the consumer's: here nobody would see it.
    except BaseException as raised:
        error = raised
    if isinstance(items, Generator):
        items.close()
    if not stopped.is_set():
        waiting.put(_End(error))


def _stop(waiting: queue.Queue[tuple[T] | _End], stopped: threading.Event) -> None:
    # In this order: a thread that waits for room gets it, and the first thing it sees then, or
    # after the one item it may still be about to put, is that it is to stop.
    stopped.set()
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return


def in_order(work: Callable[[S], T], things: Iterable[S], at_once: int) -> Iterator[T]:
    """What the work gives for each of the things; `at_once` are in work, as many more may wait."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="beamtag-read") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for thing in things:
                waiting.append(pool.submit(work, thing))
                if len(waiting) == 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
