"""Tests of the linear response of weights to strengths: its gradients, the moves along it, and training runs."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Handover, Schedule, make_groups
from deelbo._vectors import flatten, views
from deelbo.data import Split
from deelbo.objectives.stn import ResponseMAP
from deelbo.training.fit import fit

N, H = 12, 1e-5
STRENGTHS = {"backbone": 0.02, "head": 0.3}
SHORT = Schedule(0.05, steps=40, batch_size=32)  # 8 epochs


@pytest.fixture
def objective(problem: Any) -> ResponseMAP:
    """Strengths, and responses that are not zero, of a network away from its prior's mean."""
    groups = make_groups(problem.model, "head", problem.prior)
    problem.move()
    made = ResponseMAP(groups, N, STRENGTHS, spread=0.5, generator=torch.Generator().manual_seed(3))
    for response in made.responses:
        response.data.normal_()
    return made


def shift(objective: ResponseMAP, vector: Tensor, factor: float) -> None:
    """Add ``factor`` times a vector (D,) to the weights."""
    with torch.no_grad():
        for weight, piece in zip(objective.weights, views(vector, objective.weights), strict=True):
            weight.add_(piece, alpha=factor)


def test_gradients_are_finite_differences(problem: Any, objective: ResponseMAP) -> None:
    """With the draws fixed, dL / dtheta_0 and dL / du are central differences of MAP's loss at theta(nu)."""
    draws = 0.5 * torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert float(draws.abs().min()) > 0.05

    def loss() -> float:
        for response, draw in zip(objective.responses, draws.tolist(), strict=True):
            shift(objective, response.detach(), draw)
        total = F.cross_entropy(problem.model(problem.x), problem.y)
        for group, draw in zip(objective.groups, draws.tolist(), strict=True):
            strength = STRENGTHS[group.name] * math.exp(draw)
            total = total + 0.5 * strength * group.prior.squared_distance(flatten(group.weights))
        for response, draw in zip(objective.responses, draws.tolist(), strict=True):
            shift(objective, response.detach(), -draw)
        return float(total.detach())

    before, strengths = flatten(objective.weights), objective.weight_decay()
    with objective.step():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    assert torch.equal(flatten(objective.weights), before)
    assert objective.weight_decay() == strengths
    direction = torch.randn(objective.dim, dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        shift(objective, direction, sign * H)
        ends.append(loss())
        shift(objective, direction, -sign * H)
    slope = float(flatten([w.grad for w in objective.weights]) @ direction)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * H), rel=1e-6)
    for response in objective.responses:
        assert response.grad is not None
        ends = []
        for sign in (1, -1):
            response.data.add_(direction, alpha=sign * H)
            ends.append(loss())
            response.data.add_(direction, alpha=-sign * H)
        assert float(response.grad @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * H), rel=1e-6)


def test_the_direction_is_the_finite_difference_along_the_response(problem: Any, objective: ResponseMAP) -> None:
    """dL_val / dnu_g is the central difference of the validation NLL of theta(nu) in nu_g."""
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    gradient = torch.autograd.grad(F.cross_entropy(problem.model(x), y), objective.weights)
    for found, response in zip(objective.directions(gradient).tolist(), objective.responses, strict=True):
        ends = []
        for sign in (1, -1):
            shift(objective, response.detach(), sign * H)
            ends.append(float(F.cross_entropy(problem.model(x), y).detach()))
            shift(objective, response.detach(), -sign * H)
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * H), rel=1e-6)


def test_weights_move_with_the_strengths(objective: ResponseMAP) -> None:
    """A move of log alpha moves the weights by the responses times it, and by nothing beyond the range of strengths."""
    before = flatten(objective.weights)
    objective.move(torch.tensor([1e-9, -0.7]).double(), 0.5)
    expected = before - 0.5 * objective.responses[0] + 0.5 * objective.responses[1]
    assert torch.allclose(flatten(objective.weights), expected.detach(), rtol=1e-12)
    for _ in range(5):
        objective.move(torch.tensor([0.0, -0.7]).double(), 0.5)
    assert objective.weight_decay()["head"] == pytest.approx(1.0)
    total = math.log(1.0 / STRENGTHS["head"]) - 0.5
    first = objective._log[0] - math.log(STRENGTHS["backbone"]) + 0.5
    expected = expected + total * objective.responses[1] + first * objective.responses[0]
    assert torch.allclose(flatten(objective.weights), expected.detach(), rtol=1e-9)


def test_an_exception_in_a_step_restores_the_weights(objective: ResponseMAP) -> None:
    before, strengths = flatten(objective.weights), objective.weight_decay()
    with pytest.raises(ZeroDivisionError), objective.step():
        _ = 1 / 0
    assert torch.equal(flatten(objective.weights), before)
    assert objective.weight_decay() == strengths


def made(model: nn.Module, **given: Any) -> ResponseMAP:
    start, generator = {"backbone": 1e-3, "head": 1e-3}, torch.Generator().manual_seed(0)
    return ResponseMAP(make_groups(model, "4", "l2-sp"), 160, start, generator=generator, **given)


def test_work_of_a_run(toy_split: Split, toy_model: nn.Module) -> None:
    """Two training steps to a validation gradient, which is 1; the strengths move, and the mean is recommended."""
    result = fit(toy_model, toy_split, made(toy_model), SHORT, test=False)
    assert result.state["gradient_equivalents"] == pytest.approx(40 + 20 + 40 / 32 / 3)
    for name in ("backbone", "head"):
        assert result.state[f"weight_decay_{name}"] != pytest.approx(1e-3, rel=0.1)
        assert result.state[f"mean_weight_decay_{name}"] != result.state[f"weight_decay_{name}"]
    assert 0 < result.seconds["adapt"] < result.seconds["train"]


def test_segments_learn_as_one_run(toy_split: Split, toy_model: nn.Module) -> None:
    """A run that is handed over continues with its responses, draws and strengths, to the bit."""
    kept: list[bytes] = []
    ends = []
    for shares in ((1.0,), (0.3, 1.0)):
        for until in shares:
            model = copy.deepcopy(toy_model)
            handover = Handover(lambda: kept[-1] if kept else None, kept.append) if len(shares) > 1 else None
            objective = made(model)
            result = fit(model, toy_split, objective, SHORT, until=until, handover=handover)
        ends.append((result.metrics, result.state, [p.tolist() for p in (*model.parameters(), *objective.responses)]))
    assert len(kept) == 1
    assert ends[0] == ends[1]


@pytest.mark.parametrize("spread", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_spread_is_refused(spread: float, toy_model: nn.Module) -> None:
    with pytest.raises(ValueError, match="spread must be a number above 0, a standard deviation of log alpha, got"):
        made(toy_model, spread=spread)
