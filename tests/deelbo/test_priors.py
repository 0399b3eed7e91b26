"""Tests of the priors' formulas against dense matrices, torch.distributions and numerical optimizers, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from deelbo import GaussianPrior, Isotropic, LowRank

DIM = 12
SIGMA = torch.tensor(0.3, dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(
    dim: int, columns: int, rank: int | None = None, epsilon: float = 0.1, seed: int = 1
) -> tuple[LowRank, Tensor]:
    """Return a prior and its dense covariance."""
    mean, variance, factor = (
        normal(dim, seed=seed),
        normal(dim, seed=seed + 1).square(),
        normal(dim, columns, seed=seed + 2),
    )
    used = factor if rank is None else factor[:, columns - rank :]
    dense = torch.diag(variance) / 2 + epsilon * torch.eye(dim).double() + used @ used.T / (2 * used.shape[1] - 2)
    return LowRank(mean, variance, factor, rank, epsilon), dense


@pytest.fixture(params=["isotropic", "low-rank"])
def prior_and_dense(request: pytest.FixtureRequest) -> tuple[GaussianPrior, Tensor]:
    if request.param == "isotropic":
        return Isotropic(normal(DIM, seed=5)), torch.eye(DIM, dtype=torch.float64)
    return low_rank(DIM, columns=4)


def dense_kl(weights: Tensor, sigma: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    q = MultivariateNormal(weights, sigma**2 * torch.eye(len(weights), dtype=torch.float64))
    return kl_divergence(q, MultivariateNormal(mean, covariance))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 7.5, 1e6])
def test_kl_at_a_given_scale(prior_and_dense: tuple[GaussianPrior, Tensor], scale: float) -> None:
    """KL(q || p) at a given scale is that of the dense Gaussians."""
    prior, dense = prior_and_dense
    weights = normal(DIM, seed=9)
    torch.testing.assert_close(
        prior.kl(weights, SIGMA, scale), dense_kl(weights, SIGMA, prior.mean, scale * dense), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.3, 5.0, 20.0])
def test_scale_minimizes_kl(prior_and_dense: tuple[GaussianPrior, Tensor], sigma: float) -> None:
    """s* and its KL are the scale and value at which a numerical optimizer finds the minimum of the dense KL."""
    prior, dense = prior_and_dense
    weights, sd = normal(DIM, seed=9), torch.tensor(sigma, dtype=torch.float64)
    found = minimize_scalar(
        lambda log_scale: float(dense_kl(weights, sd, prior.mean, math.exp(log_scale) * dense)),
        bracket=(-3.0, 3.0),
        tol=1e-10,
    )
    assert float(prior.scale(weights, sd)) == pytest.approx(math.exp(found.x), rel=1e-5)
    assert float(prior.kl_term(weights, sd).scale) == pytest.approx(math.exp(found.x), rel=1e-5)
    assert float(prior.kl(weights, sd)) == pytest.approx(found.fun, rel=1e-9)
    assert float(prior.kl_term(weights, sd).value) == pytest.approx(found.fun, rel=1e-9)


def test_kl_term_gradients(prior_and_dense: tuple[GaussianPrior, Tensor]) -> None:
    """`kl_term`'s gradients are autograd's of the dense KL, also through the closed-form scale."""
    prior, dense = prior_and_dense
    weights, sigma = normal(DIM, seed=9).requires_grad_(), SIGMA.clone().requires_grad_()
    precision, d = torch.linalg.inv(dense), weights - prior.mean
    scale = (sigma**2 * precision.trace() + d @ precision @ d) / DIM
    term = prior.kl_term(weights.detach(), sigma.detach())
    for s in (scale, scale.detach()):
        kl = dense_kl(weights, sigma, prior.mean, s * dense)
        of_mean, of_sigma = torch.autograd.grad(kl, (weights, sigma), retain_graph=True)
        torch.testing.assert_close(term.precision_d / term.scale, of_mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(term.gradient_sigma, of_sigma, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(term.squared_distance, (d @ precision @ d).detach())


@settings(deadline=None, max_examples=40)
@given(
    dim=st.integers(1, 14), rank=st.integers(2, 6), older=st.integers(0, 3),
    epsilon=st.sampled_from([1e-3, 0.1, 2.0]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_low_rank_matrices(dim: int, rank: int, older: int, epsilon: float, seed: int) -> None:
    """LowRank's log-determinant, trace and products are those of the dense Sigma, for any shape and rank."""
    prior, dense = low_rank(dim, rank + older, rank, epsilon, seed)
    inverse, vector = torch.linalg.inv(dense), normal(dim, seed=seed + 3)
    assert prior.dim == dim
    assert prior.log_det == pytest.approx(float(torch.linalg.slogdet(dense).logabsdet), rel=1e-7, abs=1e-8)
    assert prior.trace_precision == pytest.approx(float(inverse.trace()), rel=1e-7)
    torch.testing.assert_close(prior.precision_times(vector), inverse @ vector, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        prior.squared_distance(vector + prior.mean), vector @ inverse @ vector, rtol=1e-6, atol=1e-7
    )


