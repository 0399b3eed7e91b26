"""The whole objective of `LearnedL2` by float64 autograd, from dense Gaussians: an oracle for gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

from deelbo import LearnedL2, LowRank

Loss = Callable[[Callable[[Tensor], Tensor]], Tensor]
RANK = 3
PRIORS = ("l2-zero", "l2-sp", "low-rank")


class TiedAndUnused(nn.Module):
    """Two layers that share one matrix, a layer that the loss does not reach, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.spare, self.head = nn.Linear(2, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return logits


def make_problem(prior: str, groups: str = "backbone+head", **options: Any) -> tuple[nn.Module, LearnedL2, Tensor]:
    """Return a float64 network, a `LearnedL2` of it whose prior mean it has left, and the backbone's covariance."""
    torch.manual_seed(0)
    model = TiedAndUnused().double()
    dim = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head"))
    covariance = torch.eye(dim, dtype=torch.float64)
    chosen: Any = prior
    if prior == "low-rank":
        mean, variance, factor = torch.randn(dim).double(), torch.rand(dim).double(), torch.randn(dim, RANK).double()
        chosen = LowRank(mean, variance, factor)
        covariance = torch.diag(variance / 2 + 0.1) + factor @ factor.T / (2 * RANK - 2)
    options = {"sigma": 0.05, "generator": torch.Generator().manual_seed(7)} | options
    reg = LearnedL2(model, 50, chosen, "head", groups=groups, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, reg, covariance


def expected_gradients(model: nn.Module, reg: LearnedL2, covariance: Tensor, loss: Loss, noise: Tensor) -> list[Tensor]:
    """Return autograd's gradients of loss at the draw + KL / (kappa N), for the weights in the groups' order and rho.

    ``loss`` is called with a function that computes the network's output at the draw; ``noise`` is eps (D,).
    """
    names = {id(p): name for name, p in model.named_parameters()}
    weights = [p.detach().clone().requires_grad_() for p in reg.weights]
    rho = reg.posterior.rho.detach().clone().requires_grad_()
    sigma = F.softplus(rho)
    pieces = noise.split([w.numel() for w in weights])
    drawn = {names[id(p)]: w + sigma * e.view_as(w) for p, w, e in zip(reg.weights, weights, pieces, strict=True)}
    total = loss(lambda x: functional_call(model, drawn, (x,)))
    rest = list(weights)
    for group in reg.groups:
        vector = torch.cat([rest.pop(0).reshape(-1) for _ in group.weights])
        dense = covariance if len(vector) == len(covariance) else torch.eye(len(vector), dtype=torch.float64)
        d, precision = vector - group.prior.mean, torch.linalg.inv(dense)
        scale = (sigma**2 * precision.trace() + d @ precision @ d) / len(d)
        posterior = MultivariateNormal(vector, sigma**2 * torch.eye(len(d), dtype=torch.float64))
        kl = kl_divergence(posterior, MultivariateNormal(group.prior.mean, scale * dense))
        total = total + kl / (reg.kappa * reg.num_examples)
    return list(torch.autograd.grad(total, [*weights, rho]))


def gradients(reg: LearnedL2) -> list[Tensor]:
    """Return copies of the gradients of the weights in the groups' order and of rho; zeros for a missing one."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in [*reg.weights, reg.posterior.rho]]


def noise_of(reg: LearnedL2, seed: int = 7) -> Tensor:
    """Return the eps of the first draw with the generator seeded so."""
    return torch.randn(reg.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
