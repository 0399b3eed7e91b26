"""MAP + grid search: tune on 4/5 of the data, select by validation NLL, retrain on all of it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from bench.methods.base import Method, MethodSettings, metric_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec, TrialTemplate
from bench.types import DEFAULT_LEARNING_RATES, LearningRates, NotNegative, Prior, Unique

Retrain = Literal["best", "all"]


def _retrain(value: Any) -> Any:
    choices = value.values() if isinstance(value, dict) else [value]
    unknown = set(value) - set(get_args(Prior)) if isinstance(value, dict) else set()
    if unknown or not all(isinstance(choice, str) and choice in get_args(Retrain) for choice in choices):
        raise ValueError(f"must be best or all, or one of them for each of {', '.join(get_args(Prior))}")
    return value


class Grid(MethodSettings):
    """A grid of learning rates x strengths: one for backbone and head, two if the prior is ``untied`` or PTYL."""

    learning_rates: LearningRates = DEFAULT_LEARNING_RATES
    weight_decays: Annotated[tuple[NotNegative, ...], Unique] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
    untied: tuple[Literal["l2-zero", "l2-sp"], ...] = ()
    ptyl_lambdas: LearningRates = tuple(10.0**i for i in range(10))

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        if training["train"] == "head" and self.untied:
            return f"untied = {list(self.untied)} with training.train = head, which has no alpha: leave untied out"
        return None

    def points(self, prior: str) -> Iterable[dict[str, float]]:
        """Yield the configurations, each as fields of `TrialSpec`, in the order of the lists."""
        backbone = self.ptyl_lambdas if prior == "ptyl" else self.weight_decays
        separate = prior == "ptyl" or prior in self.untied
        pairs = product(backbone, self.weight_decays) if separate else zip(backbone, backbone, strict=True)
        name = "prior_scale" if prior == "ptyl" else "weight_decay"
        for rate, (strength, head) in product(self.learning_rates, pairs):
            yield {"learning_rate": rate, name: strength, "head_weight_decay": head}

    def size(self, prior: str) -> int:
        second = self.ptyl_lambdas if prior == "ptyl" else self.weight_decays if prior in self.untied else (None,)
        return len(self.learning_rates) * len(second) * len(self.weight_decays)


class GridSearchSettings(Grid):
    """The whole grid; ``retrain`` selects the configurations that are retrained on all N images."""

    method: Literal["map-gs"] = "map-gs"
    retrain: Annotated[Retrain | dict[Prior, Retrain], BeforeValidator(_retrain)] = "best"

    def retrain_mode(self, prior: str) -> Retrain:
        choice: Any = self.retrain
        return choice.get(prior, "best") if isinstance(choice, dict) else choice  # type: ignore[no-any-return]

    def max_trials(self, prior: str) -> int:
        size = self.size(prior)
        return 2 * size if self.retrain_mode(prior) == "all" else size + 1


class MAPGridSearch(Method):
    """Tune every configuration of the grid and take the one with the lowest validation NLL."""

    name = "map-gs"
    title = "MAP + GS"
    Settings = GridSearchSettings
    settings: GridSearchSettings

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
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
        self._tuned[record.key] = metric_rank(record)
        if len(self._tuned) < len(self.grid):
            return ()
        best = min(self.grid, key=lambda spec: (self._tuned[spec.key], spec.key))
        failed, _ = self._tuned[best.key]
        return () if failed else [self.retraining(best)]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.grid), retrain=len(self.grid) if self.retrain == "all" else 1)
