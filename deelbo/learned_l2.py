"""`LearnedL2`: the DE ELBo as a drop-in for an existing training loop."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.priors import GaussianPrior


class LearnedL2(DataEmphasizedELBO):
    """Learns the strength of L2 regularization while the model trains, from all the data, in one run.

    It fits any loop, and the model needs no change::

        reg = deelbo.LearnedL2(model, num_examples=len(train_set), prior="l2-sp", head="fc")
        opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=lr, momentum=0.9, nesterov=True)
        for x, y in loader:
            with reg.sample():
                F.cross_entropy(model(x), y).backward()
            opt.step()

    The loss must be the mean negative log-likelihood of the batch. `sample` clears the gradients on entry, so
    ``zero_grad`` is not needed; several ``backward`` calls inside one block accumulate. The optimizer's own
    ``weight_decay`` must stay 0. With a ``GradScaler``, call ``scaler.unscale_(opt)`` inside the block.

    Args:
        model: any `torch.nn.Module` with a pretrained backbone. Frozen weights are left out.
        num_examples: N, the number of training examples (not of a batch).
        prior: the backbone's prior: ``"l2-sp"``, mean at the model's current weights; ``"l2-zero"``, mean zero; or an
            object such as `deelbo.LowRank`.
        head: dotted name of the new submodule, e.g. ``"fc"``, whose prior is N(0, tau I). None: there is none.
        kappa: weight of the likelihood; None: D/N.
        sigma: initial standard deviation of the posterior.
        generator: random numbers of the draws, on the model's device; None: torch's global one.
        groups: ``"backbone+head"``, or ``"layer"`` for a prior variance per layer of the backbone.

    Raises:
        ValueError: no such head, an unknown prior, a num_examples below 1, or weights that the posterior cannot take.
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
        """A block whose forward and backward passes use one draw of the weights; on exit the gradients are complete."""
        return self.step()

    @property
    def lambda_(self) -> float:
        """lambda*, the learned prior variance of the backbone; NaN where every weight is head.

        With one variance per layer: their mean over the backbone's weights. `scales` has each layer's own.
        """
        return self.describe().get("scale_backbone", math.nan)

    @property
    def tau(self) -> float:
        """tau*, the learned prior variance of the head; NaN without a head."""
        return self.scales().get("head", math.nan)

    @property
    def sigma(self) -> float:
        """The learned standard deviation of the posterior."""
        return float(self.posterior.sigma)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the model's state: rho and the priors' means."""
        means = {group.name: group.prior.mean for group in self.groups}
        return {"rho": self.posterior.rho.detach(), "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, whatever weights the model had when this object was made.

        Raises:
            ValueError: the state is of another model.
        """
        for group in self.groups:
            mean, expected = state["means"].get(group.name), tuple(group.prior.mean.shape)
            if mean is None or mean.shape != expected:
                found = f"{'nothing' if mean is None else f'shape {tuple(mean.shape)}'} for the prior mean"
                problem = f"the state holds {found} of {group.name!r}, expected shape {expected}"
                raise ValueError(f"{problem}: was it saved from another model?")
        with torch.no_grad():
            self.posterior.rho.copy_(state["rho"])
            for group in self.groups:
                group.prior.mean.copy_(state["means"][group.name])
