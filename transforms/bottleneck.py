"""What a run waited for most, and what to change: from the numbers of its record alone; pure.

A worker's model takes one batch after the other: while it has none it waits for reading, and
reading waits where most of its threads are. So a run is bound by whatever takes the largest part of
that one path, and by fetching or decoding where that part is waiting. Files are written beside it,
and bind a run only where they take longer than all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

MOST_CORES = 8
"""More than so many times its cores are not asked for: something else binds before that."""

SATURATED = 0.8
"""A share of the cores, or of the calls at a time, from which there are no more of them."""


class Bound(StrEnum):
    """What a run is bound by."""

    STARTUP = "startup"
    FETCH = "fetch"
    DECODE = "decode"
    DEVICE = "device"
    SCORE = "score"
    WRITE = "write"


class Spent(NamedTuple):
    """Seconds of one stage, summed over threads and workers."""

    busy: float = 0.0
    waiting: float = 0.0

    @property
    def both(self) -> float:
        """All of them."""
        return self.busy + self.waiting


class Run(NamedTuple):
    """What a verdict is made of: seconds per stage, and what a worker has to work with.

    `wall` and `startup`, the part of it before anything is read, are seconds; `cores` and
    `concurrency` (calls to the store at a time) are one worker's. `precision` and `decoding` are
    as the flags have them; `on` is where the model is: `cuda`, or no GPU that is known of.
    """

    fetch: Spent
    decode: Spent
    device: Spent
    score: Spent = Spent()
    write: Spent = Spent()
    wall: float = 0.0
    startup: float = 0.0
    cores: float = 1
    concurrency: int = 32
    on: str = "cpu"
    precision: str = "fp32"
    decoding: str = "exact"

    @property
    def path(self) -> float:
        """The seconds of the one path, summed over workers."""
        return self.device.both + self.score.both


class Bottleneck(NamedTuple):
    """What binds a run, in one sentence; `more_cores` are what decoding lacks, of each worker."""

    kind: Bound
    sentence: str
    more_cores: int = 0


def find_bottleneck(run: Run) -> Bottleneck | None:
    """What binds a run; None where nothing was read."""
    if run.path + run.write.both <= 0:
        return None
    if run.wall and run.startup > run.wall / 2:
        return Bottleneck(
            Bound.STARTUP,
            f"startup-bound: {_percent(run.startup / run.wall)} of {run.wall:.1f} s went by before "
            "anything was read; more items in a run make it count for less",
        )
    if run.write.both > run.path:
        return Bottleneck(
            Bound.WRITE,
            f"write-bound: writing took {run.write.both:.1f} s, and all beside it "
            f"{run.path:.1f} s; a larger --shard_size, a nearer store, or more workers",
        )
    parts = {
        Bound.FETCH: run.device.waiting,
        Bound.DEVICE: run.device.busy,
        Bound.SCORE: run.score.both,
    }
    largest = max(parts, key=lambda part: parts[part])
    if largest is Bound.FETCH and _shares_its_cores(run) and _decoding_is_slower(run):
        # It waits for cores too, which decoding has, or other processes: the more work binds.
        largest = largest if run.decode.busy > run.device.busy else Bound.DEVICE
    share = _percent(parts[largest] / run.path)
    match largest:
        case Bound.DEVICE:
            said = f"the model was busy {share} of the time; {_faster_device(run)}"
        case Bound.SCORE:
            said = f"scoring took {share} of the time; fewer labels or label sets, or more workers"
        case _ if _decoding_is_slower(run):
            return _decode_bound(run, share)
        case _:
            said = f"the model waited {share} of the time for objects; {_faster_fetch(run)}"
    return Bottleneck(largest, f"{largest}-bound: {said}")


def cores_to_keep_up(run: Run) -> int:
    """How many cores a worker needs for decoding to take no longer than all that follows it.

    Processor seconds of decoding over the path's other seconds: at most `MOST_CORES` times those
    that it has.
    """
    rest = run.path - run.device.waiting
    most = MOST_CORES * max(1, math.ceil(run.cores))
    return most if rest * most <= run.decode.busy else math.ceil(run.decode.busy / rest)


def _decoding_is_slower(run: Run) -> bool:
    """Whether reading waits in decoding: the cores have no more, or most threads are there."""
    return _cores_used(run) >= SATURATED or run.decode.both >= run.fetch.both


def _shares_its_cores(run: Run) -> bool:
    """Whether the model runs on the cores that decode."""
    return run.on != "cuda"


def _cores_used(run: Run) -> float:
    """The share of the cores that decoding has: all but while a model on them is at work."""
    left = run.path - run.device.busy * _shares_its_cores(run)
    return run.decode.busy / (run.cores * left) if left > 0 else math.inf


def _decode_bound(run: Run, share: str) -> Bottleneck:
    more = max(0, cores_to_keep_up(run) - math.ceil(run.cores))
    used, got, ways = _cores_used(run), "", []
    if more and used >= SATURATED / 2:
        ways.append(f"{more} more core{'s' * (more > 1)}")
    else:
        # Threads of one process do not come to them all, or other processes are on them.
        more = 0
        got = f", which had {_percent(used)} of its cores"
        ways.append("more workers")
    if run.on == "cuda" and run.decoding != "gpu":
        ways.append("--decode=gpu")
    if run.decoding == "exact":
        ways.append("--decode=fast")
    said = f"the model waited {share} of the time for decoding{got}; {_either(ways)}"
    return Bottleneck(Bound.DECODE, f"decode-bound: {said}", more)


def _faster_fetch(run: Run) -> str:
    used = run.fetch.busy / (run.concurrency * run.path)
    if used < SATURATED / 2 and run.fetch.waiting < run.fetch.busy:
        return "a nearer store or more workers"
    return f"--read_concurrency={2 * run.concurrency} or a nearer store"


def _faster_device(run: Run) -> str:
    ways = [] if run.precision != "fp32" else ["--precision=bf16"]
    return _either([*ways, "a faster GPU" if run.on == "cuda" else "a GPU", "more workers"])


def _either(ways: list[str]) -> str:
    *others, last = ways
    comma = "," if len(others) > 1 else ""
    return f"{', '.join(others)}{comma} or {last}" if others else last


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def run_of(record: Mapping[str, Any], device: str) -> Run:
    """What a run's record says of where its time went; `device` is what its model was on."""
    stages = {stage: Spent(**spent) for stage, spent in record["stages"].items()}
    workers, settings = record["workers"], record["settings"]
    none = Spent()
    return Run(
        stages.get("fetch", none),
        stages.get("decode", none),
        stages.get("device", none),
        stages.get("score", none),
        stages.get("write", none),
        wall=record["wall_seconds"],
        startup=record["startup_seconds"] or 0.0,
        cores=workers["cores"] / max(1, workers["processes"]),
        concurrency=settings.get("limits", {"concurrency": 1})["concurrency"],
        on=device,
        precision=record["model"]["precision"],
        decoding=settings.get("decode", "exact"),
    )
