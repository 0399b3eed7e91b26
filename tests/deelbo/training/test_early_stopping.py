"""A constant learning rate, the best epoch of a run by its validation NLL, and runs that stop there for good."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deelbo import MAP, Checkpoint, FitResult, Group, Handover, Isotropic, PhaseClock, Schedule, make_groups
from deelbo.data import Split
from deelbo.objectives.base import Objective
from deelbo.training.evaluation import classification_metrics, predict_logits
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun
from tests.helpers.ridge import Ridge, ridge

SCHEDULE = Schedule(0.05, steps=60, batch_size=32, series_points=4)  # 12 epochs, looks at 3 6 9 12
BEST = replace(SCHEDULE, validation_epoch="best")
NLLS = {3: 2.0, 6: 1.0, 9: 3.0, 12: 1.5}


class Quadratic(Objective):
    """The gradient of a ridge regression's mean NLL, by autograd in float64; the network's own output is constant."""

    def __init__(self, weight: nn.Parameter, problem: Ridge, num_examples: int) -> None:
        super().__init__([Group("all", (weight,), Isotropic(torch.zeros_like(weight.detach())))], num_examples)
        self.weight, self.problem = weight, problem
        self.inputs, self.outputs = torch.tensor(problem.X), torch.tensor(problem.y)

    def regularizer(self) -> Tensor:
        return (self.outputs - self.inputs @ self.weight).square().mean() / (2 * self.problem.noise**2)

    @contextmanager
    def step(self) -> Iterator[None]:
        yield
        (self.weight.grad,) = torch.autograd.grad(self.regularizer(), self.weight)

    def weight_decay(self) -> dict[str, float]:
        return {"all": 0.0}


class Constant(nn.Module):
    """A network whose logits do not depend on its weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4) + 0 * self.weight.sum()


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_gradient_descent_on_ridge_regression(noise: float, toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """theta_t = (I - (I - eta H)^t) H^-1 b from 0 at a constant rate, and the best epoch is that of least fresh NLL.

    It is near 1 / (eta alpha*), with alpha* the best weight decay.
    """
    problem = ridge(num_examples=60, dim=30, scale=0.05, noise=noise)
    model, rate, steps = Constant(30), 0.02, 2000
    objective = Quadratic(model.weight, problem, len(toy_split.train))
    monkeypatch.setattr(TrainingRun, "evaluate", lambda *_: (problem.fresh_nll(model.weight.detach().numpy()), 0.5))
    schedule = Schedule(rate, steps, 200, 0.0, 1e9, series_points=steps, lr_scheduler="constant")
    result = fit(model, toy_split, objective, replace(schedule, validation_epoch="best"), test=False)

    hessian, solution = problem.hessian(), problem.solution(0)
    shrink, left = np.eye(30), []
    for _ in range(steps):
        shrink = shrink @ (np.eye(30) - rate * hessian)
        left.append(solution - shrink @ solution)
    assert np.abs(model.weight.detach().numpy() - left[-1]).max() < 1e-10
    nlls = [problem.fresh_nll(theta) for theta in left]
    assert [row["val_nll"] for row in result.series] == pytest.approx(nlls, rel=1e-10)
    best = int(np.argmin(nlls)) + 1
    assert 1 < best < steps
    assert (result.state["best_epoch"], result.state["best_share"]) == (best, best / steps)
    assert result.metrics["val_nll"] == result.series[best - 1]["val_nll"] < result.series[-1]["val_nll"]
    assert 1 / 3 < best * rate * problem.best_alpha_fresh() < 3


def train(model: nn.Module, split: Split, schedule: Schedule, **given: Any) -> tuple[FitResult, nn.Module]:
    """Train a copy of the model by MAP without weight decay."""
    model = copy.deepcopy(model)
    objective = MAP(make_groups(model, "4", "l2-sp"), 160, {"backbone": 0.0, "head": 0.0})
    return fit(model, split, objective, schedule, seed=3, **given), model


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


def pretend(monkeypatch: pytest.MonkeyPatch, nlls: dict[int, float], hand: list[float] | None = None) -> None:
    """Let the validation after each epoch return an NLL, and take a second of a clock."""

    def evaluation(run: TrainingRun, examples: Any) -> tuple[float, float]:
        if hand is not None:
            hand[0] += 1
        return nlls.get(run.steps_done // run.steps_per_epoch, 0.0), 0.25

    monkeypatch.setattr(TrainingRun, "evaluate", evaluation)


@pytest.mark.parametrize("lr_scheduler", ["cosine", "constant"])
def test_the_learning_rate_of_each_look(lr_scheduler: str, toy_split: Split, toy_model: nn.Module) -> None:
    """A constant rate is the same number after each step; a cosine is the closed form of the whole schedule."""
    result, _ = train(toy_model, toy_split, replace(SCHEDULE, lr_scheduler=lr_scheduler, stop_after=0.75))
    rates = [row["learning_rate"] for row in result.series]
    assert [row["epoch"] for row in result.series] == [3, 6, 9]
    cosine = [0.025 * (1 + math.cos(math.pi * (row["step"] - 1) / 60)) for row in result.series]
    assert rates == (pytest.approx(cosine) if lr_scheduler == "cosine" else [0.05] * 3)


@pytest.mark.parametrize("lr_scheduler", ["cosine", "constant"])
@pytest.mark.parametrize("share", [6 / 12, 5 / 12, 0.01])
def test_a_run_that_stops_for_good(share: float, lr_scheduler: str, toy_split: Split, toy_model: nn.Module) -> None:
    """It has the bits of the whole run at that epoch, and the metrics of a whole run."""
    schedule = replace(SCHEDULE, lr_scheduler=lr_scheduler)
    segment, then = train(toy_model, toy_split, schedule, until=share)
    stopped, model = train(toy_model, toy_split, replace(schedule, stop_after=share))
    assert same_bits(model, then)
    assert stopped.steps == segment.steps == 5 * math.ceil(12 * share)
    assert "test_nll" not in segment.metrics
    logits = predict_logits(model, toy_split.test.inputs, toy_split.transform)
    assert stopped.metrics == segment.metrics | classification_metrics(logits, toy_split.test, "test")


def test_segments_of_a_run_that_stops(toy_split: Split, toy_model: nn.Module) -> None:
    """Segments end where the run stops, even if the last one asks for more, and only the others are saved."""
    schedule, saved = replace(BEST, stop_after=0.75), list[bytes]()
    whole, expected = train(toy_model, toy_split, schedule)
    for until, writes in ((0.25, 1), (0.5, 2), (1.0, 2)):
        handover = Handover(lambda: saved[-1] if saved else None, saved.append)
        result, model = train(toy_model, toy_split, schedule, until=until, handover=handover)
        assert len(saved) == writes
    assert same_bits(model, expected)
    assert (result.metrics, result.state) == (whole.metrics, whole.state)
    assert result.steps == 45


def test_the_best_epoch(toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation metrics are those of the lowest finite NLL, the first of equals; training and test stay the last's."""
    last, model = train(toy_model, toy_split, SCHEDULE)
    best, same = train(toy_model, toy_split, BEST)
    row = min(best.series, key=lambda row: row["val_nll"])
    assert same_bits(model, same)
    names = ("val_nll", "val_acc")
    assert best.metrics == last.metrics | {name: row[name] for name in names}
    added = {"best_epoch": row["epoch"], "best_share": row["epoch"] / 12}
    work = last.state["gradient_equivalents"] + 3 * 40 / 32 / 3  # four evaluations, not one
    added["gradient_equivalents"] = pytest.approx(work)
    assert best.state == last.state | added
    for nlls, epoch in ((NLLS, 6), ({3: math.nan, 6: 2.0, 9: 2.0, 12: math.inf}, 6), ({3: 0.1}, 6)):
        pretend(monkeypatch, nlls)
        result, _ = train(toy_model, toy_split, BEST, test=False)
        assert (result.status, result.state["best_epoch"]) == ("completed", epoch)
        assert result.metrics["val_nll"] == nlls.get(epoch, 0.0)


def test_a_run_without_a_finite_look(toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, dict.fromkeys(NLLS, math.nan))
    result, _ = train(toy_model, toy_split, BEST)
    assert result.status == "diverged"
    assert math.isnan(result.metrics["val_nll"])
    assert "best_epoch" not in result.state


class Killed(Exception):  # noqa: N818
    """Ends a run as the death of its process would."""


def test_the_best_epoch_of_a_resumed_run(
    toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks before a checkpoint count: here the best one, at epoch 6, is of a process that died after epoch 7."""
    pretend(monkeypatch, NLLS)
    saved = list[bytes]()

    def write(data: bytes) -> None:
        saved.append(data)
        if len(saved) == 7:
            raise Killed

    schedule = replace(BEST, lr_scheduler="constant")
    undisturbed, expected = train(toy_model, toy_split, schedule)
    with pytest.raises(Killed):
        train(toy_model, toy_split, schedule, checkpoint=Checkpoint(0, write, lambda: None))
    checkpoint = Checkpoint(math.inf, write, lambda: saved[-1])
    result, model = train(toy_model, toy_split, schedule, checkpoint=checkpoint)
    assert checkpoint.resumed_at_step == 35
    assert same_bits(model, expected)
    assert result.metrics == undisturbed.metrics
    assert result.state == undisturbed.state
    assert result.state["best_epoch"] == 6


@pytest.mark.parametrize(("schedule", "evaluate_seconds"), [(SCHEDULE, 1), (BEST, 4)])
def test_validation_that_selects_an_epoch_counts(
    schedule: Schedule, evaluate_seconds: int, toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of four looks takes a second: the last one alone is the method's, or all if they select the epoch."""
    hand = [0.0]
    pretend(monkeypatch, NLLS, hand)
    result, _ = train(toy_model, toy_split, schedule, clock=PhaseClock(now=lambda: hand[0]), test=False)
    assert (result.seconds["evaluate"], result.seconds["monitor"]) == (evaluate_seconds, 4 - evaluate_seconds)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr_scheduler": "step"}, "lr_scheduler must be one of cosine, constant, got 'step'"),
        ({"validation_epoch": "first"}, "validation_epoch must be one of last, best, got 'first'"),
        ({"stop_after": 0}, "stop_after must be a share of the epochs, above 0 and at most 1, got 0"),
        ({"stop_after": math.nan}, "stop_after must be a share of the epochs, above 0 and at most 1, got nan"),
    ],
)
def test_impossible_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Schedule(0.1, **setting)
