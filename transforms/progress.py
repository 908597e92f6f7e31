"""How far a local run is, in this process and those that work for it."""

from __future__ import annotations

import threading


class Progress:
    """Counts of items, made where the work happens.

    A retried bundle counts twice here: a run's account is made of what was written instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin again at zero."""
        self.listed = self.embedded = self.failed = self.scored = self.shards = 0

    @property
    def done(self) -> int:
        """Items that need no more work."""
        return self.embedded + self.failed

    def add(
        self,
        listed: int = 0,
        embedded: int = 0,
        failed: int = 0,
        scored: int = 0,
        shards: int = 0,
    ) -> None:
        """Count some more."""
        with self._lock:
            self.listed += listed
            self.embedded += embedded
            self.failed += failed
            self.scored += scored
            self.shards += shards

    def take(self) -> dict[str, int]:
        """The counts, as `add` takes them, which begin again at zero."""
        with self._lock:
            taken = {
                "listed": self.listed,
                "embedded": self.embedded,
                "failed": self.failed,
                "scored": self.scored,
                "shards": self.shards,
            }
            self.reset()
        return taken


progress = Progress()
