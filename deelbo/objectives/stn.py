"""MAP with strengths that are learned from validation images, by the linear response of the weights to them.

With nu_g = log alpha_g and center nu0, the weights that training would end with are approximated by

    theta(nu) = theta_0 + sum_g (nu_g - nu0_g) u_g,    u_g ~ dtheta / dnu_g,  (D,) each.

Each training step draws nu ~ N(nu0, s^2 I) and takes the gradient of MAP with the drawn strengths at theta(nu), so that
theta_0 and u are trained together:

    dL / dtheta_0 = dL / dtheta,    dL / du_g = (nu_g - nu0_g) dL / dtheta.

For small s the minimum is u_g = -alpha_g (H + sum_h alpha_h Sigma_h^-1)^-1 Sigma_g^-1 d_g, the derivative of MAP's
solution. Every few steps nu0 follows the response, dL_val / dnu_g = u_g . grad L_val(theta_0), and theta_0 with it, to
the weights that are expected at the new strengths.

This is the idea of Self-Tuning Networks (MacKay et al. 2019, "Self-Tuning Networks: Bilevel Optimization of
Hyperparameters using Structured Best-Response Functions"; centered as by Bae and Grosse 2020, "Delta-STN: Efficient
Bilevel Optimization for Neural Networks using Structured Response Jacobians"), in another form than the published ones:
u is a vector as large as the network for each group, not a gate in each layer; nu is drawn for a batch, not for an
example, which BatchNorm would mix; and s stays as given. It fits any module, and needs the memory of G more networks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deelbo._vectors import add_, add_to_gradients_, copy_, dense_gradients, dot, flatten, views
from deelbo.groups import Group
from deelbo.objectives.hypergradient import HypergradientMAP


class ResponseMAP(HypergradientMAP):
    """MAP whose log alpha_g Adam moves every few steps, along the weights' learned response to them.

    Adam, the validation batches and the recommended strengths are those of `HypergradientMAP`; Adam is given
    dL_val / dlog alpha_g.

    Args:
        groups, num_examples, weight_decay, rate: as in `HypergradientMAP`.
        every: training steps between two moves of the strengths.
        spread: s, the standard deviation of the drawn log strengths in nats. Far above 0.1 the weights no longer
            respond linearly, and training may diverge where alpha is large.
        generator: random numbers of the draws, on the CPU; None: torch's global generator.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        weight_decay: Mapping[str, float],
        rate: float | None = None,
        every: int = 2,
        spread: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(groups, num_examples, weight_decay, rate, every)
        if not 0 < spread < math.inf:
            raise ValueError(f"spread must be a number above 0, a standard deviation of log alpha, got {spread}")
        self.spread, self.generator = spread, generator
        self.responses = [nn.Parameter(torch.zeros_like(flatten(self.weights))) for _ in self.groups]
        self._center = torch.empty_like(self.responses[0])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.responses)

    @contextmanager
    def step(self) -> Iterator[None]:
        draws = (self.spread * torch.randn(len(self.groups), dtype=torch.float64, generator=self.generator)).tolist()
        strengths = self._strengths
        for response in self.responses:
            response.grad = None
        flatten(self.weights, out=self._center)
        self._respond(draws)
        self._strengths = {g.name: strengths[g.name] * math.exp(d) for g, d in zip(self.groups, draws, strict=True)}
        try:
            with super().step():
                yield
        finally:
            self._strengths = strengths
            copy_(self.weights, views(self._center, self.weights))
        if gradients := dense_gradients(self.weights):
            slope = flatten(gradients)
            for response, draw in zip(self.responses, draws, strict=True):
                add_to_gradients_([response], slope, draw)

    def directions(self, validation_gradient: Sequence[Tensor]) -> Tensor:
        """Return dL_val / dlog alpha by the response, (G,) on the host."""
        slope = flatten(validation_gradient)
        return torch.stack([dot(response.detach(), slope) for response in self.responses]).double().cpu()

    def move(self, directions: Tensor, rate: float) -> None:
        """Take one step of Adam on log alpha, against ``directions`` (G,), and move the weights along the response."""
        before = self._log.clone()
        super().move(directions, rate)
        self._respond((self._log - before).tolist())

    @torch.no_grad()
    def _respond(self, changes: Sequence[float]) -> None:
        """Move the weights by the response to ``changes`` of log alpha, one for each group."""
        for response, change in zip(self.responses, changes, strict=True):
            add_(self.weights, views(response, self.weights), change)
