"""The noise's end and the start at a wanted strength: a frozen ELBo against MAP, and alpha at the first step."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deelbo
from deelbo import ELBO, MAP, DataEmphasizedELBO, make_groups

N = 50


@pytest.fixture
def frozen(problem: Any) -> ELBO:
    """Return a bound over the problem's weights that is frozen after they have moved."""
    groups = make_groups(problem.model, "head", problem.prior)
    objective = DataEmphasizedELBO(groups, N, sigma=0.05, generator=torch.Generator().manual_seed(3))
    problem.move()
    objective.freeze()
    return objective


def gradients(problem: Any, objective: Any) -> list[torch.Tensor]:
    with objective.step():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    return [p.grad.clone() for p in problem.model.parameters()]


def test_a_frozen_step_is_maps(problem: Any, frozen: ELBO) -> None:
    """Its gradients equal those of MAP with the frozen strengths to 1e-10, wherever the weights go; sigma has none."""
    strengths = frozen.weight_decay()
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel()).double()).view_as(parameter))
    assert frozen.weight_decay() == strengths
    expected = gradients(problem, MAP(frozen.groups, N, strengths))
    for got, wanted in zip(gradients(problem, frozen), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    assert frozen.posterior.rho.grad is None


def test_the_frozen_regularizer_is_kl_at_the_frozen_scales(problem: Any, frozen: ELBO) -> None:
    """It is KL(q || p) / (kappa N) with the scales of the moment of freezing, which the record keeps."""
    scales = frozen.scales()
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(1.5)
    sigma = frozen.posterior.sigma
    kl = sum(
        g.prior.kl(torch.cat([w.detach().reshape(-1) for w in g.weights]), sigma, scales[g.name]) for g in frozen.groups
    )
    assert float(frozen.regularizer()) == pytest.approx(float(kl) / (frozen.kappa * N), rel=1e-12)
    state = frozen.describe()
    assert state["regularizer"] == float(frozen.regularizer())
    for name, scale in scales.items():
        assert state[f"scale_{name}"] == scale
        assert state[f"weight_decay_{name}"] == pytest.approx(1 / (frozen.kappa * N * scale), rel=1e-12)


def test_a_second_freeze_changes_nothing(problem: Any, frozen: ELBO) -> None:
    strengths = frozen.weight_decay()
    problem.move()
    frozen.freeze()
    assert frozen.weight_decay() == strengths


def test_a_frozen_bound_still_draws_for_evaluation(problem: Any, frozen: ELBO) -> None:
    weights = [p.detach().clone() for p in problem.model.parameters()]
    with torch.no_grad(), frozen.step():
        assert not torch.equal(next(problem.model.parameters()), weights[0])
    assert all(torch.equal(p, w) for p, w in zip(problem.model.parameters(), weights, strict=True))


@pytest.mark.parametrize("alpha", [1e-2, 3.0])
@pytest.mark.parametrize("kappa", [None, 1.0])
def test_the_strength_at_the_start(problem: Any, alpha: float, kappa: float | None) -> None:
    """With the backbone at the prior's mean its learned strength is ``start_alpha``, for each prior and kappa."""
    groups = make_groups(problem.model, "head", problem.prior)
    (backbone,) = (g for g in groups if g.name == "backbone")
    with torch.no_grad():
        for weight, value in zip(
            backbone.weights, backbone.prior.mean.split([w.numel() for w in backbone.weights]), strict=True
        ):
            weight.copy_(value.view_as(weight))
    objective = DataEmphasizedELBO(groups, N, kappa=kappa, start_alpha=alpha)
    assert objective.weight_decay()["backbone"] == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_impossible_strengths_at_the_start(problem: Any, alpha: float) -> None:
    with pytest.raises(ValueError, match="start_alpha must be a positive number"):
        ELBO(make_groups(problem.model, "head", problem.prior), N, start_alpha=alpha)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_quiet_end_of_a_loop(blocks: int) -> None:
    """`LearnedL2.freeze` makes each later step MAP's, whatever momentum sigma has; it is saved and loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    reg = deelbo.LearnedL2(model, num_examples=6, head="2", sigma=0.1)
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9)

    def step() -> None:
        for _ in range(blocks):
            with reg.sample(accumulate=blocks > 1):
                (F.cross_entropy(model(x), y) / blocks).backward()
        opt.step()

    for _ in range(5):
        step()
    reg.freeze()
    sigma, strengths = reg.sigma, reg.weight_decay()
    optimizer_state = [opt.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    twin = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    twin.load_state_dict(model.state_dict())
    plain = MAP(
        [
            deelbo.Group(g.name, tuple(twin.get_parameter(n) for n in names), g.prior)
            for g, names in zip(reg.groups, (["0.weight", "0.bias"], ["2.weight", "2.bias"]), strict=True)
        ],
        6,
        strengths,
    )
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for parameter, buffer in zip(twin.parameters(), optimizer_state, strict=True):
        other.state[parameter]["momentum_buffer"] = buffer
    for _ in range(4):
        step()
        with plain.step():
            F.cross_entropy(twin(x), y).backward()
        other.step()
    assert reg.sigma == sigma
    assert float(torch.nn.functional.softplus(reg.state_dict()["rho"])) == pytest.approx(sigma, rel=1e-12)
    for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    with reg.sample(accumulate=blocks > 1):
        F.cross_entropy(model(x), y).backward()
    assert reg.sigma == pytest.approx(sigma, rel=1e-12)
    again = deelbo.LearnedL2(twin, num_examples=6, head="2")
    again.load_state_dict(reg.state_dict())
    assert again.is_frozen
    assert again.weight_decay() == strengths
