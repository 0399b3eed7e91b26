"""Tests of the learned strengths in ridge regression, whose best strengths have closed forms.

The bounds' q is isotropic, and its sigma depends on the mean of the Hessian's eigenvalues only. So the ELBo's strength
is near the evidence's if there are fewer weights than examples and the columns have equal scale (8 % above in this
problem), and too strong if D > N. The DE ELBo weights the likelihood by D/N and behaves the other way round: near for
D > N, too strong by more than N/D for D < N, where the prior's mean is a minimum of its own.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deelbo import ELBO, MAP, DataEmphasizedELBO, Group, Isotropic
from deelbo.objectives.base import Objective
from deelbo.objectives.hypergradient import HypergradientMAP
from deelbo.objectives.stn import ResponseMAP
from tests.helpers.ridge import Ridge, ridge

WIDE = {"num_examples": 30, "dim": 60}  # more weights than examples, as in a network
TALL = {"num_examples": 60, "dim": 30}


def weights(problem: Ridge) -> nn.Parameter:
    return nn.Parameter(torch.zeros(problem.dim, dtype=torch.float64))


def group(weight: nn.Parameter) -> list[Group]:
    return [Group("all", (weight,), Isotropic(torch.zeros_like(weight.detach())))]


def nll_of(inputs: Tensor, outputs: Tensor, noise: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: (outputs - inputs @ weight).square().mean() / (2 * noise**2)


def training_nll(problem: Ridge) -> Callable[[Tensor], Tensor]:
    return nll_of(torch.tensor(problem.X), torch.tensor(problem.y), problem.noise)


def trained(problem: Ridge, make: Callable[[list[Group], int], Objective], steps: int = 800) -> float:
    """Return the strength after training on all rows, with a learning rate that falls to 0."""
    weight = weights(problem)
    objective = make(group(weight), problem.num_examples)
    optimizer = torch.optim.Adam([weight, *objective.parameters()], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    nll = training_nll(problem)
    for _ in range(steps):
        with objective.step():
            nll(weight).backward()
        optimizer.step()
        cosine.step()
    return objective.weight_decay()["all"]


def test_the_oracle_is_consistent() -> None:
    """Leave-one-out equals refitting without each row; evidence and solution agree with MAP's objective."""
    problem, alpha = ridge(num_examples=12, dim=5), 0.1
    left_out = []
    for i in range(12):
        rows = [j for j in range(12) if j != i]
        inputs, outputs = problem.X[rows], problem.y[rows]
        other = Ridge(inputs, outputs, problem.noise, problem.X[i : i + 1], problem.y[i : i + 1])
        left_out.append(other.fresh_nll(other.solution(alpha * 12 / 11)))
    assert problem.loo(alpha) == pytest.approx(sum(left_out) / 12, rel=1e-10)
    weight = nn.Parameter(torch.tensor(problem.solution(alpha)))
    objective = MAP(group(weight), 12, {"all": alpha})
    with objective.step():
        training_nll(problem)(weight).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-12
    covariance = torch.eye(12).double() + torch.tensor(problem.X @ problem.X.T) / (12 * alpha)
    density = torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance)
    assert problem.evidence(alpha) == pytest.approx(float(density.log_prob(torch.tensor(problem.y))) / 12, rel=1e-10)
    best = problem.best_alpha_evidence()
    assert problem.evidence(best) >= max(problem.evidence(best * f) for f in (0.9, 1.1))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_de_elbo_with_more_weights_than_examples(seed: int) -> None:
    """With D > N the DE ELBo is within 10 % of the evidence's strength and 1 % of the least NLL on fresh rows."""
    problem = ridge(seed=seed, **WIDE)
    alpha = trained(problem, DataEmphasizedELBO)
    assert alpha == pytest.approx(problem.best_alpha_evidence(), rel=0.1)
    least = problem.fresh_nll(problem.solution(problem.best_alpha_fresh()))
    assert problem.fresh_nll(problem.solution(alpha)) < 1.01 * least


