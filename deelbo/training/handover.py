"""A training run that stops early, handed over to whoever trains it further: a rung of a race that ends most runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deelbo.training.clock import PhaseClock
from deelbo.training.run import TrainingRun
from deelbo.training.snapshot import fingerprint, put_back, sealed

__all__ = ["Handover"]


@dataclass
class Handover:
    """How the stretches of one run hand it on, each of them a `deelbo.fit` that trains ``until`` a share of the epochs.

    The last stretch ends as the run would have in one go, on a CPU to the bit: weights, metrics and series. Only the
    seconds are each stretch's own; a row's ``train_seconds`` count those of all stretches up to it.

    A run is taken up only where it is the very same run but for ``until``: start, images, schedule, objective,
    optimizer, numerics, kind of device and torch. One of another run, one that is damaged, one that cannot be read and
    one that went further than this stretch are passed over with a warning, and training starts from its start. Reading
    it runs no code. An OSError of ``write`` costs those who come later the stretch and not this one its result: it
    warns.

    Attributes:
        read: gives back the bytes that the stretch before wrote, or None where there is none.
        write: is given the run's bytes where it stops before its end. It should leave them whole or not at all.
        resumed_at_step: the step that the last `deelbo.fit` went on from; None where it started from its start.
    """

    read: Callable[[], bytes | None]
    write: Callable[[bytes], None]
    resumed_at_step: int | None = field(default=None, init=False)
    _whose: str = field(default="", init=False, repr=False)

    def take_up(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Puts a run that is at its start where the stretch before left it; leaves it there where there is none."""
        self.resumed_at_step = None
        with clock.phase("checkpoint"):
            self._whose = fingerprint(run)
            try:
                data = self.read()
            except OSError as error:
                _warn(f"the run handed over could not be read ({error}): training starts from its start")
                return

            def take(content: dict[str, Any]) -> None:
                seconds = float(content["trained_seconds"])
                if not 0 <= seconds < math.inf:
                    raise ValueError(f"seconds are a number >= 0, got {seconds}")
                run.earlier_seconds, self.resumed_at_step = seconds, run.steps_done

            if data is not None and not put_back(data, self._whose, run, take):
                _warn("the run handed over is damaged, another one or further on: training starts from its start")

    def keep(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Writes the run as it is between two epochs."""
        seconds = run.earlier_seconds + clock.read("train")
        with clock.phase("checkpoint"):
            data = sealed({"whose": self._whose, "trained_seconds": seconds, "run": run.state()})
            try:
                self.write(data)
            except OSError as error:
                _warn(f"the run could not be handed over ({error}): who goes on with it trains from its start")


def _warn(words: str) -> None:
    warnings.warn(words, RuntimeWarning, stacklevel=4)
