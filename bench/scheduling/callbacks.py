"""Callbacks."""

from __future__ import annotations

from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

__all__ = ["RunCallback"]


class RunCallback:
    """Who wants to know how a race goes. These return at once, since the scheduler waits for them."""

    def began(self, race: TrialQueue, slots: int) -> None:
        """Trials are about to start, ``slots`` at a time."""

    def started(self, spec: TrialSpec) -> None:
        """A trial starts; more than once where its process died and it is tried again."""

    def lost(self, spec: TrialSpec, reason: str) -> None:
        """A trial's process died, and it will be tried again."""

    def finished(self, record: TrialRecord) -> None:
        """A trial has its record."""
