"""MAP + grid search: tune on 4/5 of the data, select by validation NLL, retrain on all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from bench.methods.base import Method, MethodSettings, validation_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import DEFAULT_LEARNING_RATES, LearningRates, NotNegative, Prior, Unique

if TYPE_CHECKING:
    from bench.trials.spec import TrialTemplate

__all__ = ["Grid", "MAPGridSearch"]


Retrain = Literal["best", "all"]


def _retrain(value: Any) -> Any:
    choices = value.values() if isinstance(value, dict) else [value]
    unknown = set(value) - set(get_args(Prior)) if isinstance(value, dict) else set()
    if unknown or not all(isinstance(choice, str) and choice in get_args(Retrain) for choice in choices):
        raise ValueError(f"must be best or all, or one of them for each of {', '.join(get_args(Prior))}")
    return value


class Grid(MethodSettings):
    """A grid of learning rates x strengths.

    With L2-zero and L2-SP backbone and head have one strength (alpha = beta), or, if the prior is ``untied``, two
    (alpha x beta). With PTYL the backbone has the scale lambda of its prior, and ``weight_decays`` are the head's.
    """

    learning_rates: LearningRates = DEFAULT_LEARNING_RATES
    weight_decays: Annotated[tuple[NotNegative, ...], Unique] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
    untied: tuple[Literal["l2-zero", "l2-sp"], ...] = ()
    ptyl_lambdas: LearningRates = tuple(10.0**i for i in range(10))

    def points(self, prior: str) -> Iterable[dict[str, float]]:
        """Yield the configurations with that prior, each as fields of `TrialSpec`, in the order of the lists."""
        rates, decays = self.learning_rates, self.weight_decays
        if prior == "ptyl":
            for rate, scale, decay in product(rates, self.ptyl_lambdas, decays):
                yield {"learning_rate": rate, "prior_scale": scale, "head_weight_decay": decay}
        elif prior in self.untied:
            for rate, decay, head_decay in product(rates, decays, decays):
                yield {"learning_rate": rate, "weight_decay": decay, "head_weight_decay": head_decay}
        else:
            for rate, decay in product(rates, decays):
                yield {"learning_rate": rate, "weight_decay": decay, "head_weight_decay": decay}

    def size(self, prior: str) -> int:
        """Return the number of configurations with that prior."""
        second = self.ptyl_lambdas if prior == "ptyl" else self.weight_decays if prior in self.untied else (None,)
        return len(self.learning_rates) * len(second) * len(self.weight_decays)


class GridSearchSettings(Grid):
    """The whole grid; ``retrain`` selects the configurations that are retrained on all N images."""

    method: Literal["map-gs"] = "map-gs"
    retrain: Annotated[Retrain | dict[Prior, Retrain], BeforeValidator(_retrain)] = "best"

    def retrain_mode(self, prior: str) -> Retrain:
        """Return which configurations of that prior are retrained."""
        if isinstance(self.retrain, dict):
            return self.retrain.get(prior, "best")  # type: ignore[call-overload, no-any-return]
        return self.retrain

    def max_trials(self, prior: str) -> int:
        size = self.size(prior)
        return 2 * size if self.retrain_mode(prior) == "all" else size + 1


class MAPGridSearch(Method):
    """Tune every configuration of the grid and take the one with the lowest validation NLL."""

    name = "map-gs"
    title = "MAP + GS"
    Settings = GridSearchSettings
    settings: GridSearchSettings

    def __init__(self, template: TrialTemplate, settings: GridSearchSettings, name: str | None = None) -> None:
        self.retrain = settings.retrain_mode(template.cell.prior)
        self._tuned: dict[str, tuple[bool, float]] = {}
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        self.grid = [self.spec("tune", **point) for point in self.settings.points(self.cell.prior)]
        if self.retrain == "all":
            return [*self.grid, *map(self.retraining, self.grid)]
        return self.grid

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage != "tune" or self.retrain == "all":
            return ()
        self._tuned[record.key] = validation_rank(record)
        if len(self._tuned) < len(self.grid):
            return ()
        best = min(self.grid, key=lambda spec: (self._tuned[spec.key], spec.key))
        failed, _ = self._tuned[best.key]
        return () if failed else [self.retraining(best)]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.grid), retrain=len(self.grid) if self.retrain == "all" else 1)
