"""HOAG: learn the strengths by implicit hypergradients, in rounds of a run, then retrain on all images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from bench.methods.hypergradient import LearnedInTuning, LearnedInTuningSettings
from bench.trials.spec import TrialSpec
from bench.types import Count

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class HOAGSettings(LearnedInTuningSettings):
    """Settings of implicit hypergradients, see `deelbo.objectives.hoag`.

    Attributes:
        rounds: segments of a run, at the end of each of which the strengths take a step.
        iterations: largest number of iterations of conjugate gradients in a round.
        images: number of training images that the Gauss-Newton matrix is made of.
    """

    method: Literal["hoag"] = "hoag"
    rounds: Count = 20
    iterations: Count = 10
    images: Count = 250

    def find_problem(self, prior: str) -> str | None:
        if self.rounds > 1:
            return super().find_problem(prior)
        return "rounds = 1, expected at least 2, as each step is judged in the round after it: set rounds to 20"

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        if training["steps"] > 1:
            return super().find_training_problem(training)
        return "training.steps = 1 has one round, expected at least 2: set training.steps higher, or leave hoag out"


class HOAG(LearnedInTuning):
    """The base with implicit hypergradients, whose linear systems take longer than the training by far."""

    name = "hoag"
    title = "HOAG"
    option_names = ("start", "rounds", "iterations", "images")
    Settings = HOAGSettings
    settings: HOAGSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        from deelbo.objectives.hoag import HOAGMAP
        from deelbo.training.schedule import Schedule

        options = json.loads(spec.options)
        start = dict.fromkeys([group.name for group in groups], options.pop("start"))
        schedule = Schedule(spec.learning_rate, spec.steps, spec.batch_size)
        return HOAGMAP(groups, num_examples, start, schedule.total_steps(num_examples), **options)