@pytest.mark.parametrize("seed", [1, 2])
def test_fewer_weights_than_examples(seed: int) -> None:
    """With D < N the ELBo is within 20 % of the evidence's strength, the DE ELBo N/D to 1.5 N/D too strong."""
    problem = ridge(seed=seed, **TALL)
    evidence = problem.best_alpha_evidence()
    assert trained(problem, ELBO) == pytest.approx(evidence, rel=0.2)
    assert 2 < trained(problem, DataEmphasizedELBO) / evidence < 3


def test_the_elbo_is_too_strong_with_more_weights_than_examples() -> None:
    """With D > N the ELBo is twice as strong as the evidence's, so a network needs a weighted likelihood."""
    problem = ridge(**WIDE)
    assert 1.8 < trained(problem, ELBO) / problem.best_alpha_evidence() < 2.6


@pytest.mark.parametrize("start", [1e-7, 1.0])
def test_hypergradients_find_the_best_validation_nll(start: float) -> None:
    """From far above and below, hypergradients end within 2 % of the least validation NLL."""
    problem = ridge(num_examples=60, dim=60, fresh=500)
    weight = weights(problem)
    objective = HypergradientMAP(group(weight), 60, {"all": start}, rate=0.1)
    train = training_nll(problem)
    validation = nll_of(torch.tensor(problem.fresh_x), torch.tensor(problem.fresh_y), problem.noise)
    optimizer = torch.optim.SGD([weight], lr=0.2, momentum=0.9, nesterov=True)
    for step in range(1500):
        with objective.step():
            train(weight).backward()
        optimizer.step()
        if step % 5 == 0:
            slope = torch.autograd.grad(validation(weight), [weight])
            objective.move(objective.directions(slope), 0.1 if step < 750 else 0.02)
    least = problem.fresh_nll(problem.solution(problem.best_alpha_fresh()))
    assert problem.fresh_nll(problem.solution(objective.weight_decay()["all"])) < 1.02 * least
    assert problem.fresh_nll(problem.solution(start)) > 1.5 * least


def test_the_response_is_the_derivative_of_the_solution() -> None:
    """With small draws u is within 5 % of -alpha (H + alpha I)^-1 theta(alpha), in the norm of H + alpha I."""
    problem, alpha = ridge(num_examples=60, dim=60), 0.1
    weight = weights(problem)
    objective = ResponseMAP(group(weight), 60, {"all": alpha}, generator=torch.Generator().manual_seed(0))
    train = training_nll(problem)
    optimizer = torch.optim.SGD([weight, *objective.parameters()], lr=0.2, momentum=0.9, nesterov=True)
    for _ in range(4000):
        with objective.step():
            train(weight).backward()
        optimizer.step()
    curvature = torch.tensor(problem.hessian()) + alpha * torch.eye(60).double()
    expected = -alpha * torch.linalg.solve(curvature, torch.tensor(problem.solution(alpha)))
    error = objective.responses[0].detach() - expected
    assert float(error @ curvature @ error) < 0.05**2 * float(expected @ curvature @ expected)


@pytest.mark.parametrize("start", [1e-7, 1.0])
def test_the_response_finds_the_best_validation_nll(start: float) -> None:
    """From far above and below, moves along the response end within 2 % of the least validation NLL."""
    problem = ridge(num_examples=60, dim=60, fresh=500)
    weight = weights(problem)
    objective = ResponseMAP(group(weight), 60, {"all": start}, generator=torch.Generator().manual_seed(0))
    train = training_nll(problem)
    validation = nll_of(torch.tensor(problem.fresh_x), torch.tensor(problem.fresh_y), problem.noise)
    optimizer = torch.optim.SGD([weight, *objective.parameters()], lr=0.2, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1500)
    for step in range(1, 1501):
        with objective.step():
            train(weight).backward()
        optimizer.step()
        cosine.step()
        if objective.should_adapt(step):
            objective.move(objective.directions(torch.autograd.grad(validation(weight), [weight])), 0.1)
    least = problem.fresh_nll(problem.solution(problem.best_alpha_fresh()))
    assert problem.fresh_nll(problem.solution(objective.weight_decay()["all"])) < 1.02 * least
    assert problem.fresh_nll(problem.solution(start)) > 1.5 * least
