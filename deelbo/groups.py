"""Groups of weights that share a prior: backbone and head, or head and each layer of the backbone.

With one group per layer, w_g ~ N(mu_g, lambda_g I) for each module g of the backbone that holds weights itself. Every
lambda_g has the closed form of the single lambda, over its own D_g weights; sigma stays a single one. Since

    sum_g D_g lambda*_g = sum_g [sigma^2 D_g + ||d_g||^2] = D_w lambda*,

the mean of the lambda*_g over the backbone's weights is the lambda* of a single variance at the same weights. That mean
is reported as ``lambda_`` and under the keys ``..._backbone``.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from deelbo._vectors import flatten
from deelbo.priors import GaussianPrior, Isotropic

GROUPINGS = ("backbone+head", "layer")


@dataclass(frozen=True)
class Group:
    """Weights that share one prior."""

    name: str  # "backbone", "head", or a layer's
    weights: tuple[nn.Parameter, ...]  # ``prior.dim`` elements together
    prior: GaussianPrior
    part: str | None = None  # "backbone" for one of its layers; None for a group that is a whole part

    def __post_init__(self) -> None:
        size = sum(p.numel() for p in self.weights)
        if size != self.prior.dim:
            raise ValueError(f"group {self.name!r} has {size} weights, its prior {self.prior.dim}: they must agree")


def make_groups(
    model: nn.Module, head: str | None, prior: str | GaussianPrior, by: str = "backbone+head"
) -> list[Group]:
    """Return the groups of the trained weights: ``backbone`` with the given prior, and ``head`` with N(0, tau I).

    Args:
        model: any module; frozen weights are left out.
        head: dotted name of the submodule that is the head; None: all weights are backbone.
        prior: as for `backbone_prior`.
        by: ``"backbone+head"``, or ``"layer"`` for one group per layer in place of the backbone.

    Raises:
        ValueError: another ``by``, no trained weight, no such submodule, or a prior that cannot be used.
    """
    if by not in GROUPINGS:
        raise ValueError(f"groups must be one of {', '.join(map(repr, GROUPINGS))}, got {by!r}")
    if lazy := [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]:
        raise ValueError(f"{lazy[0]} of a lazy module has no shape yet: run the model on a batch first")
    backbone, head_weights = split_at_head(model, head)
    groups = layer_groups(model, head, prior) if by == "layer" else []
    if backbone and not groups:
        groups.append(Group("backbone", tuple(backbone), backbone_prior(prior, backbone)))
    if head_weights:
        groups.append(Group("head", tuple(head_weights), Isotropic(torch.zeros_like(flatten(head_weights)))))
    if not groups:
        raise ValueError("the model has no weight with requires_grad=True: unfreeze what is to be trained")
    return groups


def backbone_prior(prior: str | GaussianPrior, weights: list[nn.Parameter]) -> GaussianPrior:
    """Return the backbone's prior: ``"l2-zero"`` (mean 0), ``"l2-sp"`` (mean: the current weights), or an object."""
    if isinstance(prior, GaussianPrior):
        size = sum(p.numel() for p in weights)
        if prior.dim != size:
            raise ValueError(f"the prior is over {prior.dim} weights, the backbone trains {size}: they must agree")
        return prior
    if prior == "l2-sp":
        return Isotropic(flatten(weights))
    if prior == "l2-zero":
        return Isotropic(torch.zeros_like(flatten(weights)))
    raise ValueError(f"prior must be 'l2-zero', 'l2-sp' or a prior object such as deelbo.LowRank, got {prior!r}")


def layer_groups(model: nn.Module, head: str | None, prior: object) -> list[Group]:
    """Return one group per module that holds trained backbone weights itself, in the order of ``parameters()``.

    A group has the module's dotted name. The model's own weights are called ``model``, and a name that is taken, such
    as "head", gets the prefix ``model.``. Only the priors "l2-zero" and "l2-sp" separate into layers.
    """
    if prior not in ("l2-zero", "l2-sp"):
        found = f"got {prior!r}" if isinstance(prior, str) else f"got {type(prior).__name__}"
        raise ValueError(f"groups by layer need the prior 'l2-zero' or 'l2-sp', {found}: use 'backbone+head' with it")
    seen = set() if head is None else set(find_module(model, head).parameters())
    names = {"backbone", "head"}
    groups = []
    for name, module in model.named_modules():
        weights = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in seen]
        if weights:
            name = name or "model"
            while name in names:
                name = f"model.{name}"
            names.add(name)
            seen.update(weights)
            groups.append(Group(name, tuple(weights), backbone_prior(str(prior), weights), part="backbone"))
    return groups


def split_at_head(model: nn.Module, head: str | None) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trained weights as (backbone, head), each once; one that both share counts as head."""
    head_weights = [] if head is None else [p for p in find_module(model, head).parameters() if p.requires_grad]
    in_head = set(head_weights)
    backbone = [p for p in model.parameters() if p.requires_grad and p not in in_head]
    return backbone, head_weights


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule with that dotted name; raise a ValueError that lists the existing ones if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children()) or "no submodules"
        remedy = f"give head= the dotted name of one; it has {children}"
        raise ValueError(f"{type(model).__name__} has no submodule {name!r}: {remedy}") from None
