"""InWorkers: shards handed to processes of this machine, each with one copy of the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import Account, MaxFailures, TooManyFailuresError
from transforms.crew import Crew
from transforms.model import let_go_of_models, take_in
from transforms.processes import cores
from transforms.progress import progress
from transforms.records import LabelVectors, Shard

LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What torch and numpy read the number of their threads from."""


class Result(NamedTuple):
    """What a worker has done, and what it did it with: towers loaded, and how the image's is."""

    accounts: list[Account]
    towers: frozenset[str]
    tower: dict[str, Any]


@dataclass
class InWorkers(beam.PTransform[beam.PCollection[Shard], beam.PCollection[Account]]):
    """Shards to their accounts, by up to `count` processes of `module`.

    They are told `order` and the vectors of `label_vectors`, one mapping of them; `gpus` has a
    device for each, as CUDA_VISIBLE_DEVICES names it. More failures than `abort_after` end them.
    """

    count: int
    module: str
    order: bytes
    label_vectors: beam.PCollection[Mapping[str, LabelVectors]]
    gpus: tuple[str, ...] = ()
    abort_after: MaxFailures | None = None

    def expand(self, pcoll: beam.PCollection[Shard]) -> beam.PCollection[Account]:
        """Wire the foreman."""
        hand_out = _HandOut(
            self.module, self.order, environments(self.count, self.gpus), self.abort_after
        )
        accounts: beam.PCollection[Account] = pcoll | "HandOut" >> beam.ParDo(
            hand_out, beam.pvalue.AsSingleton(self.label_vectors)
        )
        return accounts


def environments(count: int, gpus: tuple[str, ...]) -> list[dict[str, str]]:
    """For each worker its part of the machine: a GPU, and threads unless they are told already."""
    threads = str(max(1, cores() // count))
    shared = {name: threads for name in LIBRARIES if name not in os.environ}
    return [
        {**shared, **({"CUDA_VISIBLE_DEVICES": gpus[place]} if gpus else {})}
        for place in range(count)
    ]


class _HandOut(beam.DoFn):
    """A DoFn for the processes, which last as long as a bundle: a local run has one."""

    def __init__(
        self,
        module: str,
        order: bytes,
        environments: list[dict[str, str]],
        abort_after: MaxFailures | None,
    ) -> None:
        self._module = module
        self._order = order
        self._environments = environments
        self._abort_after = abort_after

    def start_bundle(self) -> None:
        self._crew: Crew | None = None

    def process(self, shard: Shard, label_vectors: Mapping[str, LabelVectors]) -> None:
        if self._crew is None:
            # What the words needed of it; from here on others have it.
            let_go_of_models()
            order = (self._order, label_vectors)
            self._crew = Crew(self._module, self._environments, order, self._hear)
        self._crew.give(shard)

    def finish_bundle(self) -> Iterator[Any]:
        if self._crew is None:
            return
        window = GlobalWindow()
        for result in self._crew.finish():
            take_in(result.towers, result.tower)
            for account in result.accounts:
                yield WindowedValue(account, window.max_timestamp(), (window,))

    def teardown(self) -> None:
        if self._crew is not None:
            self._crew.end()

    def _hear(self, counts: Mapping[str, int]) -> None:
        progress.add(**counts)
        # Asked when a shard is written, which is then kept.
        if self._abort_after is not None and counts["shards"]:
            too_many = self._abort_after.passed(progress.failed, progress.listed)
            if too_many:
                raise TooManyFailuresError(too_many)
