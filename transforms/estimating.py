"""What many items will take, from what a few took; pure, but for the clock of `Pace`."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from transforms.progress import progress
from transforms.repeating import Repeating

LOOK_EVERY_S = 0.02

LEAST_SPREAD = 0.1
"""No range is narrower than this share to both sides: the machine has better and worse days."""

SPREAD_OF_ONE = 0.5
"""The range of a sample of one batch, which has no spread."""

MEMBER_BYTES = 768
"""What a tar holds for a member beside its bytes: a header, and half a block of filling."""


class Point(NamedTuple):
    """So many items were embedded, or had failed, at this Unix time."""

    at: float
    items: int


class Pace(Repeating):
    """When this process's run has finished each batch, while the context lasts."""

    def __init__(self) -> None:
        super().__init__(self._look, LOOK_EVERY_S)
        self.points: list[Point] = []
        self._embedded = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._look()

    def _look(self) -> None:
        embedded, failed = progress.embedded, progress.failed
        # Failures of reading count before their batch is embedded.
        if embedded != self._embedded:
            self._embedded = embedded
            self.points.append(Point(time.time(), embedded + failed))


class Range(NamedTuple):
    """A likely figure, and the least and the most that is likely."""

    likely: float
    least: float
    most: float

    def times(self, factor: float, more: float = 0.0) -> Range:
        """All three multiplied, and something added to each."""
        return Range(*(value * factor + more for value in self))

    def told(self, digits: int) -> dict[str, float]:
        """For a record, to so many digits."""
        return {name: round(value, digits) for name, value in self._asdict().items()}


def item_seconds(began: float, points: Sequence[Point], *, apart: bool) -> Range:
    """What an item takes, of batches that were finished at these times; `began` is when the first.

    With `apart` reading and the model each have a part of the machine of their own and work side by
    side, so the first batch, which had the model wait for all of its reading, is left out. Where
    they share the cores, reading ahead takes from the batch before it, and all count. The range is
    two standard errors of the batches' mean to both sides, and at least `LEAST_SPREAD`.
    """
    times = [Point(began, 0), *points]
    if apart and len(times) > 2:
        del times[0]
    batches = [
        (after.at - before.at) / (after.items - before.items)
        for before, after in itertools.pairwise(times)
    ]
    mean = (times[-1].at - times[0].at) / (times[-1].items - times[0].items)
    spread = SPREAD_OF_ONE
    if len(batches) > 1:
        error = statistics.stdev(batches) / math.sqrt(len(batches))
        spread = max(LEAST_SPREAD, 2 * error / mean)
    return Range(mean, mean / (1 + spread), mean * (1 + spread))


def writing_seconds(record: Mapping[str, Any]) -> float:
    """What encoding rows takes for each item; the store is waited for beside all else."""
    counts = record["counts"]
    return float(record["stages"]["write"]["busy"] / (counts["embedded"] + counts["failed"]))


class TarRead(NamedTuple):
    """What was read of a tar: `items` with `member_bytes` in them; all of it where `ended`."""

    size: int
    items: int
    member_bytes: int
    ended: bool


def items_in_tars(total_bytes: int, read: Sequence[TarRead]) -> int:
    """How many items tars of so many bytes have, if all have as many a byte as those read."""
    consumed = sum(
        tar.size if tar.ended else tar.member_bytes + tar.items * MEMBER_BYTES for tar in read
    )
    items = sum(tar.items for tar in read)
    return round(total_bytes * items / consumed) if consumed else 0


class Fixed(NamedTuple):
    """What a run takes however fast its items are: once, and for each item that is listed."""

    startup_s: float
    listing_s: float


def run_seconds(items: int, fixed: Fixed, pace: Range, workers: int = 1) -> Range:
    """What so many items take: all workers wait for start-up and listing, then share the items."""
    return pace.times(items / workers, fixed.startup_s + items * fixed.listing_s)
