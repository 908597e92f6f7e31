"""The size of a model's batches: found on real batches, within memory, and kept."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from transforms.batchsizes import TRIED, BatchSize


def embed(
    size: BatchSize,
    counts: list[int],
    seconds: Callable[[int], float],
    share: Callable[[int], float] = lambda count: 0.0,
) -> list[int]:
    """Let batches through; gives the parts that the model has seen."""
    seen = []
    for count in counts:
        done = 0
        for start, end, most in size.parts(count):
            assert start == done
            assert most >= 1
            done = end
            seen.append(end - start)
            size.timed(end - start, seconds(end - start), lambda part=end - start: share(part))
        assert done == count
    return seen


def test_a_given_size_is_never_tried() -> None:
    size = BatchSize(100)
    assert size.found
    assert embed(size, [256, 256], float) == [256, 256]
    assert size.value == 100


def test_the_smallest_size_that_none_beats_by_much_is_found() -> None:
    size = BatchSize()
    # A fixed cost a call: 64 is within 3 % of 256, and 32 is not.
    seen = embed(size, [256] * 8, lambda count: 2.0 + count)
    assert size.found
    assert size.value == 64
    assert seen[0] == TRIED[0]  # to warm up: what it took was not counted
    assert seen[-1] == 256  # all of a batch, which the model cuts by `value`


def test_parts_that_are_over_soon_are_large() -> None:
    size = BatchSize()
    embed(size, [256] * 8, lambda count: 0.0003 * count * (1.1 if count == 256 else 1.0))
    assert size.value == 256


def test_where_nothing_helps_the_size_is_the_smallest() -> None:
    size = BatchSize()
    embed(size, [256] * 8, float)
    assert size.value == TRIED[0]


def test_one_slow_time_does_not_count() -> None:
    size = BatchSize()
    slow = iter([100.0])
    embed(size, [256] * 8, lambda count: next(slow, 2.0) + count if count == 64 else 2.0 + count)
    assert size.value == 64


def test_batches_too_small_to_try_all_of_it_keep_to_the_best_that_was_tried() -> None:
    size = BatchSize()
    embed(size, [100] * 10, lambda count: 2.0 + count)
    assert not size.found
    assert size.value == 64


def test_what_would_not_fit_is_not_tried() -> None:
    size = BatchSize()
    seen = embed(size, [256] * 8, lambda count: 1.0 + count / 1000, lambda count: count / 128)
    assert max(seen[: seen.index(256)]) == 64  # half of memory: its double would be all of it
    assert size.value == 64


def test_what_did_not_fit_is_halved_and_stays_so() -> None:
    size = BatchSize(128)
    assert size.halve(128)
    assert size.value == 64
    assert size.halve(64)
    assert size.halve(1) is False
    embed(size, [256], float)
    assert size.value == 32

    tried = BatchSize()
    embed(tried, [256] * 3, lambda count: 1.0 + count / 1000)
    tried.halve(256)
    embed(tried, [256] * 8, lambda count: 1.0 + count / 1000)
    assert tried.value == 128


@given(st.lists(st.integers(1, 300), max_size=12), st.floats(0.0, 100.0))
def test_every_picture_is_in_one_part_whatever_the_batches(counts: list[int], fixed: float) -> None:
    size = BatchSize()
    seen = embed(size, counts, lambda count: fixed + count)
    assert sum(seen) == sum(counts)
    assert 1 <= size.value <= TRIED[-1]
