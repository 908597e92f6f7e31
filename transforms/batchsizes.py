"""How many pictures a model takes at a time: as given, or found on a run's first batches. Pure.

The first pictures of a run go to the model in parts of several sizes, and each size is timed: no
picture is embedded for the sake of trying. What does not fit is halved, and stays halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

TRIED = (16, 32, 64, 128, 256)
"""The sizes that are tried, where the pictures of a batch suffice."""

TIMES = 2
"""How often each of them is timed: the better time counts, for the other one met something."""

HELPS = 1.03
"""A larger size has to be this much faster for each picture; else it only takes memory."""

BETWEEN_S = 0.02
"""What a part costs beside its own time, which tells where it is over soon.

Among threads that decode it waits a hundred times to have the interpreter back (two cores).
"""

MEMORY_SHARE = 0.8
"""Of all there is: a size is not tried if twice what the last one came to would be more."""


class BatchSize:
    """The size that is in force, for as long as a model is in memory."""

    def __init__(self, given: int | None = None) -> None:
        self._given = given
        self._most = given or TRIED[-1]
        self._seconds: dict[int, list[float]] = {}
        self._warm = given is not None

    @property
    def value(self) -> int:
        """The size: the smallest of those timed that none beats by much."""
        if self._given is not None:
            return self._most
        each = {size: (min(times) + BETWEEN_S) / size for size, times in self._seconds.items()}
        if not each:
            return min(TRIED[0], self._most)
        least = min(each.values())
        return min(size for size, seconds in each.items() if seconds <= least * HELPS)

    @property
    def found(self) -> bool:
        """Whether nothing more is to be tried."""
        return self._given is not None or not self._open()

    def parts(self, count: int) -> Iterator[tuple[int, int, int]]:
        """`count` pictures as (start, end, size), while this is asked for the next of them.

        Until the size is found each part is one to be timed, whole; what is left over comes last,
        to be cut by the size.
        """
        start = 0
        while start < count:
            size = self._next(count - start)
            end = count if size is None else start + size
            yield start, end, size or self.value
            start = end

    def timed(self, count: int, seconds: float, memory_share: Callable[[], float]) -> None:
        """What a part has taken; the share of all memory is asked for only while it matters."""
        if self.found or count not in TRIED:
            return
        if not self._warm:
            self._warm = True
            return
        self._seconds.setdefault(count, []).append(seconds)
        if 2 * memory_share() > MEMORY_SHARE:
            self._keep_to(count)

    def halve(self, count: int) -> bool:
        """Keep below `count`, which did not fit; False where there is nothing to halve."""
        if count < 2:
            return False
        self._keep_to(max(1, min(self._most, count) // 2))
        return True

    def _keep_to(self, most: int) -> None:
        self._most = most
        self._seconds = {size: times for size, times in self._seconds.items() if size <= most}

    def _open(self) -> list[int]:
        """The sizes that are still to be timed, those that were timed least first."""
        sizes = [size for size in TRIED if size <= self._most]
        open_ = [size for size in sizes if len(self._seconds.get(size, ())) < TIMES]
        return sorted(open_, key=lambda size: (len(self._seconds.get(size, ())), size))

    def _next(self, left: int) -> int | None:
        if self.found:
            return None
        if not self._warm:
            return min(TRIED[0], self._most, left)
        return next((size for size in self._open() if size <= left), None)