def test_low_rank_in_single_precision() -> None:
    """A float32 prior keeps log-determinant and trace exact, and multiplies to float32 accuracy."""
    exact, dense = low_rank(DIM, columns=4)
    mean, variance, factor = normal(DIM, seed=1), normal(DIM, seed=2).square(), normal(DIM, 4, seed=3)
    prior = LowRank(mean.float(), variance.float(), factor.float())
    vector = normal(DIM, seed=7)
    assert prior.precision_times(vector.float()).dtype == torch.float32
    assert prior.log_det == pytest.approx(exact.log_det, rel=1e-5)
    assert prior.trace_precision == pytest.approx(exact.trace_precision, rel=1e-5)
    torch.testing.assert_close(
        prior.precision_times(vector.float()).double(), torch.linalg.solve(dense, vector), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "make", [Isotropic, lambda mean: LowRank(mean, torch.ones(3), torch.ones(3, 2))], ids=["isotropic", "low-rank"]
)
def test_the_mean_is_the_priors_own(make: Callable[[Tensor], GaussianPrior]) -> None:
    """The mean does not change with the tensor that it was made from, such as a weight."""
    given = torch.ones(3)
    prior = make(given)
    given.add_(1)
    assert torch.equal(prior.mean, torch.ones(3))


@pytest.mark.parametrize("shape", [(2, 3), (0,), ()])
def test_mean_must_be_a_vector(shape: tuple[int, ...]) -> None:
    """A mean that is not a vector of at least one weight is refused with its shape."""
    with pytest.raises(ValueError, match=r"mean must be a vector.*got shape \(" + ", ".join(map(str, shape))):
        Isotropic(torch.zeros(shape))
    with pytest.raises(ValueError, match="mean must be a vector"):
        LowRank(torch.zeros(shape), torch.zeros(shape), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("variance", "factor", "rank", "epsilon", "words"),
    [
        (torch.ones(3), torch.ones(4, 2), None, 0.1, r"variance must have the mean's shape \(4,\), got \(3,\)"),
        (torch.ones(4), torch.ones(3, 2), None, 0.1, r"factor must have shape \(4, K\), got \(3, 2\)"),
        (torch.ones(4), torch.ones(4), None, 0.1, r"factor must have shape \(4, K\), got \(4,\)"),
        (torch.ones(4), torch.ones(4, 1), None, 0.1, "rank must lie between 2 and the factor's 1 columns, got 1"),
        (torch.ones(4), torch.ones(4, 3), 1, 0.1, "rank must lie between 2 and the factor's 3 columns, got 1"),
        (torch.ones(4), torch.ones(4, 3), 4, 0.1, "rank must lie between 2 and the factor's 3 columns, got 4"),
        (torch.zeros(4), torch.ones(4, 2), None, 0.0, "must be positive for every weight: raise epsilon"),
        (torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.ones(4, 2), None, 0.1, "must be positive for every weight"),
        (torch.tensor([1.0, math.nan, 1.0, 1.0]), torch.ones(4, 2), None, 0.1, "must be positive for every weight"),
    ],
)
def test_impossible_low_rank_priors(
    variance: Tensor, factor: Tensor, rank: int | None, epsilon: float, words: str
) -> None:
    """Shapes that disagree, a rank out of range and a diagonal that is not positive are refused."""
    with pytest.raises(ValueError, match=words):
        LowRank(torch.zeros(4), variance, factor, rank, epsilon)
