"""MAP with strengths that are learned by implicit hypergradients: HOAG, with the segments of a run as inner solves.

The weights that minimize L_tr + sum_g 1/2 exp(nu_g) d_g^T Sigma_g^-1 d_g, with nu_g = log alpha_g, depend on nu, and
with them the validation NLL. By the implicit function theorem, with H the Hessian of L_tr at these weights,

    dL_val / dnu_g = -alpha_g (Sigma_g^-1 d_g) . q_g,    (H + blockdiag(alpha_g Sigma_g^-1)) q = grad L_val

HOAG takes a step along it in each of a number of rounds, and solves for the weights and for q only to a tolerance that
falls with the rounds (Pedregosa 2016, "Hyperparameter Optimization with Approximate Gradient").

For a network it is adapted: the rounds are equal segments of one run, as stochastic steps reach no tolerance; H is the
Gauss-Newton matrix, as the Hessian need not be positive definite; and the linear system is left after few iterations.
Also, a step moves log alpha by at most sqrt(G) nats in norm, as long as the first, and L rises whenever the NLL has
grown. In the author's program steps have no bound, and L rises only when the NLL has grown by 20 %: near the optimum of
a ridge regression it falls until steps leave it again.

Near the end of a cosine learning rate, when weights hardly move, strengths may run to an end of their range. A run
therefore recommends the geometric mean of its strengths, as that of `HypergradientMAP`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deelbo._vectors import dot, flatten
from deelbo.groups import Group
from deelbo.objectives.base import TrainingContext
from deelbo.objectives.curvature import Product, conjugate_gradients, gauss_newton, nll_gradient
from deelbo.objectives.hypergradient import ValidatedMAP

TOLERANCE, FALL = 1e-3, 0.9
"""Epsilon of the first round, and its factor from one round to the next."""
SLACK, REJECTED = 0.25, 1.2
"""C of the slack, and the growth of the validation NLL at which a step is undone."""
MAX_VALIDATION = 1000  # images


class HOAGMAP(ValidatedMAP):
    """MAP whose log alpha_g take a step of -hypergradient / L at the end of each of the run's ``rounds``.

    L starts such that the first step has the norm sqrt(G). It falls by 5 % after a step of norm s that has lowered the
    validation NLL by L s^2, and is doubled after one that has raised it, both up to a slack of the tolerances epsilon.
    A step after which the NLL is 1.2 times as high is undone, too: the strengths before it are restored for a round,
    and epsilon is halved.

    The NLL is that of up to 1,000 fixed validation images.

    Args:
        groups, num_examples, weight_decay: as in `ValidatedMAP`.
        total_steps: optimizer steps of the whole run.
        rounds: their number, at least 2; each has at least one step.
        iterations: largest number of iterations of conjugate gradients in a round.
        images: number of fixed training images, not augmented, that the Gauss-Newton matrix is made of; or all.

    Raises:
        ValueError: fewer than two rounds or steps, or no iteration or image.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        weight_decay: Mapping[str, float],
        total_steps: int,
        rounds: int = 20,
        iterations: int = 10,
        images: int = 250,
    ) -> None:
        super().__init__(groups, num_examples, weight_decay)
        if min(rounds, total_steps) < 2:
            found = f"got {rounds} in {total_steps} steps"
            raise ValueError(f"HOAG compares the rounds of a run, of which there must be at least 2, {found}")
        if min(iterations, images) < 1:
            raise ValueError(f"iterations and images must be at least 1, got {iterations} and {images}")
        self.rounds, self.iterations, self.images = rounds, iterations, images
        self.update_steps = frozenset(max(round((i + 1) * total_steps / rounds), 1) for i in range(rounds))
        self._before = self._log.clone()  # log alpha before the last step
        # epsilon of this round and of the one before, L, norm of the last step and validation NLL before it
        self._round = torch.tensor([TOLERANCE, TOLERANCE, 0, 0, 0], dtype=torch.float64)
        self._solution = torch.zeros(self.dim, dtype=self.weights[0].dtype, device=self.weights[0].device)  # q

    @property
    def tolerance(self) -> float:
        """Epsilon of this round: the relative residual at which the linear system counts as solved."""
        return float(self._round[0])

    def should_adapt(self, steps_done: int) -> bool:
        return steps_done in self.update_steps

    def adapt(self, run: TrainingContext) -> None:
        """End a round; a run without validation images raises ValueError."""
        validation = _some(self._validation_examples(run), MAX_VALIDATION)
        nll, gradient = nll_gradient(run, validation.inputs, validation.labels)
        hessian = gauss_newton(run, _some(run.split.train, self.images).inputs)
        self.learn(nll, self.hypergradient(hessian, gradient))

    @torch.no_grad()
    def hypergradient(self, hessian: Product, gradient: Tensor) -> Tensor:
        """Return dL_val / dlog alpha at the current weights and strengths, (G,) on the host.

        The linear system is solved to `tolerance` in up to ``iterations``, starting from the solution of the last call.

        Args:
            hessian: products with H.
            gradient: of the validation NLL, (D,).
        """
        strengths = self._log.exp().tolist()

        def product(vector: Tensor) -> Tensor:
            image = hessian(vector)
            for group, alpha, x, y in zip(
                self.groups, strengths, self._pieces(vector), self._pieces(image), strict=True
            ):
                y.add_(group.prior.precision_times(x), alpha=alpha)
            return image

        q, _ = conjugate_gradients(product, gradient, self._solution, self.tolerance, self.iterations)
        self._solution.copy_(q)
        pulls = [group.prior.precision_times(flatten(group.weights) - group.prior.mean) for group in self.groups]
        slopes = [-alpha * float(dot(*x)) for alpha, *x in zip(strengths, pulls, self._pieces(q), strict=True)]
        return torch.tensor(slopes, dtype=torch.float64)

    def learn(self, nll: float, hypergradient: Tensor) -> None:
        """Judge the last step by the validation NLL at its end, and take the next one or undo it."""
        epsilon, epsilon_before, lipschitz, step, nll_before = self._round.tolist()
        size = math.sqrt(len(self.groups))
        if step == 0:  # the first round, or the one after a step that was undone: there is none to judge
            lipschitz = lipschitz or float(hypergradient.norm()) / size or 1.0
        elif nll >= REJECTED * nll_before:
            self._log.copy_(self._before)
            self._end_call()
            self._keep(epsilon / 2, epsilon, 2 * lipschitz, 0.0, nll)
            return
        else:
            growth = nll - nll_before - SLACK * epsilon - (SLACK + 1) * epsilon_before * step
            if growth <= -lipschitz * step**2:
                lipschitz *= 0.95
            elif growth > 0:
                lipschitz *= 2
        self._before.copy_(self._log)
        move = hypergradient / lipschitz
        self._log -= (move * min(size / (float(move.norm()) or 1.0), 1.0)).nan_to_num()
        self._end_call()  # which keeps log alpha in its range
        self._keep(FALL * epsilon, epsilon, lipschitz, float((self._log - self._before).norm()), nll)

    def _keep(self, *values: float) -> None:
        self._round.copy_(torch.tensor(values, dtype=torch.float64))

    def learned_state(self) -> dict[str, Tensor]:
        own = {"before": self._before, "round": self._round, "solution": self._solution}
        return super().learned_state() | own


def _some(examples: Any, most: int) -> Any:
    """Return up to ``most`` of the examples, always the same."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return examples.take(order[:most].to(examples.labels.device))
