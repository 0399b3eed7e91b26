"""Bayesian optimization: Optuna's samplers choose each configuration by the results of all before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field

from bench.methods.base import metric_rank
from bench.methods.sequential import SequentialMethod, SequentialSettings, derived_rng
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec, TrialTemplate
from bench.types import Count, Flag, Positive

Point = dict[str, float]
Sampler = Literal["gp", "tpe"]


def _box(box: Any) -> Any:
    if box[0] >= box[1]:
        raise ValueError("must be [min, max], min below max")
    return box


Box = Annotated[tuple[Positive, Positive], AfterValidator(_box)]
Axis = tuple[float, ...]  # lower and upper bound of a range; or the points of a grid, rising


class BayesianOptimizationSettings(SequentialSettings):
    """Search of the logarithms of the learning rate, backbone's alpha (PTYL: lambda) and head's beta, or of a grid."""

    method: Literal["bo"] = "bo"
    packages: ClassVar[tuple[str, ...]] = ("optuna",)
    trials: Count = 36
    sampler: Sampler = "gp"
    startup: Count = 10
    learning_rate: Box = (1e-4, 1e-1)
    alpha: Box = (1e-6, 1e-2)
    beta: Box = (1e-6, 1e-2)
    lambda_: Annotated[Box | None, Field(alias="lambda")] = None
    tied: Flag = False
    grid: Flag = False

    def find_problem(self, prior: str) -> str | None:
        if self.trials < 2:
            return f"trials = {self.trials}, which leaves nothing to learn from: set trials to 2 or more"
        if self.startup >= self.trials:
            return (
                f"startup = {self.startup} of trials = {self.trials}, which leaves none to the sampler: set startup to "
                f"{self.trials - 1} or less, or trials higher"
            )
        if self.grid and self.trials > (size := self.size(prior)):
            return (
                f"trials = {self.trials} on a grid of {size} with prior {prior}, each point once: set trials to {size} "
                "or fewer, or make the grid larger"
            )
        if prior == "ptyl" and not self.grid and self.lambda_ is None:
            return (
                "prior ptyl, whose scale lambda needs a range of its own: give lambda, such as [1, 1e9], or set priors "
                "to l2-zero and l2-sp"
            )
        return super().find_problem(prior)

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        if training["train"] == "head" and not (self.grid or self.tied):
            return "tied = false with training.train = head, which has no alpha to search: set tied to true"
        return super().find_training_problem(training)

    def axes(self, prior: str) -> dict[str, Axis]:
        """Return what is searched with that prior: fields of `TrialSpec`, without the head's if it is tied."""
        ptyl = prior == "ptyl"
        if self.grid:
            backbone = self.ptyl_lambdas if ptyl else self.weight_decays
            axes = [tuple(sorted(axis)) for axis in (self.learning_rates, backbone, self.weight_decays)]
        else:
            axes = [self.learning_rate, (self.lambda_ or ()) if ptyl else self.alpha, self.beta]
        tied = not ptyl and (prior not in self.untied if self.grid else self.tied)
        names = ["learning_rate", "prior_scale" if ptyl else "weight_decay", "head_weight_decay"]
        return dict(zip(names[:2] if tied else names, axes, strict=False))


class Observation(NamedTuple):
    """The validation NLL at a point in nats; inf if it diverged, None if it failed."""

    point: Point
    value: float | None


def suggest(
    axes: Mapping[str, Axis], history: Sequence[Observation], sampler: Sampler, startup: int, seed: int, grid: bool
) -> Point:
    """Return the next point by a new Optuna study with that history; a function of the arguments only.

    On a grid a point that was tried is replaced by the nearest that was not: by the sum of steps over the axes. A
    diverged run counts as worse than the worst by a tenth of the range seen. Optuna would ignore a failed trial and
    could return to where runs diverge; an infinite or huge value would hide all differences among the others.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places = {name: {value: i for i, value in enumerate(values)} for name, values in axes.items()}
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        if grid
        else optuna.distributions.FloatDistribution(values[0], values[1], log=True)
        for name, values in axes.items()
    }
    make = optuna.samplers.GPSampler if sampler == "gp" else optuna.samplers.TPESampler
    if sampler == "gp":
        import torch

        torch.set_num_threads(1)  # timed trials run at the same time
    study = optuna.create_study(sampler=make(seed=seed, n_startup_trials=startup))
    finite = [seen.value for seen in history if seen.value is not None and math.isfinite(seen.value)]
    worse = max(finite) + ((max(finite) - min(finite)) / 10 or 1.0) if finite else 0.0
    for seen in history:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL if seen.value is None else optuna.trial.TrialState.COMPLETE,
                params={name: places[name][value] if grid else value for name, value in seen.point.items()},
                distributions=space,
                value=seen.value if seen.value is None or math.isfinite(seen.value) else worse,
            )
        )
    found: dict[str, Any] = study.ask(space).params
    if not grid:
        return found
    tried = {tuple(places[name][value] for name, value in seen.point.items()) for seen in history}
    left = [place for place in product(*map(range, map(len, axes.values()))) if place not in tried]
    if not left:
        raise ValueError(f"all {len(tried)} points of the grid were tried: set trials lower")
    nearest = min(left, key=lambda place: sum(abs(i - found[name]) for i, name in zip(place, axes, strict=True)))
    return {name: values[i] for i, (name, values) in zip(nearest, axes.items(), strict=True)}


class BayesianOptimization(SequentialMethod):
    """Choose each configuration once the result of the one before it is known.

    Those that were chosen before are read from their records (`load_history`): a benchmark resumed on another machine
    keeps them although the last digits of a Gaussian process differ there, and a report does not need Optuna.
    """

    name = "bo"
    title = "BO"
    Settings = BayesianOptimizationSettings
    settings: BayesianOptimizationSettings

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
        self._axes = settings.axes(template.cell.prior)
        options = settings.model_dump(include={"grid", "sampler", "seed", "startup"})
        self._options = {"axes": self._axes} | options
        self._history: list[Observation] = []
        self._known_points: dict[int, Point] = {}
        self._next = 0
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return ()  # the first is chosen by `ask` too, after `load_history`

    def load_history(self, records: Sequence[TrialRecord]) -> None:
        for record in records:
            number = record.spec.number
            if record.spec.stage != "tune" or number is None:
                continue
            point = {name: getattr(record.spec, name) for name in self._axes}
            if None not in point.values() and record.spec == self._spec(number, point):
                self._known_points[number] = point

    def ask(self) -> TrialSpec | None:
        if (spec := super().ask()) is not None:
            return spec
        if self._next == self.size or self._next > len(self._history):
            return None
        number = self._next
        self._next += 1
        if (point := self._known_points.get(number)) is None:
            # a report does not use the choice, and must not import Optuna and torch for it
            arbitrary = {name: values[0] for name, values in self._axes.items()}
            point = arbitrary if self.dry_run else self._choose(number)
        return self._spec(number, point)

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage == "tune":
            failed, value = metric_rank(record)
            point = {name: getattr(record.spec, name) for name in self._axes}
            self._history.append(Observation(point, None if failed else value))
        return super().next_trials(record)

    def _choose(self, number: int) -> Point:
        settings = self.settings
        seed = derived_rng(settings.seed, self.cell, number).getrandbits(32)
        return suggest(self._axes, self._history, settings.sampler, settings.startup, seed, settings.grid)

    def _spec(self, number: int, point: Point) -> TrialSpec:
        head = point.get("head_weight_decay", point.get("weight_decay"))
        fields: dict[str, Any] = point | {"head_weight_decay": head}
        return self.spec("tune", number=number, options=self._options, **fields)
