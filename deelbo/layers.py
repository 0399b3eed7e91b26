"""One prior variance a layer: w_g ~ N(mu_g, lambda_g I) for each module g of the backbone that holds weights itself.

Every lambda_g has the closed form of the one lambda, over its own D_g weights; sigma stays one. Since

    sum_g D_g lambda*_g = sum_g [sigma^2 D_g + ||d_g||^2] = D_w lambda*,

the mean of the lambda*_g over the backbone's weights is the lambda* that one variance for all of it would have, at the
same weights. That is what ``lambda_`` and the keys ``..._backbone`` say of layers.
"""

from __future__ import annotations

import torch
from torch import nn

from deelbo.backbones import find_module
from deelbo.objectives import Group
from deelbo.priors import Isotropic
from deelbo.vectors import flatten

__all__ = ["layer_groups"]

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
