"""Hypergradient: learn the strengths on a validation fifth while training on the rest, then retrain on all images.

`LearnedInTuning` is the base of all methods that do so by other derivatives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench.methods.base import Method, TunedRateSettings, learned_strengths, metric_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import Count, Number, Positive
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class LearnedInTuningSettings(TunedRateSettings):
    """Settings of a method that learns strengths in a tuning run; ``start`` is that of backbone and head at first."""

    start: Annotated[float, Number, Field(ge=MIN_WEIGHT_DECAY, le=MAX_WEIGHT_DECAY)] = 1e-4

    def max_trials(self, prior: str) -> int:
        return super().max_trials(prior) + 1


class HypergradientSettings(LearnedInTuningSettings):
    """One-step implicit differentiation of the validation NLL by the log strengths of backbone and head.

    Attributes:
        every: training steps between two moves of the strengths.
        rate: step of log alpha in nats; None: such that a run can move it through its range and back.
    """

    method: Literal["hypergradient"] = "hypergradient"
    every: Count = 10
    rate: Positive | None = None


class LearnedInTuning(Method):
    """Run each learning rate on 4/5 of the data, and retrain the run with the lowest validation NLL.

    The retraining is MAP on all N images with the geometric mean of the strengths over the run: the last say little.
    """

    option_names: ClassVar[tuple[str, ...]]  # of the settings that are a trial's options
    settings: LearnedInTuningSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        self._tuned: dict[int, TrialRecord] = {}
        options = {name: getattr(self.settings, name) for name in self.option_names}
        return [
            self.spec("tune", rate, number=i, learner=self.settings.method, options=options)
            for i, rate in enumerate(self.settings.learning_rates)
        ]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage != "tune" or record.spec.number is None:
            return ()
        self._tuned[record.spec.number] = record
        if len(self._tuned) < len(self.settings.learning_rates):
            return ()
        best = self._tuned[min(self._tuned, key=lambda number: (metric_rank(self._tuned[number]), number))]
        if (strengths := learned_strengths(best, "mean_")) is None:
            return ()
        return [self.retraining(replace(best.spec, learner=None, **strengths))]  # type: ignore[arg-type]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.settings.learning_rates), retrain=1)


class Hypergradient(LearnedInTuning):
    """The base with one-step hypergradients."""

    name = "hypergradient"
    title = "Hypergradient"
    option_names = ("start", "every", "rate")
    Settings = HypergradientSettings
    settings: HypergradientSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        from deelbo.objectives.hypergradient import HypergradientMAP

        options = json.loads(spec.options)
        start = {group.name: options["start"] for group in groups}
        return HypergradientMAP(groups, num_examples, start, options["rate"], options["every"])
