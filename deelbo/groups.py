"""One prior variance a layer: w_g ~ N(mu_g, lambda_g I) for each module g of the backbone that holds weights itself.

Every lambda_g has the closed form of the one lambda, over its own D_g weights; sigma stays one. Since

    sum_g D_g lambda*_g = sum_g [sigma^2 D_g + ||d_g||^2] = D_w lambda*,

the mean of the lambda*_g over the backbone's weights is the lambda* that one variance for all of it would have, at the
same weights. That is what ``lambda_`` and the keys ``..._backbone`` say of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from deelbo._vectors import flatten
from deelbo.priors import GaussianPrior, Isotropic

__all__ = ["GROUPINGS", "Group", "backbone_prior", "layer_groups", "make_groups", "split_at_head"]


ALONE = "model"  # the name of weights that the model itself holds; and before one that means something else here


def layer_groups(model: nn.Module, head: str | None, prior: object) -> list[Group]:
    """A group for each module that holds trained weights of the backbone itself, in the order of ``parameters()``.

    A group is called by the module's dotted name; ``model`` where that is empty, ``model.NAME`` where it would be
    "backbone" or "head".

    Raises:
        ValueError: the prior is neither "l2-zero" nor "l2-sp": no other covariance falls apart into layers.
    """
    if prior not in ("l2-zero", "l2-sp"):
        found = repr(prior) if isinstance(prior, str) else type(prior).__name__
        raise ValueError(
            f"groups by layer need the prior 'l2-zero' or 'l2-sp', got {found}: use 'backbone+head' with it"
        )
    taken = set() if head is None else set(find_module(model, head).parameters())
    names = {"backbone", "head"}
    groups = []
    for name, module in model.named_modules():
        weights = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in taken]
        if weights:
            name = name or ALONE
            while name in names:
                name = f"{ALONE}.{name}"
            names.add(name)
            taken.update(weights)
            now = flatten(weights)
            own = Isotropic(now if prior == "l2-sp" else torch.zeros_like(now))
            groups.append(Group(name, tuple(weights), own, part="backbone"))
    return groups


def split_at_head(model: nn.Module, head: str | None) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained weights of ``model`` as (backbone, head); each weight once, frozen ones in neither.

    A weight that the head shares with the backbone counts as head.

    Raises:
        ValueError: the model has no submodule called ``head``.
    """
    head_weights = [] if head is None else [p for p in find_module(model, head).parameters() if p.requires_grad]
    of_head = set(head_weights)
    backbone = [p for p in model.parameters() if p.requires_grad and p not in of_head]
    return backbone, head_weights


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule with that dotted name. Raises ValueError, naming those that exist, where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children()) or "no submodules"
        raise ValueError(
            f"{type(model).__name__} has no submodule {name!r}: give head= the dotted name of one; it has {children}"
        ) from None


GROUPINGS = ("backbone+head", "layer")


def backbone_prior(prior: str | GaussianPrior, weights: list[nn.Parameter]) -> GaussianPrior:
    """The prior of the backbone: ``"l2-zero"`` (mean 0), ``"l2-sp"`` (mean: the weights as they are now), or a prior.

    Raises:
        ValueError: another name, or a prior over another number of weights.
    """
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


def make_groups(
    model: nn.Module, head: str | None, prior: str | GaussianPrior, by: str = "backbone+head"
) -> list[Group]:
    """The groups of weights: ``backbone`` with the given prior, and ``head`` with N(0, tau I).

    Args:
        model: any module; frozen weights stay out.
        head: dotted name of the submodule that is the head; None where all weights are backbone.
        prior: as for `backbone_prior`.
        by: ``"backbone+head"``, or ``"layer"``: instead of the one backbone, a group for each of its layers.

    Raises:
        ValueError: another ``by``, a prior that has no layers, nothing to train, or as `backbone_prior` has it.
    """
    if by not in GROUPINGS:
        raise ValueError(f"groups must be one of {', '.join(map(repr, GROUPINGS))}, got {by!r}")
    backbone, head_weights = split_at_head(model, head)
    groups = layer_groups(model, head, prior) if by == "layer" else []
    if backbone and not groups:
        groups.append(Group("backbone", tuple(backbone), backbone_prior(prior, backbone)))
    if head_weights:
        zeros = torch.zeros_like(flatten(head_weights))
        groups.append(Group("head", tuple(head_weights), Isotropic(zeros)))
    if not groups:
        raise ValueError("the model has no weight with requires_grad=True: unfreeze what is to be trained")
    return groups


@dataclass(frozen=True)
class Group:
    """Weights that share one prior, e.g. the backbone. ``prior.dim`` is the number of their elements.

    ``part``: what they are a part of, "backbone" for one of its layers; None where they are the whole of it.
    """

    name: str
    weights: tuple[nn.Parameter, ...]
    prior: GaussianPrior
    part: str | None = None

    def __post_init__(self) -> None:
        size = sum(p.numel() for p in self.weights)
        if size != self.prior.dim:
            raise ValueError(f"group {self.name!r} has {size} weights, its prior {self.prior.dim}: they must agree")
