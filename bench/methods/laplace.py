"""Laplace: learn the strengths by the marginal likelihood during training; one run per learning rate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench.methods.base import Method, TunedRateSettings
from bench.trials.spec import TrialSpec
from bench.types import Count, Number, Positive

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class LaplaceSettings(TunedRateSettings):
    """Settings of the diagonal Laplace approximation, see `deelbo.objectives.laplace`; ``every`` is a share."""

    method: Literal["laplace"] = "laplace"
    packages: ClassVar[tuple[str, ...]] = ("laplace", "curvlinops")
    every: Annotated[float, Number, Field(gt=0, le=1)] = 0.1
    burn_in: Annotated[float, Number, Field(ge=0, lt=1)] = 0.5
    hyper_steps: Count = 10
    hyper_rate: Positive = 0.1

    def find_problem(self, prior: str) -> str | None:
        if prior != "ptyl":
            return None
        return "its Hessian is a diagonal and PTYL's prior is not: name it for l2-zero and l2-sp alone by its priors"


class Laplace(Method):
    """Train on all N images; take the run with the highest marginal likelihood at its end; nothing is retrained."""

    name = "laplace"
    title = "Laplace"
    Settings = LaplaceSettings
    settings: LaplaceSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        from deelbo.objectives.laplace import LaplaceMAP
        from deelbo.training.schedule import Schedule

        schedule = Schedule(spec.learning_rate, spec.steps, spec.batch_size)
        return LaplaceMAP(groups, num_examples, schedule.total_steps(num_examples), **json.loads(spec.options))

    def initial_trials(self) -> Iterable[TrialSpec]:
        options = self.settings.model_dump(include={"every", "burn_in", "hyper_steps", "hyper_rate"})
        return [
            self.spec("run", rate, learner=self.settings.method, options=options)
            for rate in self.settings.learning_rates
        ]
