"""How busy the device and the cores were, and what a record says of where a run's time went."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from transforms.bottleneck import find_bottleneck, run_of
from transforms.processes import cores
from transforms.repeating import Repeating

SAMPLE_EVERY_S = 0.5


def where_time_went(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `bottleneck` and `device_utilisation` for a finished run's record.

    The device's share is that of its own stage: while it is given work, it may be busy only partly.
    """
    run = run_of(record, device_in_use(record["model"]["device"]))
    found = find_bottleneck(run)
    return {
        "bottleneck": found and {"kind": found.kind, "sentence": found.sentence},
        "device_utilisation": {
            "share": round(run.device.busy / run.path, 3) if run.path else None,
            "measured_by": "busy seconds of the device stage",
        },
    }


def device_in_use(asked: str) -> str:
    """The device behind `auto`, as far as this process knows: torch is not loaded to ask it."""
    torch = sys.modules.get("torch")
    if asked != "auto" or torch is None:
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def cuda_share() -> float | None:
    """The share of the last moments in which the GPU was busy, 0 to 1, as its driver tells it.

    None where it does not: no CUDA in use by this process, or no package nvidia-ml-py.
    """
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return None
        return float(torch.cuda.utilization()) / 100
    # Any driver's, any error of its own, or torch is still being imported; there is another way.
    except Exception:
        return None


def _processor_seconds() -> float:
    return sum(os.times()[:4])


class Meter(Repeating):
    """How busy this process, those it has started and ended, and its device are in the context."""

    def __init__(self, device_share: Callable[[], float | None] = cuda_share) -> None:
        super().__init__(self._sample, SAMPLE_EVERY_S)
        self._device_share = device_share
        self._shares: list[float] = []
        self._wall = self._processor = 0.0

    def __enter__(self) -> Self:
        self._wall, self._processor = time.perf_counter(), _processor_seconds()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wall = time.perf_counter() - self._wall
        self._processor = _processor_seconds() - self._processor
        super().__exit__(kind, error, trace)

    def _sample(self) -> None:
        share = self._device_share()
        if share is not None:
            self._shares.append(share)

    def told(self) -> dict[str, Any]:
        """The field `cpu_utilisation` and, where the driver told it, `device_utilisation`."""
        told: dict[str, Any] = {
            "cpu_utilisation": round(self._processor / (self._wall * cores()), 3)
        }
        if self._shares:
            mean = sum(self._shares) / len(self._shares)
            told["device_utilisation"] = {"share": round(mean, 3), "measured_by": "NVML"}
        return told
