"""Is the fast path right? Its loss and gradients against the plain float32 path, on one batch at one draw."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.speed.baseline import plain_terms
from deelbo._vectors import flatten
from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.training.numerics import Numerics

__all__ = ["BOUNDS", "Deviation", "deviation"]


SEED = 7


@dataclass(frozen=True)
class Deviation:
    """How far the fast path is from the plain one.

    Attributes:
        loss: relative difference of the batch's mean NLL.
        gradient: norm of the gradients' difference over the norm of the plain gradient, NLL and KL together.
        rho: difference of dL/drho over the sizes of its NLL's and its KL's part together, which may cancel.
    """

    loss: float
    gradient: float
    rho: float

    def beyond(self, bound: Deviation) -> list[str]:
        """What is larger than in ``bound``, or not a number, in words."""
        pairs = ((name, getattr(self, name), getattr(bound, name)) for name in ("loss", "gradient", "rho"))
        return [f"{name} by {found:.2g} (at most {most:g})" for name, found, most in pairs if not found <= most]


BOUNDS = {
    "float32": Deviation(loss=1e-4, gradient=1e-2, rho=1e-2),
    "tf32": Deviation(loss=1e-2, gradient=5e-2, rho=5e-2),
    "bf16": Deviation(loss=3e-2, gradient=0.3, rho=0.3),
}
"""What each precision may deviate: its rounding, carried through tens of layers and BatchNorms, and no more."""


def deviation(model: nn.Module, head: str, x: Tensor, y: Tensor, num_examples: int, numerics: Numerics) -> Deviation:
    """Both paths on copies of ``model``, calmed, in training mode; sigma is 1e-3.

    Args:
        model: on the device, in float32.
        head: dotted name of its head.
        x, y: a batch as the network takes it, and its labels.
        num_examples: N.
        numerics: of the fast path.
    """
    model = _calmed(copy.deepcopy(model).train())
    fast, plain = copy.deepcopy(model), copy.deepcopy(model)
    device = x.device
    with numerics.switched_on():
        generator = torch.Generator(device).manual_seed(SEED)
        groups = make_groups(fast, head, "l2-sp")
        objective = DataEmphasizedELBO(groups, num_examples, sigma=1e-3, generator=generator)
        forward = numerics.trained_through(fast)
        # off the prior's mean, so that the KL has a gradient
        with torch.no_grad():
            for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
                one.mul_(1.01)
                other.mul_(1.01)
        with objective.step():
            with numerics.autocast(device):
                loss = F.cross_entropy(forward(numerics.laid_out(x)), y)
            loss.backward()
    with Numerics().switched_on():
        means = _prior_means(model, head)
        rho = objective.posterior.rho.detach().clone().requires_grad_()
        noise = _noise_by_name(fast, objective, device)
        nll, kl = plain_terms(plain, head, means, rho, lambda name, _: noise[name], (x, y), num_examples)
        (kl_slope,) = torch.autograd.grad(kl, rho, retain_graph=True)
        (nll + kl).backward()
    slope = _gradient(rho)
    gradients = [flatten([_gradient(p) for p in m.parameters()]) for m in (fast, plain)]
    return Deviation(
        loss=float((loss.detach() - nll.detach()).abs() / nll.detach().abs()),
        gradient=float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
        rho=float((_gradient(objective.posterior.rho) - slope).abs() / (kl_slope.abs() + (slope - kl_slope).abs())),
    )


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _prior_means(model: nn.Module, head: str) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if name.startswith(f"{head}.") else p.detach() for name, p in model.named_parameters()
    }


def _noise_by_name(model: nn.Module, objective: DataEmphasizedELBO, device: torch.device) -> dict[str, Tensor]:
    """The noise of the fast path's draw, drawn again: one vector over the groups' weights in order."""
    random = torch.Generator(device).manual_seed(SEED)
    vector = torch.randn(objective.dim, generator=random, device=device)
    names = {id(p): name for name, p in model.named_parameters()}
    pieces = vector.split([p.numel() for p in objective.weights])
    return {names[id(p)]: piece.view(p.shape) for p, piece in zip(objective.weights, pieces, strict=True)}


def _calmed(model: nn.Module) -> nn.Module:
    """The network such that two precisions can be compared: without chance, and without chaos.

    Random depth and dropout are off, as two precisions need not draw the same numbers for them. What a ResNet's
    residual branches add is made small: at random weights float32 itself misses the float64 gradient of a ResNet-50 by
    2 %, and bfloat16 has little in common with either; at a tenth of the branches it is 0.1 % and 15 %, nearer to a
    trained network.
    """
    for module in model.modules():
        if type(module).__name__ in ("StochasticDepth", "Dropout"):
            module.p = 0.0  # type: ignore[assignment]
        if isinstance(last := getattr(module, "bn3", None), nn.BatchNorm2d):
            nn.init.constant_(last.weight, 0.1)
    return model
