"""The phase clock: where the wall-clock seconds of one run went."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["PHASES", "PhaseClock"]


PHASES = ("setup", "warmup", "train", "adapt", "evaluate", "select", "monitor", "test", "checkpoint")
"""What a method needs is train, adapt (learning strengths beside the steps: curvature, hypergradients), evaluate
(validation at the last step) and select (posterior passes, evidence). ``monitor``, the looks on the way, and ``test``
are the benchmark's own."""


class PhaseClock:
    """Attributes wall-clock seconds to phases. A phase inside another takes its time out of the outer one.

    The device is synchronized when the phase changes, so that queued work is booked where it was queued; never in
    between, so a clock costs a training step nothing. `paused` is for time that belongs to somebody else.

    Args:
        device: what to synchronize; only accelerators need it.
        now: reads the time in seconds; another one is for tests.
    """

    def __init__(self, device: torch.device | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._synchronize = device is not None and device.type == "cuda"
        self._device = device
        self._now = now
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._stack: list[str | None] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to the last change of phase."""
        return dict(self._seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books the block's seconds under ``name``, one of `PHASES`."""
        if name not in self._seconds:
            raise ValueError(f"a phase is one of {', '.join(PHASES)}, got {name!r}")
        with self._switched(name):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Books the block's seconds nowhere: a callback's, a tracker's."""
        with self._switched(None):
            yield

    def carry(self, seconds: Mapping[str, float]) -> None:
        """Adds what another clock booked, by phase: that of a process which died, whose run goes on here.

        Raises:
            ValueError: a phase that is none, or seconds that are negative or not finite. Nothing is added then.
        """
        for name, value in seconds.items():
            if name not in self._seconds or not 0 <= value < math.inf:
                raise ValueError(f"seconds of a phase are a number >= 0, got {name!r}: {value!r}")
        for name, value in seconds.items():
            self._seconds[name] += value

    def read(self, name: str) -> float:
        """Seconds of ``name`` until now, the running phase's included. Synchronizes the device."""
        self._settle()
        return self._seconds[name]

    @contextmanager
    def _switched(self, name: str | None) -> Iterator[None]:
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def _settle(self) -> None:
        if self._synchronize:
            torch.cuda.synchronize(self._device)
        now = self._now()
        if self._stack and (current := self._stack[-1]) is not None:
            self._seconds[current] += now - self._since
        self._since = now
