"""Base of methods that try numbered configurations in order: which are retrained, and when."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from bench.methods.base import Method, metric_rank
from bench.methods.grid_search import Grid
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec, TrialTemplate
from bench.types import Count, Seed


def derived_rng(seed: int, cell: Cell, *more: Any) -> random.Random:
    """Return a random generator that depends on these values only, the same in every process and on every machine."""
    content = json.dumps([seed, cell.dataset, cell.backbone, cell.prior, cell.n, cell.seed, *more])
    return random.Random(content)  # noqa: S311 - not a secret


class SequentialSettings(Grid):
    """Settings of methods that try configurations in order, an incumbent being the best of all up to itself."""

    trials: Count = 12
    retrain: Literal["incumbents", "best", "all"] = "incumbents"
    seed: Seed = 0

    def configurations(self, prior: str) -> int:
        return self.trials

    def max_trials(self, prior: str) -> int:
        count = self.configurations(prior)
        return count + (1 if self.retrain == "best" else count)


class SequentialMethod(Method):
    """Try configurations numbered 0, 1, 2, ..., and take the best.

    Of the first k configurations the best has the lowest validation NLL among those tuned to the end. Those that
    stopped early rank behind, the longer the better; a diverged one ranks last of its length; of equals the earlier is
    better; a failed one is never taken. An incumbent is retrained once the results before it are known.
    """

    adaptive = True
    settings: SequentialSettings

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
        self.size: int = settings.configurations(template.cell.prior)
        self._tuned: dict[int | None, TrialRecord] = {}
        self._num_ranked = 0
        self._num_retrained = 0
        self._best: tuple[tuple[float, float], TrialSpec] | None = None
        super().__init__(template, settings, name)

    def num_tuning_trials(self) -> int:
        """Return the number of tuning trials; an upper bound while results decide."""
        return self.size

    def record_tuned(self, record: TrialRecord) -> list[TrialSpec]:
        """Receive the last tuning record of a configuration; return the retrainings that are decided by now."""
        self._tuned[record.spec.number] = record
        trials = []
        while (tuned := self._tuned.get(self._num_ranked)) is not None:
            self._num_ranked += 1
            if tuned.status == "failed":
                continue
            rank = (-tuned.spec.until, metric_rank(tuned)[1])
            incumbent = self._best is None or rank < self._best[0]
            if incumbent:
                self._best = rank, tuned.spec
            selected = incumbent or tuned.spec.until == 1.0 if self.settings.retrain == "all" else incumbent
            if selected and self.settings.retrain != "best":
                trials.append(self.retraining(tuned.spec))
        if self.settings.retrain == "best" and self._num_ranked == self.size and self._best is not None:
            trials.append(self.retraining(self._best[1]))
        self._num_retrained += len(trials)
        return trials

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        return self.record_tuned(record) if record.spec.stage == "tune" else ()

    def num_retraining_trials(self) -> int:
        """Return the number of retrainings; an upper bound while results decide."""
        unknown = self.size - self._num_ranked
        return self._num_retrained + (min(unknown, 1) if self.settings.retrain == "best" else unknown)

    def stages(self) -> Counter[str]:
        return Counter(tune=self.num_tuning_trials(), retrain=self.num_retraining_trials())
