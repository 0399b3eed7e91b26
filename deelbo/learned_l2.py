"""`LearnedL2`: the DE ELBo as a drop-in for an existing training loop."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deelbo import _processes
from deelbo._loop_checks import LoopChecks
from deelbo._vectors import flatten
from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.posterior import Draw
from deelbo.priors import GaussianPrior

WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Attribute of the module inside, by the class of a wrapper around it."""


class LearnedL2(DataEmphasizedELBO):
    """Learns the strength of L2 regularization while the model trains, from all the data, in one run.

    It fits any loop, and the model needs no change::

        reg = deelbo.LearnedL2(model, num_examples=len(train_set), prior="l2-sp", head="fc")
        opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=lr, momentum=0.9, nesterov=True)
        reg.check(opt)
        for x, y in loader:
            with reg.sample():
                F.cross_entropy(model(x), y).backward()
            opt.step()

    The loss must be the mean negative log-likelihood of the batch. `sample` clears the gradients on entry, so
    ``zero_grad`` is not needed; several ``backward`` calls inside one block accumulate. The optimizer's own
    ``weight_decay`` must be 0. A `torch.amp.GradScaler` is used as without `LearnedL2`: ``unscale_``, clipping and
    ``step`` after the block. In an initialized process group (DistributedDataParallel) all processes train one model:
    they share one draw per step, and `num_examples` counts the examples of all of them.

    Parameters that are not the model's own, such as a learned temperature, have no prior, and their gradients are not
    cleared: call the optimizer's ``zero_grad`` for them.

    Args:
        model: any `torch.nn.Module` with a pretrained backbone, or a wrapper of it (DistributedDataParallel,
            `torch.compile`). Frozen weights are left out. Freeze, replace and move weights before.
        num_examples: N, the number of training examples (not of a batch, not of a process).
        prior: the backbone's prior: ``"l2-sp"``, mean at the model's current weights; ``"l2-zero"``, mean zero; or an
            object such as `deelbo.LowRank`.
        head: dotted name of the new submodule, e.g. ``"fc"``, whose prior is N(0, tau I). None: there is none.
        kappa: weight of the likelihood; None: D/N.
        sigma: initial standard deviation of the posterior.
        generator: random numbers of the draws, on the model's device; None: torch's global one.
        groups: ``"backbone+head"``, or ``"layer"`` for a prior variance per layer of the backbone.
        start_alpha: weight decay of the backbone from which training starts, in place of ``sigma``; see `deelbo.ELBO`.

    Raises:
        ValueError: no such head, an unknown prior, a num_examples below 1, weights that the posterior cannot take, or
            weights that are split over processes (FSDP, ``fully_shard``, ZeRO-3).
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
        start_alpha: float | None = None,
    ) -> None:
        _processes.check_not_sharded(model)
        while (inner := WRAPPERS.get(type(model).__name__)) is not None:
            model, head = getattr(model, inner), head and head.removeprefix(f"{inner}.")
        by_part = make_groups(model, head, prior, groups)
        super().__init__(by_part, num_examples, kappa, sigma, generator, start_alpha)
        self._checks = LoopChecks(model, self.weights, self.posterior.rho)
        self._shares_draws = False

    @contextmanager
    def sample(self, accumulate: bool = False) -> Iterator[None]:
        """A block whose forward and backward passes use one draw of the weights; on exit the gradients are complete.

        Under `torch.no_grad` the block only evaluates a draw: no gradient is cleared, computed or checked.

        Args:
            accumulate: all blocks between two optimizer steps use one draw and add up their gradients, to which that of
                the regularizer is added once. Divide each loss by the number of blocks. For gradient accumulation, and
                for frameworks whose training step is one function that is called for each micro-batch.

        Raises:
            RuntimeError: the block is entered inside itself; there are gradients that no optimizer step has used, or
                that arrived outside a block; the model's trained weights, their type or device are no longer those that
                this object was made for; weights changed in place inside the block, as by an optimizer step; the
                processes of a process group train different models.
        """
        if not torch.is_grad_enabled():
            with self.posterior.sample():
                yield
            return
        begins = self._checks.enter(accumulate)
        try:
            if not self._shares_draws and _processes.world_size() > 1:
                self._share_draws()
            with self.posterior.sample(redraw=begins, is_quiet=self.is_frozen) as draw:
                self._checks.record_draw()
                yield
                self._checks.check_draw()
            if draw.has_gradient:
                self._complete_gradients(draw, begins)
        except BaseException:
            self._checks.abort()
            raise
        self._checks.leave(draw.has_gradient)

    def _complete_gradients(self, draw: Draw, begins: bool) -> None:
        """Add the regularizer's gradient, once in a step, in the unit of the other gradients."""
        if begins:
            unit: float | Tensor = 1.0
            if (scaler := self._checks.grad_scaler) is not None:
                unit = scaler.scale(torch.ones((), dtype=draw.mean.dtype, device=draw.mean.device))
            if self._map is not None:
                self._map.add_gradients(unit)
            else:
                self._add_kl_gradient(draw, unit / (self.kappa * self.num_examples))
        if self._shares_draws and self.posterior.rho.grad is not None:
            _processes.average_(self.posterior.rho.grad)  # equal already, unless the loop averages gradients itself

    def _share_draws(self) -> None:
        """Give all processes the posterior, prior means and random numbers of process 0."""
        rho = self.posterior.rho
        _processes.check_same(flatten(self.weights), self.num_examples, self.kappa)
        _processes.broadcast([rho.detach(), *[group.prior.mean for group in self.groups]])
        self.posterior.generator = _processes.share_generator(self.generator, rho.device)
        self._shares_draws = True

    def check(self, *optimizers: Optimizer) -> None:
        """Check the optimizers that train the model together; without this call, the first steps warn.

        Raises:
            ValueError: a trained weight or `parameters` is in none of them, or one has a weight decay of its own or
                ``maximize``.
        """
        self._checks.check(optimizers)

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
        """Return what a checkpoint needs beside the model's state: rho, the priors' means, kappa and N."""
        means = {group.name: group.prior.mean for group in self.groups}
        numbers = {"kappa": self.kappa, "num_examples": self.num_examples}
        return {"rho": self.posterior.current_rho, "means": means, **numbers, **self.learned_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, whatever weights the model had when this object was made.

        Raises:
            ValueError: the state is of another model, kappa or N.
        """
        for group in self.groups:
            mean, expected = state["means"].get(group.name), tuple(group.prior.mean.shape)
            if mean is None or mean.shape != expected:
                found = f"{'nothing' if mean is None else f'shape {tuple(mean.shape)}'} for the prior mean"
                problem = f"the state holds {found} of {group.name!r}, expected shape {expected}"
                raise ValueError(f"{problem}: was it saved from another model?")
        for name in ("kappa", "num_examples"):
            saved, own = state.get(name), getattr(self, name)
            if saved != own:
                raise ValueError(f"the state was saved with {name} = {saved}, this object has {own}: they must agree")
        with torch.no_grad():
            self.posterior.rho.copy_(state["rho"])
            for group in self.groups:
                group.prior.mean.copy_(state["means"][group.name])
        if "frozen" in state:
            self.load_learned_state(state)
