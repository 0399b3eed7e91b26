"""MAID: find the strength of a linear probe by certified steps, then tune the learning rate and retrain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bench.methods.base import Method, TunedRateSettings, learned_strengths, metric_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import Number, Positive
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class MAIDSettings(TunedRateSettings):
    """Settings of the certified descent, see `deelbo.objectives.maid`.

    Attributes:
        start: strength at the start.
        tolerance: first bound of the errors of the lower problem and of its linear system.
    """

    method: Literal["maid"] = "maid"
    start: Annotated[float, Number, Field(ge=MIN_WEIGHT_DECAY, le=MAX_WEIGHT_DECAY)] = 1e-2
    tolerance: Positive = 0.1

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        if training["train"] == "head":
            return None
        return (
            f"training.train = {training['train']}, expected head, as its bounds hold for a convex problem, a linear "
            "head on frozen features: set training.train to head, or use hypergradient or stn"
        )

    def max_trials(self, prior: str) -> int:
        return super().max_trials(prior) + 1


class MAID(Method):
    """Find the strength in the run of the first learning rate; train the others with it, and retrain the best.

    The strength does not depend on the learning rate, so it is found once. The best run has the lowest validation NLL.
    """

    name = "maid"
    title = "MAID"
    adaptive = True
    Settings = MAIDSettings
    settings: MAIDSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        from deelbo.objectives.maid import ProbeMAID
        from deelbo.objectives.map import MAP

        options = json.loads(spec.options)
        if "found" in options:
            return MAP(groups, num_examples, {"head": options["found"]})
        return ProbeMAID(groups, num_examples, **options)

    def initial_trials(self) -> Iterable[TrialSpec]:
        self._tuned: dict[int, TrialRecord] = {}
        return [self._spec(0, self.settings.model_dump(include={"start", "tolerance"}))]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage != "tune" or record.spec.number is None:
            return ()
        self._tuned[record.spec.number] = record
        rates = self.settings.learning_rates
        if len(self._tuned) == 1 and len(rates) > 1:
            strengths = learned_strengths(record)
            options = None if strengths is None else {"found": strengths["head_weight_decay"]}
            return () if options is None else [self._spec(i, options) for i in range(1, len(rates))]
        if len(self._tuned) < len(rates):
            return ()
        best = self._tuned[min(self._tuned, key=lambda number: (metric_rank(self._tuned[number]), number))]
        if (strengths := learned_strengths(best)) is None:
            return ()
        return [self.retraining(replace(best.spec, learner=None, **strengths))]  # type: ignore[arg-type]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.settings.learning_rates), retrain=1)

    def _spec(self, number: int, options: Mapping[str, Any]) -> TrialSpec:
        rate = self.settings.learning_rates[number]
        return self.spec("tune", rate, number=number, learner="maid", options=dict(options))
