"""Tests of `LearnedL2`: gradients, training loop, learned strengths, and state dict."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Isotropic, LearnedL2, LowRank


@pytest.mark.parametrize("kappa", [None, 0.4])
def test_gradients_are_those_of_the_whole_objective(problem: Any, kappa: float | None) -> None:
    """The gradients are autograd's of mean NLL at the draw + KL / (kappa N) at lambda* and tau*."""
    generator = torch.Generator().manual_seed(11)
    reg = LearnedL2(problem.model, 50, problem.prior, "head", kappa, sigma=0.05, generator=generator)
    problem.move()
    expected = problem.bound(0.05, 11, share=1 / 43 if kappa is None else 1 / (kappa * 50), detach=False)
    with reg.sample():
        F.cross_entropy(problem.model(problem.x), problem.y).backward()
    for name, parameter in problem.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(reg.parameters()[0].grad, expected["rho"], rtol=1e-8, atol=1e-10)


def test_learned_numbers(problem: Any) -> None:
    """lambda_ and tau are the closed forms in the dense matrices, sigma is the posterior's."""
    reg = LearnedL2(problem.model, 50, problem.prior, "head", sigma=0.05)
    problem.move()
    (w, mean, covariance), (v, _, _) = problem.groups(problem.weights()).values()
    w, v = w.detach(), v.detach()
    quadratic = (w - mean) @ torch.linalg.solve(covariance, w - mean)
    assert reg.lambda_ == pytest.approx(float(0.05**2 * torch.linalg.inv(covariance).trace() + quadratic) / 25)
    assert reg.tau == pytest.approx(0.05**2 + float(v.square().sum()) / 18)
    assert reg.sigma == pytest.approx(0.05)


def test_without_a_head_tau_is_nan() -> None:
    """Without a head tau is NaN, and lambda_ is NaN if all weights are head."""
    model = nn.Sequential(nn.Linear(3, 2))
    assert math.isnan(LearnedL2(model, 5).tau)
    assert not math.isnan(LearnedL2(model, 5).lambda_)
    assert math.isnan(LearnedL2(model, 5, head="0").lambda_)
    assert not math.isnan(LearnedL2(model, 5, head="0").tau)


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp"])
def test_the_drop_in_loop(prior: str) -> None:
    """The docstring's loop trains: the loss falls, sigma moves, lambda* and tau* stay finite and positive."""
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(2, 16), nn.Tanh()))
    model.add_module("fc", nn.Linear(16, 2))
    inputs = torch.randn(256, 2)
    targets = (inputs.sum(1) > 0).long()
    loader = list(zip(inputs.split(64), targets.split(64), strict=True))
    before = F.cross_entropy(model(inputs), targets).item()

    reg = LearnedL2(model, num_examples=len(inputs), prior=prior, head="fc")
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(40):
        for x, y in loader:
            with reg.sample():
                F.cross_entropy(model(x), y).backward()
            opt.step()

    assert F.cross_entropy(model(inputs), targets).item() < before / 4
    assert reg.sigma > 2e-4
    assert 0 < reg.lambda_ < math.inf
    assert 0 < reg.tau < math.inf


def test_learns_the_best_lambda_of_a_linear_model() -> None:
    """On Bayesian linear regression the loop finds the ELBo's best lambda and sigma, as a numerical optimizer does."""
    n, d, true_lambda = 100, 10, 4.0
    x = torch.randn(n, d, dtype=torch.float64)
    y = x @ (true_lambda**0.5 * torch.randn(d, dtype=torch.float64)) + torch.randn(n, dtype=torch.float64)

    def negative_elbo(unknown: np.ndarray[Any, Any]) -> float:
        w, sigma2, lam = unknown[:d], math.exp(unknown[d]), math.exp(unknown[d + 1])
        nll = 0.5 * (((y.numpy() - x.numpy() @ w) ** 2).sum() + sigma2 * (x.numpy() ** 2).sum())
        kl = 0.5 * ((d * sigma2 + w @ w) / lam - d + d * math.log(lam / sigma2))
        return float(nll + kl) / n

    best = minimize(negative_elbo, np.zeros(d + 2), method="BFGS", options={"gtol": 1e-7}).x
    model = nn.Linear(d, 1, bias=False).double()
    reg = LearnedL2(model, n, prior="l2-zero", kappa=1.0, sigma=0.02)
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.05, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 2000)
    for _ in range(2000):
        with reg.sample():
            (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        opt.step()
        cosine.step()
    assert reg.lambda_ == pytest.approx(math.exp(best[d + 1]), rel=0.02)
    assert reg.sigma == pytest.approx(math.exp(best[d] / 2), rel=0.1)
    assert true_lambda / 3 < reg.lambda_ < true_lambda * 3


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def trained(model: nn.Module, reg: LearnedL2, x: Tensor, y: Tensor) -> None:
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.1)
    for _ in range(3):
        with reg.sample():
            F.cross_entropy(model(x), y).backward()
        opt.step()


def test_training_continues_from_a_state_dict() -> None:
    """Saved to a file and loaded over another initialization, training continues to the same weights and state."""
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))

    def make(seed: int) -> tuple[nn.Module, LearnedL2]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        return model, LearnedL2(model, 8, head="1", sigma=0.1)

    first, reg = make(1)
    trained(first, reg, x, y)
    saved = through_a_file({"model": first.state_dict(), "reg": reg.state_dict()})
    second, other = make(2)
    second.load_state_dict(saved["model"])
    assert other.describe() != reg.describe()
    other.load_state_dict(saved["reg"])
    assert other.describe() == reg.describe()
    for model, one in ((first, reg), (second, other)):
        torch.manual_seed(5)
        trained(model, one, x, y)
    assert other.describe() == reg.describe()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_state_of_another_model_is_refused() -> None:
    """A state with other shapes, or without a head where one is needed, is refused and changes nothing."""
    small, large = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    reg = LearnedL2(large, 4, head="1", sigma=0.3)
    before = reg.describe()
    with pytest.raises(ValueError, match=r"shape \(15,\) for the prior mean of 'backbone', expected shape \(6,\)"):
        reg.load_state_dict(LearnedL2(large, 4).state_dict())
    with pytest.raises(ValueError, match="nothing for the prior mean of 'head'"):
        reg.load_state_dict(LearnedL2(small, 4).state_dict())
    assert reg.describe() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior": "l2"}, "prior must be 'l2-zero', 'l2-sp' or a prior object.*got 'l2'"),
        ({"prior": Isotropic(torch.zeros(5))}, "over 5 weights, the backbone trains 6"),
        ({"prior": LowRank(torch.zeros(6), torch.ones(6), torch.ones(6, 2)), "head": "1"}, "over 6 weights, the .* 4"),
        ({"head": "fc"}, "no submodule 'fc'.*it has 0, 1"),
        ({"num_examples": -1}, "num_examples must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    """An unknown prior, one of another size, a missing head and a wrong N are refused."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with pytest.raises(ValueError, match=words):
        LearnedL2(model, **({"num_examples": 4} | arguments))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    """A model with frozen weights only is refused."""
    with pytest.raises(ValueError, match="unfreeze what is to be trained"):
        LearnedL2(nn.Linear(2, 2).requires_grad_(False), 4)
