"""Tests of MAP, ELBo and DE ELBo: gradients of a step against autograd of the whole objective, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from deelbo import ELBO, MAP, DataEmphasizedELBO, Group, Isotropic, make_groups

N, D, SIGMA = 50, 43, 0.05
Bound = Callable[[Any, torch.Generator | None], ELBO]


def plain(problem: Any, generator: torch.Generator | None = None) -> ELBO:
    return ELBO(make_groups(problem.model, "head", problem.prior), N, sigma=SIGMA, generator=generator)


def emphasized(problem: Any, generator: torch.Generator | None = None) -> ELBO:
    return DataEmphasizedELBO(make_groups(problem.model, "head", problem.prior), N, sigma=SIGMA, generator=generator)


def emphasized_by_3(problem: Any, generator: torch.Generator | None = None) -> ELBO:
    groups = make_groups(problem.model, "head", problem.prior)
    return DataEmphasizedELBO(groups, N, kappa=3.0, sigma=SIGMA, generator=generator)


BOUNDS = pytest.mark.parametrize(
    ("make", "share"), [(plain, 1 / N), (emphasized, 1 / D), (emphasized_by_3, 1 / (3 * N))]
)


@BOUNDS
@pytest.mark.parametrize("detach", [False, True], ids=["through-scale", "scale-detached"])
def test_gradients_of_a_bound(problem: Any, make: Bound, share: float, detach: bool) -> None:
    """A step's gradients are those of mean NLL at the draw + KL / (kappa N), with autograd through s* or not."""
    objective = make(problem, torch.Generator().manual_seed(7))
    problem.move()
    expected = problem.bound(SIGMA, 7, share, detach)
    with objective.step():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    for name, parameter in problem.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10)
    (rho,) = objective.parameters()
    torch.testing.assert_close(rho.grad, expected["rho"], rtol=1e-8, atol=1e-10)


@BOUNDS
def test_state_of_a_bound(problem: Any, make: Bound, share: float) -> None:
    """`describe` has the dense KL / (kappa N), its scales, and the weight decay that its gradient equals."""
    objective = make(problem, None)
    problem.move()
    state, sigma = objective.describe(), torch.tensor(SIGMA, dtype=torch.float64)
    weights = problem.weights()
    kl = problem.kl(weights, sigma)
    assert state["regularizer"] == pytest.approx(share * kl.item(), rel=1e-9)
    assert float(objective.regularizer()) == state["regularizer"]
    assert state["kappa"] == pytest.approx(1 / (share * N))
    assert state["sigma"] == pytest.approx(SIGMA)
    gradients = torch.autograd.grad(share * kl, list(weights.values()))
    for name, got in zip(["backbone", "head"], [gradients[:2], gradients[2:]], strict=True):
        vector, mean, covariance = problem.groups(weights)[name]
        precision, d = torch.linalg.inv(covariance), (vector - mean).detach()
        assert state[f"dim_{name}"] == len(d)
        assert state[f"trace_precision_{name}"] == pytest.approx(float(precision.trace()))
        assert state[f"log_det_{name}"] == pytest.approx(float(torch.logdet(covariance)))
        assert state[f"squared_distance_{name}"] == pytest.approx(float(d @ precision @ d))
        decayed = state[f"weight_decay_{name}"] * precision @ d
        torch.testing.assert_close(torch.cat([g.reshape(-1) for g in got]), decayed, rtol=1e-7, atol=1e-10)
        assert state[f"weight_decay_{name}"] == pytest.approx(share / state[f"scale_{name}"])
        assert objective.scales()[name] == state[f"scale_{name}"]


def test_a_bound_is_bayesian_and_learns_one_number(problem: Any) -> None:
    """A bound is Bayesian and gives rho to the optimizer; MAP is and does neither."""
    groups = make_groups(problem.model, "head", problem.prior)
    bound, point = ELBO(groups, N), MAP(groups, N, {"backbone": 0.1, "head": 0.1})
    assert bound.is_bayesian
    assert bound.parameters() == [bound.posterior.rho]
    assert not point.is_bayesian
    assert point.parameters() == []


def test_gradients_of_map(problem: Any) -> None:
    """A MAP step's gradients are those of mean NLL - 1/N log prior, alpha = 1/(N lambda), beta = 1/(N tau)."""
    lam, tau = 0.7, 3.0
    groups = make_groups(problem.model, "head", problem.prior)
    objective = MAP(groups, N, {"backbone": 1 / (N * lam), "head": 1 / (N * tau)})
    problem.move()
    weights = problem.weights()
    log_prior = sum(
        MultivariateNormal(mean, scale * covariance).log_prob(vector)
        for (vector, mean, covariance), scale in zip(problem.groups(weights).values(), (lam, tau), strict=True)
    )
    expected = torch.autograd.grad(problem.nll(weights) - log_prior / N, list(weights.values()))
    with objective.step():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    own = dict(problem.model.named_parameters())
    for name, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(own[name].grad, gradient, rtol=1e-9, atol=1e-11)


