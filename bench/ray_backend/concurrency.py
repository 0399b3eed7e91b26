"""How many trials really run at once: counted by one process of the run, asked by each trial as it begins and ends."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bench.trials.record import TrialRecord

__all__ = ["Counter", "Running"]


START, PATIENCE = 30.0, 1.0
"""Seconds that a process waits for the counter before its first trial, and after each of them."""
MOST_MISSED = 3
"""Answers in a row: one may be late, but a trial must not wait for a counter that is gone."""


class Counter:
    """The trials that are inside their run, on all nodes. Whoever asks is counted too.

    A trial that begins twice is there once, and one that is gone may be forgotten again: messages may be repeated.
    """

    def __init__(self) -> None:
        self._inside: set[str] = set()

    def here(self) -> bool:
        """It has started."""
        return True

    def begin(self, name: str) -> int:
        """A trial begins: how many are inside with it."""
        self._inside.add(name)
        return len(self._inside)

    def end(self, name: str) -> int:
        """A trial ends: how many were inside with it."""
        self._inside.add(name)
        count = len(self._inside)
        self._inside.remove(name)
        return count

    def forget(self, name: str) -> None:
        """A trial's process died."""
        self._inside.discard(name)


class Running:
    """Asks the run's `Counter`, from any process: never waits while a trial is timed, and does without where nobody
    answers. It waits for it once, at first, as three trials of a second may be over before the counter has started."""

    def __init__(self, counter: Any = None) -> None:
        """``counter``: the actor; where there is none, nothing is counted."""
        self.counter = counter
        self._began: Any = None
        self._missed = 0

    @classmethod
    def start(cls) -> Running:
        """A counter beside the driver; it takes no slot, and ends with the run."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(Counter).options(num_cpus=0, scheduling_strategy=here).remote())

    @staticmethod
    def name(key: str, attempt: int) -> str:
        """What an attempt at a trial is called here: one that died is forgotten when the next may have begun."""
        return f"{key}.{attempt}"

    def stop(self) -> None:
        """Ends the counter."""
        if self.counter is not None:
            with suppress(Exception):
                ray.kill(self.counter)

    def meet(self) -> None:
        """Waits until the counter has started, at most 30 s: before a process's first trial, and none of its time."""
        if self.counter is not None:
            with suppress(Exception):  # it is gone, or later still: the trials will see
                ray.get(self.counter.here.remote(), timeout=START)

    def begin(self, name: str) -> None:
        """A trial begins. The answer is read at its end: waiting for it would keep the trial from starting."""
        self._began = None
        if self.counter is not None:
            with suppress(Exception):
                self._began = self.counter.begin.remote(name)

    def end(self, name: str, record: TrialRecord) -> TrialRecord:
        """The trial's record, with how many were inside when it began and when it ended."""
        if self.counter is None:
            return record
        try:
            start, end = ray.get([self._began, self.counter.end.remote(name)], timeout=PATIENCE)
        except Exception:  # it died, its node is gone, or the network is slow: a record is worth more than its count
            self._missed += 1
            if self._missed == MOST_MISSED:
                self.counter = None
            return record
        self._missed = 0
        return replace(record, concurrency_start=start, concurrency_end=end)

    def forget(self, name: str) -> None:
        """A trial's process died; nobody waits."""
        if self.counter is not None:
            with suppress(Exception):
                self.counter.forget.remote(name)
