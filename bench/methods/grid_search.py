"""MAP + grid search: tune on 4/5 of the data, choose by validation NLL, train again on all of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from bench.benchmark import Benchmark, GridSearchSettings
from bench.methods.base import Method
from bench.trials import Cell, TrialRecord, TrialSpec

__all__ = ["MAPGridSearch"]


class MAPGridSearch(Method):
    """Learning rate x weight decay (L2-zero, L2-SP; untied: x head weight decay), or x lambda x head weight decay
    (PTYL)."""

    name = "map-gs"
    settings: GridSearchSettings

    def __init__(self, benchmark: Benchmark, cell: Cell, settings: GridSearchSettings) -> None:
        self.retrain = settings.retrains(cell.prior)
        self._tuned: dict[str, tuple[bool, float]] = {}
        super().__init__(benchmark, cell, settings)

    def first(self) -> Iterable[TrialSpec]:
        self.grid = [self.spec("tune", **point) for point in self._points()]
        if self.retrain == "all":
            return [*self.grid, *(replace(spec, stage="retrain") for spec in self.grid)]
        return self.grid

    def then(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage != "tune" or self.retrain == "all":
            return ()
        self._tuned[record.key] = _rank(record)
        if len(self._tuned) < len(self.grid):
            return ()
        best = min(self.grid, key=lambda spec: (self._tuned[spec.key], spec.key))
        failed, _ = self._tuned[best.key]
        return () if failed else [replace(best, stage="retrain")]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.grid), retrain=len(self.grid) if self.retrain == "all" else 1)

    def _points(self) -> Iterable[dict[str, float]]:
        rates, decays = self.settings.learning_rates, self.settings.weight_decays
        if self.cell.prior == "ptyl":
            for rate, scale, decay in product(rates, self.settings.ptyl_lambdas, decays):
                yield {"learning_rate": rate, "prior_scale": scale, "head_weight_decay": decay}
        elif self.cell.prior in self.settings.untied:
            for rate, decay, head_decay in product(rates, decays, decays):
                yield {"learning_rate": rate, "weight_decay": decay, "head_weight_decay": head_decay}
        else:
            for rate, decay in product(rates, decays):
                yield {"learning_rate": rate, "weight_decay": decay, "head_weight_decay": decay}


def _rank(record: TrialRecord) -> tuple[bool, float]:
    """Least is best: failed runs last, and before them those that diverged or whose validation NLL is not finite."""
    nll = record.metrics.get("val_nll", math.inf)
    return record.status == "failed", nll if math.isfinite(nll) and record.status == "completed" else math.inf
