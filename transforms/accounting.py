"""Counts per shard, and the run's record that they add up to; pure.

A run's record is made of what was written, shard by shard, and of what was listed, counted apart:
listed = reused + embedded + duplicates + failed, or the run has lost something and says so.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transforms.records import Effort

STAGES = ("fetch", "decode", "device", "score", "write")

EXAMPLES = 8
"""How many example tags a run's record keeps."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item's best tag, as an example of what the run found."""

    uri: str
    label: str
    score: float


@dataclass(slots=True)
class Account:
    """What happened to some items: a shard's, or after merging, a run's.

    `labels` counts best tags per label-set id, `modalities` what items were embedded by; `effort`
    is what it took, over all threads and workers.
    `known_failures` are those of earlier runs that were not tried again, `failures` this run's.
    `scored` counts stored vectors that were scored against a label set. `shards` has, of every
    shard that does not add up, the items that were listed less those that were written.
    """

    listed: int = 0
    reused: int = 0
    embedded: int = 0
    duplicates: int = 0
    scored: int = 0
    bytes: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    known_failures: Counter[str] = field(default_factory=Counter)
    shards: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)
    files: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """The number of items without a vector."""
        return self.failures.total() + self.known_failures.total()

    @property
    def written(self) -> int:
        """The number of items that have a row because of this run."""
        return self.embedded + self.duplicates + self.failures.total()

    @property
    def balanced(self) -> bool:
        """Whether every listed item is accounted for."""
        found = self.reused + self.embedded + self.duplicates + self.failed
        return self.listed == found and not self.shards

    def add(self, other: Account) -> None:
        """Take another account's counts into this one."""
        self.listed += other.listed
        self.reused += other.reused
        self.embedded += other.embedded
        self.duplicates += other.duplicates
        self.scored += other.scored
        self.bytes += other.bytes
        self.modalities.update(other.modalities)
        self.failures.update(other.failures)
        self.known_failures.update(other.known_failures)
        for shard_id, missing in other.shards.items():
            self.shards[shard_id] = self.shards.get(shard_id, 0) + missing
            if not self.shards[shard_id]:
                del self.shards[shard_id]
        for label_set_id, counts in other.labels.items():
            self.labels.setdefault(label_set_id, Counter()).update(counts)
        self.spend(other.effort)
        self.files.extend(other.files)
        # The first by name, so that the record does not depend on the order of shards.
        self.examples = sorted([*self.examples, *other.examples], key=lambda e: e.uri)[:EXAMPLES]

    def spend(self, effort: Effort) -> None:
        """Add what a batch, or a shard, cost."""
        self.effort = self.effort.plus(effort)


def merge_accounts(accounts: Iterable[Account]) -> Account:
    """Accounts added up; of none, an account of nothing."""
    merged = Account()
    for account in accounts:
        merged.add(account)
    return merged


class TooManyFailuresError(Exception):
    """More items have failed than a run is to go on with."""


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many items may fail: a `count` of them, or a `share` of those that the run tried."""

    count: int | None = None
    share: float | None = None

    def passed(self, failed: int, tried: int) -> str | None:
        """In what way this is too many; None if it is not."""
        most = self.count if self.count is not None else (self.share or 0.0) * tried
        if failed <= most:
            return None
        said = f"{self.count}" if self.count is not None else f"{self.share:g}"
        return f"{failed} of {tried} tried items failed, more than --max_failures={said} allows"


def finished(
    account: Account, started_at: str, max_failures: MaxFailures | None = None
) -> dict[str, Any]:
    """The part of a run's record that is known at its end."""
    too_many = None
    if max_failures is not None:
        too_many = max_failures.passed(account.failures.total(), account.written)
    now = datetime.datetime.now(datetime.UTC)
    wall = (now - datetime.datetime.fromisoformat(started_at)).total_seconds()
    return {
        "status": _status(account, too_many),
        **({"error": too_many} if too_many else {}),
        "finished_at": now.isoformat(timespec="milliseconds"),
        "wall_seconds": round(wall, 3),
        "counts": {
            "listed": account.listed,
            "reused": account.reused,
            "embedded": account.embedded,
            "duplicates": account.duplicates,
            "failed": account.failed,
        },
        "failures": dict((account.failures + account.known_failures).most_common()),
        "known_failures": account.known_failures.total(),
        "scored": account.scored,
        "unbalanced_shards": dict(sorted(account.shards.items())),
        "modalities": dict(account.modalities.most_common()),
        "retries": account.effort.retries,
        "bytes": account.bytes,
        "items_per_second": round(account.written / wall, 1) if wall else None,
        **_time_spent(account.effort, datetime.datetime.fromisoformat(started_at)),
        "labels": {
            label_set_id: dict(counts.most_common())
            for label_set_id, counts in sorted(account.labels.items())
        },
        "examples": [
            {"uri": example.uri, "label": example.label, "score": round(example.score, 4)}
            for example in account.examples
        ],
        "files": sorted(account.files),
    }


def _time_spent(effort: Effort, started: datetime.datetime) -> dict[str, Any]:
    """Seconds per stage, the workers they were spent on, and what went by before any was."""
    began = effort.began
    machines = {name.partition("/")[0]: cores for name, cores in effort.workers.items()}
    return {
        "startup_seconds": None
        if began is None
        else round(max(0.0, began - started.timestamp()), 3),
        "stages": {
            stage: {
                "busy": round(effort.seconds.get(stage, 0.0), 3),
                "waiting": round(effort.waiting.get(stage, 0.0), 3),
            }
            for stage in STAGES
            if stage in effort.seconds or stage in effort.waiting
        },
        "workers": {"processes": len(effort.workers), "cores": sum(machines.values())},
    }


def _status(account: Account, too_many: str | None) -> str:
    if not account.balanced:
        return "unbalanced"
    return "failed" if too_many else "finished"
