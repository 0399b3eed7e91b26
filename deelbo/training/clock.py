"""Wall-clock seconds of a run by phase."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch

PHASES = ("setup", "warmup", "train", "adapt", "evaluate", "select", "monitor", "test", "predictive", "checkpoint")
"""A method needs train, adapt (learning strengths between steps: curvature, hypergradients), evaluate (validation after
the last step, or all of it where it selects the epoch) and select (posterior passes, evidence). ``monitor``, the
evaluations on the way, ``test`` and ``predictive``, tests averaged over the posterior, are the benchmark's own."""


class PhaseClock:
    """Books wall-clock seconds under phases. A phase inside another one takes its time out of the outer one.

    The device is synchronized when the phase changes, so that queued work is booked where it was queued, and never in
    between, so that the clock costs a training step nothing. Tests replace ``now``, which returns seconds.
    """

    def __init__(self, device: torch.device | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._now = now
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._stack: list[str | None] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to the last change of phase."""
        return dict(self._seconds)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Book the block's seconds under ``name``, one of `PHASES`."""
        if name not in self._seconds:
            raise ValueError(f"a phase must be one of {', '.join(PHASES)}, got {name!r}")
        return self._enter(name)

    def paused(self) -> AbstractContextManager[None]:
        """Book the block's seconds nowhere, for example those of a callback."""
        return self._enter(None)

    def carry(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds by phase of an earlier process whose run this one continues; all of them, or ValueError."""
        for name, value in seconds.items():
            if name not in self._seconds or not 0 <= value < math.inf:
                raise ValueError(f"the seconds of a phase must be a number >= 0, got {name!r}: {value!r}")
        for name, value in seconds.items():
            self._seconds[name] += value

    def read(self, name: str) -> float:
        """Seconds of ``name`` until now, those of the running phase included. Synchronizes the device."""
        self._book()
        return self._seconds[name]

    @contextmanager
    def _enter(self, name: str | None) -> Iterator[None]:
        self._book()
        self._stack.append(name)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def _book(self) -> None:
        """Add the time since the last call to the current phase."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
        now = self._now()
        if self._stack and (current := self._stack[-1]) is not None:
            self._seconds[current] += now - self._since
        self._since = now