def test_maps_regularizer_is_the_log_prior(problem: Any) -> None:
    """MAP's regularizer differs from -1/N log prior by a constant."""
    scales = {"backbone": 0.7, "head": 3.0}
    objective = MAP(
        make_groups(problem.model, "head", problem.prior), N, {name: 1 / (N * s) for name, s in scales.items()}
    )
    offsets = []
    for _ in range(3):
        problem.move()
        log_prior = sum(
            MultivariateNormal(mean, scales[name] * covariance).log_prob(vector)
            for name, (vector, mean, covariance) in problem.groups(problem.weights()).items()
        )
        offsets.append(float(objective.regularizer()) + log_prior.item() / N)
    assert offsets == pytest.approx([offsets[0]] * 3, rel=1e-10)
    assert objective.describe()["regularizer"] == float(objective.regularizer())


def test_map_without_weight_decay_is_the_nll(problem: Any) -> None:
    """With both strengths 0, MAP's gradients have the bits of the NLL's, and its regularizer is 0."""
    objective = MAP(make_groups(problem.model, "head", problem.prior), N, {"backbone": 0, "head": 0})
    problem.move()
    loss = F.cross_entropy(problem.model(problem.x), problem.y)
    expected = torch.autograd.grad(loss, list(problem.model.parameters()))
    with objective.step():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(problem.model.parameters(), expected, strict=True))
    assert float(objective.regularizer()) == 0


@pytest.mark.parametrize("kind", ["map", "bound"])
def test_a_step_without_backward_has_no_gradients(problem: Any, kind: str) -> None:
    """Without ``backward``, old gradients are cleared and the regularizer adds none."""
    groups = make_groups(problem.model, "head", problem.prior)
    objective = ELBO(groups, N) if kind == "bound" else MAP(groups, N, {"backbone": 1.0, "head": 1.0})
    trained = [*problem.model.parameters(), *objective.parameters()]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    with objective.step():
        problem.model(problem.x)
    assert all(p.grad is None for p in trained)


def group(name: str, *weights: nn.Parameter) -> Group:
    return Group(name, weights, Isotropic(torch.zeros(sum(w.numel() for w in weights))))


def test_a_group_and_its_prior_must_agree() -> None:
    """A prior over another number of weights than its group has is refused with both numbers."""
    with pytest.raises(ValueError, match="group 'head' has 6 weights, its prior 5"):
        Group("head", (nn.Parameter(torch.zeros(2, 3)),), Isotropic(torch.zeros(5)))


@pytest.mark.parametrize("num_examples", [0, -3, 2.5, True])
@pytest.mark.parametrize("objective", [ELBO, DataEmphasizedELBO])
def test_num_examples_must_be_a_count(objective: type[ELBO], num_examples: Any) -> None:
    """An N that is not a whole number of at least 1 is refused."""
    with pytest.raises(ValueError, match="num_examples must be a whole number of at least 1"):
        objective([group("all", nn.Parameter(torch.zeros(3)))], num_examples)


@pytest.mark.parametrize("kappa", [0.0, -1.0, float("inf"), float("nan")])
def test_kappa_must_be_positive(kappa: float) -> None:
    """A kappa that is not a positive number is refused."""
    with pytest.raises(ValueError, match="kappa must be a positive number"):
        ELBO([group("all", nn.Parameter(torch.zeros(3)))], N, kappa)


def test_a_weight_in_two_groups_is_refused() -> None:
    """A bound whose groups share a weight is refused, and so is one without groups."""
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="hold 6 weights of which 3 are distinct"):
        ELBO([group("one", weight), group("two", weight)], N)
    with pytest.raises(ValueError, match="at least one group"):
        DataEmphasizedELBO([], N)


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ({}, r"must name the groups \['all'\], got \[\]"),
        ({"all": 1.0, "head": 1.0}, r"got \['all', 'head'\]"),
        ({"all": -1.0}, "weight decay of 'all' must be a number >= 0, got -1.0"),
        ({"all": float("nan")}, "must be a number >= 0"),
        ({"all": float("inf")}, "must be a number >= 0"),
    ],
)
def test_maps_strengths_must_fit(strengths: dict[str, float], words: str) -> None:
    """MAP refuses a missing, surplus, negative or infinite strength."""
    with pytest.raises(ValueError, match=words):
        MAP([group("all", nn.Parameter(torch.zeros(3)))], N, strengths)
