"""`LearnedL2`: the DE ELBo as a drop-in for a training loop that exists already."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.priors import GaussianPrior

__all__ = ["LearnedL2"]


class LearnedL2(DataEmphasizedELBO):
    """Learns the strength of L2 regularization while the model trains, from all the data, in one run.

    Use it in any loop; the model needs no change::

        reg = deelbo.LearnedL2(model, num_examples=len(train_set), prior="l2-sp", head="fc")
        opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=lr, momentum=0.9, nesterov=True)
        for x, y in loader:
            with reg.sample():
                F.cross_entropy(model(x), y).backward()
            opt.step()

    The loss inside must be the MEAN negative log-likelihood of the batch. `sample` clears the gradients on entering, so
    ``zero_grad`` is not needed; several ``backward`` calls inside one block accumulate. The optimizer's own
    ``weight_decay`` must stay 0. With a ``GradScaler``, call ``scaler.unscale_(opt)`` inside the block.

    Args:
        model: any `torch.nn.Module`, its backbone already pretrained. Frozen weights stay out.
        num_examples: N, the number of training examples, not of a batch.
        prior: the backbone's prior: ``"l2-sp"``, mean at the weights the model has now; ``"l2-zero"``, mean zero; or
            an object such as `deelbo.LowRank`.
        head: dotted name of the submodule that is new, e.g. ``"fc"``: its prior is N(0, tau I). None: there is none.
        kappa: how often the likelihood counts; D/N where None.
        sigma: where the posterior's sigma starts.
        generator: random numbers of the draws, on the model's device; torch's global one where None.
        groups: ``"backbone+head"``, or ``"layer"``: a prior variance for each layer of the backbone.

    Raises:
        ValueError: no such head, an unknown prior, a num_examples below 1, or weights the posterior cannot take.
    """

    def __init__(
        self,
        model: nn.Module,
        num_examples: int,
        prior: str | GaussianPrior = "l2-sp",
        head: str | None = None,
        kappa: float | None = None,
        sigma: float = 1e-4,
        generator: torch.Generator | None = None,
        groups: str = "backbone+head",
    ) -> None:
        super().__init__(make_groups(model, head, prior, groups), num_examples, kappa, sigma, generator)

    def sample(self) -> AbstractContextManager[None]:
        """A block whose forward and backward run at one draw of the weights; it leaves the objective's gradients."""
        return self.step()

    @property
    def lambda_(self) -> float:
        """lambda*, the learned prior variance of the backbone; NaN where every weight is head.

        With a variance a layer: their mean over the backbone's weights, each layer's own being in `scales`.
        """
        scales = self.scales()
        layers = {group.name: group.prior.dim for group in self.groups if group.part == "backbone"}
        if not layers:
            return scales.get("backbone", math.nan)
        return sum(dim * scales[name] for name, dim in layers.items()) / sum(layers.values())

    @property
    def tau(self) -> float:
        """tau*, the learned prior variance of the head; NaN where there is none."""
        return self.scales().get("head", float("nan"))

    @property
    def sigma(self) -> float:
        """The learned standard deviation of the posterior."""
        return float(self.posterior.sigma)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's: rho, and the priors' means."""
        means = {group.name: group.prior.mean for group in self.groups}
        return {"rho": self.posterior.rho.detach(), "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, whatever weights the model had when this object was made."""
        for group in self.groups:
            mean = state["means"].get(group.name)
            if mean is None or mean.shape != group.prior.mean.shape:
                found = "nothing" if mean is None else f"shape {tuple(mean.shape)}"
                raise ValueError(
                    f"the state holds {found} for the prior mean of {group.name!r}, "
                    f"expected shape {tuple(group.prior.mean.shape)}: was it saved from another model?"
                )
        with torch.no_grad():
            self.posterior.rho.copy_(state["rho"])
            for group in self.groups:
                group.prior.mean.copy_(state["means"][group.name])
