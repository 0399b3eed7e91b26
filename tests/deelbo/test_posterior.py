"""Tests of the posterior: gradients against autograd through torch.func.functional_call, and restored weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deelbo import IsotropicPosterior

Example = tuple[nn.Module, Tensor, Tensor]


def mlp() -> Example:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))


def conv_net() -> Example:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ).double()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model, torch.randn(7, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (7,))


def conv_net_eval() -> Example:
    model, x, y = conv_net()
    return model.eval(), x, y


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [mlp, conv_net, conv_net_eval])
def test_gradients_are_autograds(make: Callable[[], Example]) -> None:
    """After ``backward`` in the block, the gradients of weights and rho are dL/dtheta_bar and dL/drho at the draw."""
    model, x, y = make()
    posterior = IsotropicPosterior(model.parameters(), sigma=0.2, generator=seeded())
    names = [name for name, _ in model.named_parameters()]
    theta = [p.requires_grad_() for p in weights_of(model)]
    rho = posterior.rho.detach().clone().requires_grad_()
    noise = torch.randn((posterior.dim,), generator=seeded(), dtype=torch.float64)
    pieces = noise.split([p.numel() for p in theta])
    drawn = {n: p + F.softplus(rho) * e.view_as(p) for n, p, e in zip(names, theta, pieces, strict=True)}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = F.cross_entropy(functional_call(model, drawn | buffers, (x,)), y)
    *expected, expected_rho = torch.autograd.grad(loss, [*theta, rho])

    with posterior.sample() as draw:
        F.cross_entropy(model(x), y).backward()

    assert draw.has_gradient
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(posterior.rho.grad, expected_rho, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_restored_exactly(dtype: torch.dtype) -> None:
    """Every weight differs inside the block and has its old bits after it."""
    model, x, y = conv_net()
    model, x = model.to(dtype), x.to(dtype)
    before = weights_of(model)
    with IsotropicPosterior(model.parameters(), 0.5).sample():
        assert all(bool((p != b).all()) for p, b in zip(model.parameters(), before, strict=True))
        F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_block_that_raises_leaves_no_trace() -> None:
    """After an exception the weights are restored, no gradient is left, and the posterior can be used again."""
    model, x, y = mlp()
    posterior, before = IsotropicPosterior(model.parameters(), 0.5), weights_of(model)

    def fail() -> None:
        F.cross_entropy(model(x), y).backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), posterior.sample():
        fail()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in [*model.parameters(), posterior.rho])
    with posterior.sample():
        F.cross_entropy(model(x), y).backward()
    assert posterior.rho.grad is not None


def test_nothing_changes_without_backward() -> None:
    """Without ``backward`` the draw and the weights have no gradients, and rho and the weights keep their values."""
    model, x, _ = mlp()
    posterior = IsotropicPosterior(model.parameters(), 0.5)
    before, rho = weights_of(model), posterior.rho.detach().clone()
    with posterior.sample() as draw:
        model(x)
    assert not draw.has_gradient
    assert all(p.grad is None for p in [*model.parameters(), posterior.rho])
    assert all(torch.equal(p, b) for p, b in zip([*model.parameters(), posterior.rho], [*before, rho], strict=True))


def test_nested_blocks_are_refused() -> None:
    """Entering the block inside itself raises an error and restores the weights."""
    model, *_ = mlp()
    posterior, before = IsotropicPosterior(model.parameters(), 0.5), weights_of(model)
    with pytest.raises(RuntimeError, match="leave the first block"), posterior.sample(), posterior.sample():
        pass
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(2, 2).half()], "got torch.float16.*autocast"),
        ([nn.Linear(2, 2).bfloat16()], "got torch.bfloat16.*autocast"),
        ([nn.Linear(2, 2), nn.Linear(2, 2).double()], r"float32 on cpu, torch\.float64 on cpu"),
        ([nn.Linear(2, 2).requires_grad_(False)], "at least one weight with requires_grad=True"),
    ],
    ids=["float16", "bfloat16", "mixed types", "all frozen"],
)
def test_unsuitable_weights_are_refused(layers: list[nn.Module], words: str) -> None:
    """Weights in half precision, of several types, or all frozen are refused with the reason."""
    with pytest.raises(ValueError, match=words):
        IsotropicPosterior([p for layer in layers for p in layer.parameters()])


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-13, float("nan"), float("inf")])
def test_sigma_must_be_positive(sigma: float) -> None:
    """A sigma that is not a number of at least 1e-12 is refused."""
    with pytest.raises(ValueError, match="sigma must be a number of at least 1e-12"):
        IsotropicPosterior(nn.Linear(2, 2).parameters(), sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-12, 1e-4, 0.3, 1.0, 19.0, 29.9, 30.0, 1000.0])
def test_initial_sigma(sigma: float, dtype: torch.dtype) -> None:
    """softplus(rho) is initially the given sigma, small or large, in both precisions."""
    posterior = IsotropicPosterior(nn.Linear(2, 2).to(dtype).parameters(), sigma)
    assert float(posterior.sigma) == pytest.approx(sigma, rel=3e-6 if dtype == torch.float32 else 1e-8)
    assert posterior.rho.dtype == dtype


def test_noise_is_standard_normal() -> None:
    """Weights inside a block are independent Gaussian draws around theta_bar with standard deviation sigma."""
    model = nn.Linear(500, 400).double()
    posterior, mean = IsotropicPosterior(model.parameters(), 0.05, seeded()), model.weight.detach().clone()
    draws = []
    for _ in range(2):
        with posterior.sample():
            draws.append((model.weight.detach() - mean) / 0.05)
    for draw in draws:
        assert abs(float(draw.mean())) < 5 / draw.numel() ** 0.5
        assert float(draw.var()) == pytest.approx(1, abs=5 * (2 / draw.numel()) ** 0.5)
        assert float(draw.pow(4).mean()) == pytest.approx(3, abs=0.12)
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / draws[0].numel() ** 0.5
