"""How far this process is: for a local run's progress bar, and for nothing else."""

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
        self.listed = self.embedded = self.failed = self.scored = 0

    @property
    def done(self) -> int:
        """Items that need no more work."""
        return self.embedded + self.failed

    def add(self, listed: int = 0, embedded: int = 0, failed: int = 0, scored: int = 0) -> None:
        """Count some more."""
        with self._lock:
            self.listed += listed
            self.embedded += embedded
            self.failed += failed
            self.scored += scored


progress = Progress()
