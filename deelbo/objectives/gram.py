"""MAP with strengths that maximize Laplace's marginal likelihood, by the Gram matrix of per-example gradients.

With theta the current weights, delta_g = N alpha_g the prior precision of group g, and J_g the gradients of the NLL of
each training example by the group's weights, in rows (N, D_g), the Hessian of the summed NLL is approximated by the
empirical Fisher matrix J^T J with all its elements. By Sylvester's identity its determinant is that of a small matrix:

    log p(data | delta) ~ - sum_n NLL_n - 1/2 sum_g delta_g ||theta_g - mu_g||^2 - 1/2 log det(I + M)
    M = sum_g K_g / delta_g,    K_g = J_g J_g^T    (N, N)

The effective number of weights of a group is gamma_g = tr[(K_g / delta_g) (I + M)^-1], and their sum is below N
whatever the strengths, while that of the diagonal approximation in `deelbo.objectives.laplace` is bounded by D alone.
The marginal likelihood is stationary where delta_g ||theta_g - mu_g||^2 = gamma_g, which MacKay's update solves for
delta_g at a fixed gamma_g. It is repeated here with the geometric mean of the old and the new value: as gamma_g falls
with delta_g, by up to 1/delta_g, the update alone may alternate between two values.

Sources: MacKay 1992, "Bayesian Interpolation"; Immer, van der Ouderaa, van der Wilk, Raetsch, Schoelkopf 2023,
"Stochastic Marginal Likelihood Gradients using Neural Tangent Kernels", which has the determinant by the kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deelbo._vectors import flatten
from deelbo.objectives.base import TrainingContext
from deelbo.objectives.curvature import per_example_gradients
from deelbo.objectives.laplace import MAX_GRADIENT_NUMBERS, LaplaceMAP

MAX_EXAMPLES, MAX_NUMBERS = 500, 1 << 29
"""Bounds on the side of the Gram matrix, and on the numbers in J."""


@dataclass(frozen=True)
class Gram:
    """The quantities of a network at its current weights that the marginal likelihood depends on."""

    nll: float  # summed over the training examples, in nats
    matrices: tuple[Tensor, ...]  # K of each group, each (n, n), in float64
    squared_distance: tuple[float, ...]  # ||theta_g - mu_g||^2 of each group


def gram_evidence(gram: Gram, log_precision: Tensor) -> tuple[float, Tensor]:
    """Return log p(data | delta) in nats and gamma (G,), for log delta (G,) in float64 on the CPU.

    Both are NaN where a gradient is not finite.
    """
    precisions = log_precision.exp()
    scaled = [matrix / delta for matrix, delta in zip(gram.matrices, precisions.tolist(), strict=True)]
    system = torch.eye(len(scaled[0]), dtype=torch.float64, device=scaled[0].device) + sum(scaled)
    factor, failed = torch.linalg.cholesky_ex(system)
    factor = torch.where(failed == 0, factor, torch.nan)
    inverse = torch.cholesky_inverse(factor)
    gamma = torch.stack([(matrix * inverse).sum() for matrix in scaled]).cpu()
    scatter = float(precisions @ torch.tensor(gram.squared_distance, dtype=torch.float64))
    return -gram.nll - 0.5 * scatter - float(factor.diagonal().log().sum()), gamma


def gram_matrices(run: TrainingContext) -> Gram:
    """Return the Gram matrices over the run's training images, not augmented, with the network in evaluation mode.

    Where there are more than `MAX_EXAMPLES`, or than J has room for, n of them, always the same, stand for all, with K
    and the NLL multiplied by N / n. Model, gradients and random numbers stay unchanged.
    """
    objective, examples = run.objective, run.split.train
    count = min(len(examples), MAX_EXAMPLES, max(MAX_NUMBERS // objective.dim, 1))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:count]
    some = examples.take(order.to(examples.labels.device))
    chunk = max(min(run.batch_size, MAX_GRADIENT_NUMBERS // objective.dim), 1)
    nll, gradients = per_example_gradients(run, some.inputs, some.labels, chunk)
    matrices, share, first = [], len(examples) / count, 0
    for group in objective.groups:
        rows = gradients[first : first + len(group.weights)]
        first += len(group.weights)
        products = [part.double() @ part.double().T for part in rows]
        matrices.append(share * torch.stack(products).sum(0))
    distances = tuple(float(group.prior.squared_distance(flatten(group.weights))) for group in objective.groups)
    return Gram(share * float(nll.double().sum()), tuple(matrices), distances)


class GramLaplaceMAP(LaplaceMAP):
    """MAP whose strengths alpha_g = delta_g / N are learned during the run, as `LaplaceMAP`'s, by the Gram matrix.

    Args:
        groups, num_examples, total_steps, every, burn_in, precision: as in `LaplaceMAP`.
        hyper_steps: MacKay's updates at each of the run's updates. With one group each halves the distance of log delta
            to its optimum at that curvature, or does better.
    """

    def adapt(self, run: TrainingContext) -> None:
        self.climb(gram_matrices(run))

    def warm_up(self, run: TrainingContext) -> None:
        self.adapt(run)

    def climb(self, gram: Gram) -> None:
        """Take MacKay's updates at that curvature; alpha stays within the range of `deelbo.limits`."""
        distances = torch.tensor(gram.squared_distance, dtype=torch.float64)
        for _ in range(self.hyper_steps):
            _, gamma = gram_evidence(gram, self._log_precision)
            self._log_precision.add_((gamma / distances).log()).div_(2)
            self._clamp()
        self._set_strengths()

    def selection_metrics(self, run: TrainingContext) -> dict[str, float]:
        value, _ = gram_evidence(gram_matrices(run), self._log_precision)
        return {"objective": -value / self.num_examples}
