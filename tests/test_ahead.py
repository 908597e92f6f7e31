from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from transforms.ahead import ahead


def eventually(condition: Callable[[], bool], timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.fixture(autouse=True)
def no_leaked_thread() -> Iterator[None]:
    assert eventually(lambda: not threads())
    yield
    assert eventually(lambda: not threads())


class Endless:
    """Counts, and remembers how far it was asked to and whether it was closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.made = number + 1
                yield number
        finally:
            self.closed.set()


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_the_same_items_in_the_same_order(depth):
    items = [*range(500), None, StopIteration, ()]
    assert list(ahead(items, depth)) == items
    assert list(ahead(iter(items), depth)) == items
    assert list(ahead([], depth)) == []


def test_the_end_stays_the_end():
    reading = ahead([1], 1)
    assert list(reading) == [1]
    assert list(reading) == []


def test_an_error_comes_after_the_items_before_it():
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    reading = ahead(failing(), 8)
    assert [next(reading), next(reading)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(reading)
    assert list(reading) == []


def test_even_an_error_that_is_no_exception_reaches_the_consumer():
    def leaving() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    reading = ahead(leaving(), 1)
    assert next(reading) == 1
    with pytest.raises(SystemExit):
        next(reading)


def test_it_runs_ahead_at_once_and_no_further_than_its_depth():
    endless = Endless()
    with ahead(iter(endless), 3) as reading:
        # Three wait, the fourth is made and finds no room.
        assert eventually(lambda: endless.made == 4)
        time.sleep(0.05)
        assert endless.made == 4
        assert next(reading) == 0
        assert eventually(lambda: endless.made == 5)
        time.sleep(0.05)
        assert endless.made == 5


def test_it_runs_while_the_consumer_is_busy():
    def slow() -> Iterator[int]:
        for number in range(10):
            time.sleep(0.05)
            yield number

    started = time.monotonic()
    for _ in ahead(slow(), 2):
        time.sleep(0.05)
    assert time.monotonic() - started < 0.9  # One after the other takes at least 1.


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_closing_stops_the_thread_and_closes_the_generator(taken):
    endless = Endless()
    generator = iter(endless)
    reading = ahead(generator, 2)
    assert list(itertools.islice(reading, taken)) == list(range(taken))
    assert eventually(lambda: endless.made == taken + 3)  # It waits for room.
    reading.close()
    reading.close()
    assert endless.closed.wait(5)
    assert eventually(lambda: not threads())
    assert endless.made <= taken + 4
    assert list(reading) == []


def test_an_error_in_the_body_stops_the_thread():
    endless = Endless()
    with pytest.raises(ZeroDivisionError), ahead(iter(endless), 2) as reading:
        1 // next(reading)
    assert endless.closed.wait(5)


@pytest.mark.parametrize("taken", [0, 1])
def test_abandoning_stops_the_thread(taken):
    endless = Endless()
    reading = ahead(iter(endless), 2)
    list(itertools.islice(reading, taken))
    del reading
    gc.collect()
    assert endless.closed.wait(5)


def test_closing_does_not_wait_for_a_slow_item():
    gate = threading.Event()

    def stuck() -> Iterator[int]:
        gate.wait(10)
        yield 1

    reading = ahead(stuck(), 1)
    started = time.monotonic()
    reading.close()
    assert time.monotonic() - started < 1
    assert threads()
    gate.set()


def test_many_closed_at_awkward_moments():
    for pause in range(200):
        reading = ahead(iter(Endless()), 1)
        for _ in range(pause % 5):
            next(reading)
        if pause % 3:
            time.sleep(pause / 100_000)
        reading.close()


def test_a_depth_below_one_is_an_error():
    with pytest.raises(ValueError, match="depth of 0"):
        ahead([1], 0)
