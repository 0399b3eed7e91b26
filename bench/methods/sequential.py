"""What methods share that try numbered configurations one after the other: which are trained again, and when."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from bench.methods.base import Method, validation_rank
from bench.methods.grid_search import Grid
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec
from bench.types import Count, Seed

if TYPE_CHECKING:
    from bench.trials.spec import TrialTemplate

__all__ = ["SequentialMethod", "SequentialSettings", "derived_rng"]


def derived_rng(seed: int, cell: Cell, *more: Any) -> random.Random:
    """Random numbers that depend on these values alone, and are the same in every process and on every machine."""
    words = json.dumps([seed, cell.dataset, cell.backbone, cell.prior, cell.n, cell.seed, *more])
    return random.Random(words)  # noqa: S311 - a draw, not a secret


class SequentialSettings(Grid):
    """Configurations tried in an order.

    Attributes:
        trials: how many there are; each may stop on the way, or be trained again.
        retrain: which are trained again on all N images: those that were the best so far when their turn in the order
            came, so that the curve is known at every k; the best of all; or all that were tuned to the end.
        seed: of the method's own choices, beside the cell.
    """

    trials: Count = 12
    retrain: Literal["incumbents", "best", "all"] = "incumbents"
    seed: Seed = 0

    def configurations(self, prior: str) -> int:
        """How many are tried in a cell of that prior."""
        return self.trials

    def max_trials(self, prior: str) -> int:
        count = self.configurations(prior)
        return count + (1 if self.retrain == "best" else count)


class SequentialMethod(Method):
    """Configurations numbered 0, 1, 2, ...; the one with the lowest validation NLL at the full length counts.

    Of the first k configurations the best is the one of lowest validation NLL among those tuned to the end; those that
    stopped before rank behind them, the longer the better; a diverged one is the last of its length, and of equals the
    earlier is better. A failed one is never chosen. A configuration that is the best of all up to itself, an incumbent,
    is trained again once those before it are known, in whatever order they become known.
    """

    adaptive = True
    settings: SequentialSettings

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
        self.size: int = settings.configurations(template.cell.prior)
        self._ended: dict[int, TrialRecord] = {}
        self._ranked = 0
        self._again = 0
        self._best: tuple[tuple[float, float], TrialSpec] | None = None
        super().__init__(template, settings, name)

    @abstractmethod
    def num_tuning_trials(self) -> int:
        """How many tuning trials there are, all told; the most that there may be, while that is not known."""

    def record_tuned(self, record: TrialRecord) -> list[TrialSpec]:
        """Takes the last tuning record of a configuration; gives what is to be trained again, as far as that is decided
        by now."""
        if record.spec.number is None:
            raise ValueError(f"{record.spec.describe()} has no number")
        self._ended[record.spec.number] = record
        asked = []
        while (found := self._ended.get(self._ranked)) is not None:
            self._ranked += 1
            if found.status == "failed":
                continue
            rank = (-found.spec.until, validation_rank(found)[1])
            incumbent = self._best is None or rank < self._best[0]
            if incumbent:
                self._best = rank, found.spec
            chosen = incumbent or found.spec.until == 1.0 if self.settings.retrain == "all" else incumbent
            if chosen and self.settings.retrain != "best":
                asked.append(self.retraining(found.spec))
        if self.settings.retrain == "best" and self._ranked == self.size and self._best is not None:
            asked.append(self.retraining(self._best[1]))
        self._again += len(asked)
        return asked

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        return self.record_tuned(record) if record.spec.stage == "tune" else ()

    def num_retraining_trials(self) -> int:
        """How many configurations are trained again, all told; the most that may be, while that is not known."""
        unknown = self.size - self._ranked
        return self._again + (min(unknown, 1) if self.settings.retrain == "best" else unknown)

    def stages(self) -> Counter[str]:
        return Counter(tune=self.num_tuning_trials(), retrain=self.num_retraining_trials())
