"""A training run kept as bytes while it trains, so that after its process has died it goes on to the same end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deelbo.training.clock import PhaseClock
from deelbo.training.run import TrainingRun
from deelbo.training.snapshot import fingerprint, put_back, sealed

__all__ = ["Checkpoint"]


@dataclass
class Checkpoint:
    """Where a run is kept on the way. The run that goes on from there ends as if nothing had happened, on a CPU to the
    bit; but for its seconds, as it warms up again.

    A checkpoint is taken up only by the run that wrote it: the same start (weights, buffers, random numbers), images,
    schedule, objective, optimizer, numerics, kind of device and torch. One of another run, one that is damaged and one
    that cannot be read are passed over with a warning, and training starts from its start. Reading it runs no code.

    Checkpoints are a help and not the result. So an OSError of ``write``, of a full disk say, costs the run that
    checkpoint and not its life: it warns, goes on, and tries again when ``every`` seconds have passed. Any other error
    of ``write`` or ``read`` is the caller's own and is raised.

    Attributes:
        every: seconds from the start of training, or from the checkpoint before, after which the next end of an epoch
            writes one; at every end of an epoch where 0.
        write: is given the bytes, which replace those before. It should leave them whole or not at all, as a file
            renamed into place is.
        read: gives back the bytes last written, or None where there are none.
        now: reads the time in seconds; another one is for tests.
        resumed_at_step: the step that the last `deelbo.fit` went on from; None where it started from its start.
        resumed_seconds: the seconds that the clock took over from the checkpoint, all phases together.

    Raises:
        ValueError: ``every`` is negative or not a number.
    """

    every: float
    write: Callable[[bytes], None]
    read: Callable[[], bytes | None]
    now: Callable[[], float] = time.monotonic
    resumed_at_step: int | None = field(default=None, init=False)
    resumed_seconds: float = field(default=0.0, init=False)
    _whose: str = field(default="", init=False, repr=False)
    _last: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"every must be a number of seconds >= 0, got {self.every}")

    def resume(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Puts a run that is at its start where the checkpoint has it; leaves it there where there is none of it."""
        self.resumed_at_step, self.resumed_seconds = None, 0.0
        with clock.phase("checkpoint"):
            self._whose = fingerprint(run)
            if (data := self._read()) is not None:

                def take(content: dict[str, Any]) -> None:
                    clock.carry(content["seconds"])
                    self.resumed_at_step, self.resumed_seconds = run.steps_done, float(sum(content["seconds"].values()))

                if not put_back(data, self._whose, run, take):
                    _warn("the checkpoint is damaged or another run's: training starts from its start")
        self._last = self.now()

    def due(self) -> bool:
        """Whether the next end of an epoch should write one. Does not wait for the device."""
        return self.now() - self._last >= self.every

    def keep(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Writes the run as it is between two epochs. The device's tensors are copied to the host one at a time."""
        with clock.phase("checkpoint"):
            data = sealed({"whose": self._whose, "seconds": clock.seconds, "run": run.state()})
            try:
                self.write(data)
            except OSError as error:
                _warn(f"the checkpoint could not be written ({error}): the run goes on without it")
            self._last = self.now()

    def _read(self) -> bytes | None:
        try:
            return self.read()
        except OSError as error:
            _warn(f"the checkpoint could not be read ({error}): training starts from its start")
            return None


def _warn(words: str) -> None:
    warnings.warn(words, RuntimeWarning, stacklevel=4)
