"""Laplace: learn the strengths by the marginal likelihood during training; one run per learning rate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bench.methods.base import Method, TunedRateSettings
from bench.trials.spec import TrialSpec
from bench.types import Count, Number, Positive

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class LaplaceSettings(TunedRateSettings):
    """Settings of the Laplace approximation.

    Attributes:
        curvature: "diagonal" (see `deelbo.objectives.laplace`), or "gram" (see `deelbo.objectives.gram`).
        every: share of the run between two updates of the strengths.
        burn_in: share of the run before the first update.
        hyper_steps: at each update, steps of Adam for "diagonal", updates of MacKay's for "gram".
        hyper_rate: Adam's learning rate on the log precisions; for "diagonal" alone.
    """

    method: Literal["laplace"] = "laplace"
    curvature: Literal["diagonal", "gram"] = "diagonal"
    every: Annotated[float, Number, Field(gt=0, le=1)] = 0.1
    burn_in: Annotated[float, Number, Field(ge=0, lt=1)] = 0.5
    hyper_steps: Count = 10
    hyper_rate: Positive = 0.1

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("laplace", "curvlinops") if self.curvature == "diagonal" else ()

    def find_problem(self, prior: str) -> str | None:
        if prior == "ptyl":
            return "it fits isotropic priors, and PTYL's is not: name it for l2-zero and l2-sp alone by its priors"
        if self.curvature == "gram" and "hyper_rate" in self.model_fields_set:
            return "hyper_rate is Adam's, and curvature = gram has MacKay's updates, without a rate: leave it out"
        return None

    @property
    def options(self) -> dict[str, Any]:
        """Return what determines a trial's result. That of the diagonal is as it was before there was a choice."""
        names = {"every", "burn_in", "hyper_steps"}
        names.add("hyper_rate" if self.curvature == "diagonal" else "curvature")
        return self.model_dump(include=names)


class Laplace(Method):
    """Train on all N images; take the run with the highest marginal likelihood at its end; nothing is retrained."""

    name = "laplace"
    title = "Laplace"
    Settings = LaplaceSettings
    settings: LaplaceSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        from deelbo.objectives.gram import GramLaplaceMAP
        from deelbo.objectives.laplace import LaplaceMAP
        from deelbo.training.schedule import Schedule

        schedule, options = Schedule(spec.learning_rate, spec.steps, spec.batch_size), json.loads(spec.options)
        kind = GramLaplaceMAP if options.pop("curvature", "diagonal") == "gram" else LaplaceMAP
        return kind(groups, num_examples, schedule.total_steps(num_examples), **options)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [
            self.spec("run", rate, learner=self.settings.method, options=self.settings.options)
            for rate in self.settings.learning_rates
        ]
