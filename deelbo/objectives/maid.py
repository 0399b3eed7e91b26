"""The strength of a linear head by bilevel optimization with certified descent, for features of a frozen network.

The lower problem is strongly convex, and alpha is the modulus mu of its convexity. With nu = log alpha,

    x*(nu) = argmin_x h(x),    h(x) = NLL_train(x) + alpha/2 ||x||^2;      minimize G(nu) = g(x*(nu)),    g = NLL_val

So every error has a bound. With x at which ||grad h(x)|| / alpha <= eps, hence ||x - x*|| <= eps, and q with
||A q - grad g(x)|| <= delta for A the Hessian of h at x, the hypergradient is z = -alpha x . q, and

    |z - dG/dnu| <= w = ||x|| (delta + s eps) + eps (alpha r + s eps),    r = ||q|| + delta / alpha,    s = L_H r + L_g,

where L_H is a Lipschitz constant of h's Hessian and L_g one of grad g: r bounds ||A^-1 grad g||, and s eps / alpha how
far A^-1 grad g is from its value at x*. As g is convex, -||grad g|| eps <= g(x*) - g(x) <= ||grad g|| eps +
L_g eps^2 / 2. A step of nu is accepted if these bounds say that G falls enough. eps and delta are made smaller until
they do, and larger after a success. Rounding errors, of about 1e-16, are not in the bounds.

Source: Salehi, Mukherjee, Roberts, Ehrhardt 2024, "An Adaptively Inexact First-Order Method for Bilevel Optimization
with Application to Hyperparameter Learning" (MAID). Other than there, the bound w has r in place of the larger
||grad g|| / mu; the lower problem is solved by inexact Newton steps, as an eps near 1e-10 occurs; and steps have a
largest length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo._vectors import flatten
from deelbo.groups import Group
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.base import FORWARD, PRODUCT, TrainingContext, evaluation_mode
from deelbo.objectives.curvature import Product, conjugate_gradients
from deelbo.objectives.map import MAP

ETA = 0.75
"""A direction is used if w <= (1 - ETA) |z|; a step of size b is accepted if G falls for certain by ETA^2 b z^2."""
SHRINK, GROW = 0.5, 1.05  # of eps and delta after a failure, and after a success
TRIALS, STEPS = 10, 50  # of a line search, each half as long as the one before; accepted steps
FIRST, LONGEST = 1.0, 4.0  # lengths of steps in nats of log alpha
STATIONARY = 1e-5  # nats of NLL for each nat of log alpha
NEWTON_STEPS, CG_STEPS = 100, 2000
THIRD_DERIVATIVE = math.sqrt(2 / 27)
"""Largest third derivative of log-sum-exp along a unit vector v: the third central moment of v's elements, whose range
is at most sqrt(2), is at most sqrt(2)^3 / (6 sqrt(3))."""


class BilevelProblem(Protocol):
    """A lower and an upper NLL, both convex; vectors are (D,), float64."""

    @property
    def hessian_lipschitz(self) -> float:
        """L_H, a Lipschitz constant of the lower NLL's Hessian."""

    @property
    def upper_smoothness(self) -> float:
        """L_g, a Lipschitz constant of the upper NLL's gradient."""

    def lower_gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of the lower NLL."""

    def lower_curvature(self, x: Tensor) -> Product:
        """Return the products with the Hessian of the lower NLL."""

    def upper(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the upper NLL and its gradient."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear head on features; x is its weight (C, F), then its bias (C,), as one vector.

    Args:
        features, labels: training examples, float64 (n, F) and int64 (n,).
        upper_features, upper_labels: validation examples.
        classes: C.
        bias: whether the head has one.
        count: called with a number of images and of gradients of them, for the work.
    """

    features: Tensor
    labels: Tensor
    upper_features: Tensor
    upper_labels: Tensor
    classes: int
    bias: bool = True
    count: Callable[[int, float], object] = lambda *_: None

    @cached_property
    def hessian_lipschitz(self) -> float:
        return THIRD_DERIVATIVE * float(self._norms(self.features).pow(3).mean())

    @cached_property
    def upper_smoothness(self) -> float:
        return 0.5 * float(self._norms(self.upper_features).square().mean())  # the Hessian by the logits is <= 1/2

    def lower_gradient(self, x: Tensor) -> Tensor:
        self.count(len(self.labels), 1.0)
        return self._pull(self.features, self._residuals(self._logits(self.features, x), self.labels))

    def lower_curvature(self, x: Tensor) -> Product:
        p = self._logits(self.features, x).softmax(1)

        def product(vector: Tensor) -> Tensor:
            self.count(len(self.labels), PRODUCT)
            slope = self._logits(self.features, vector)
            return self._pull(self.features, p * (slope - (p * slope).sum(1, keepdim=True)) / len(p))

        return product

    def upper(self, x: Tensor) -> tuple[float, Tensor]:
        self.count(len(self.upper_labels), 1.0)
        logits = self._logits(self.upper_features, x)
        gradient = self._pull(self.upper_features, self._residuals(logits, self.upper_labels))
        return float(F.cross_entropy(logits, self.upper_labels)), gradient

    def _norms(self, features: Tensor) -> Tensor:
        return (features.square().sum(1) + self.bias).sqrt()

    def _logits(self, features: Tensor, x: Tensor) -> Tensor:
        size = self.classes * features.shape[1]
        logits = features @ x[:size].view(self.classes, -1).T
        return logits + x[size:] if self.bias else logits

    def _residuals(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.softmax(1) - F.one_hot(labels, self.classes)) / len(labels)

    def _pull(self, features: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient by x for slopes (n, C) by the logits."""
        weight = (slopes.T @ features).reshape(-1)
        return torch.cat([weight, slopes.sum(0)]) if self.bias else weight


@dataclass
class Certified:
    """A strength and the steps that led to it.

    Attributes:
        log_alpha: nu.
        x: weights whose distance from the lower problem's solution is at most ``error``.
        error: eps.
        descents: of each accepted step, the least amount in nats by which it lowered G.
        slope: bound of |dG / dnu| at the end; inf without one.
    """

    log_alpha: float
    x: Tensor
    error: float = math.inf
    descents: list[float] = field(default_factory=list)
    slope: float = math.inf


def solve_lower(problem: BilevelProblem, alpha: float, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Return weights near the lower problem's solution, and a bound of their distance from it, ||grad h|| / alpha.

    Inexact Newton steps start from ``x`` and end at ``tolerance``, or where rounding lets the gradient fall no further.
    """
    gradient = problem.lower_gradient(x) + alpha * x
    for _ in range(NEWTON_STEPS):
        norm = float(gradient.norm())
        if norm <= alpha * tolerance:
            break
        product, size = _with_penalty(problem, alpha, x), 1.0
        direction, _ = conjugate_gradients(product, -gradient, torch.zeros_like(x), 0.01, CG_STEPS)
        while size > 1e-6:
            trial = x + size * direction
            trial_gradient = problem.lower_gradient(trial) + alpha * trial
            if float(trial_gradient.norm()) <= (1 - 0.1 * size) * norm:
                break
            size /= 2
        else:
            break
        x, gradient = trial, trial_gradient
    return x, float(gradient.norm()) / alpha


def hypergradient(
    problem: BilevelProblem, alpha: float, x: Tensor, error: float, upper_gradient: Tensor, q: Tensor, tolerance: float
) -> tuple[float, float, Tensor]:
    """Return z, the bound w of its distance from dG / dnu, and q.

    Args:
        problem: the two NLLs.
        alpha: the strength.
        x: weights near the solution.
        error: eps, of x.
        upper_gradient: grad g(x).
        q: start of conjugate gradients.
        tolerance: delta, at which conjugate gradients end; w is with the residual that they reach.
    """
    product = _with_penalty(problem, alpha, x)
    q, _ = conjugate_gradients(product, upper_gradient, q, tolerance / float(upper_gradient.norm()), CG_STEPS)
    residual = float((product(q) - upper_gradient).norm())
    r = float(q.norm()) + residual / alpha
    s = problem.hessian_lipschitz * r + problem.upper_smoothness
    w = float(x.norm()) * (residual + s * error) + error * (alpha * r + s * error)
    return -alpha * float(x @ q), w, q


def _with_penalty(problem: BilevelProblem, alpha: float, x: Tensor) -> Product:
    curvature = problem.lower_curvature(x)
    return lambda vector: curvature(vector) + alpha * vector


def descend(problem: BilevelProblem, alpha: float, x: Tensor, tolerance: float = 0.1) -> Certified:
    """Lower G from ``alpha`` by certified steps, and return where they end.

    They end where |dG / dnu| is below `STATIONARY`, as it is where alpha is far too small, too; at an end of the range
    of strengths; after `STEPS` steps; or where rounding keeps x too far from the solution to certify one.

    Args:
        problem: whose strength is sought.
        alpha: initial strength.
        x: start of the lower problem's weights, float64 (D,).
        tolerance: the first eps and delta.
    """
    at = Certified(_clamp(math.log(alpha)), x)
    q, step_size = torch.zeros_like(x), 0.0
    while len(at.descents) < STEPS:
        alpha = math.exp(at.log_alpha)
        at.x, at.error = solve_lower(problem, alpha, at.x, tolerance)
        value, gradient = problem.upper(at.x)
        z, w, q = hypergradient(problem, alpha, at.x, at.error, gradient, q, tolerance)
        at.slope = abs(z) + w
        if at.slope <= STATIONARY or at.error > tolerance:
            break
        if w > (1 - ETA) * abs(z):
            tolerance *= SHRINK
            continue
        step_size = min(step_size or FIRST / abs(z), LONGEST / abs(z))
        if _clamp(at.log_alpha - step_size * z) == at.log_alpha:
            break
        least = value - float(gradient.norm()) * at.error
        if taken := _search(problem, at, z, least, step_size, tolerance):
            step_size, tolerance = 2 * taken, GROW * tolerance
        else:
            tolerance *= SHRINK
    return at


def _clamp(log_alpha: float) -> float:
    return min(max(log_alpha, math.log(MIN_WEIGHT_DECAY)), math.log(MAX_WEIGHT_DECAY))


def _search(
    problem: BilevelProblem, at: Certified, z: float, least: float, step_size: float, tolerance: float
) -> float | None:
    """Move ``at`` by a step against ``z`` after which G is certainly lower than ``least``.

    Returns:
        the size of the step; None if none was accepted.
    """
    for _ in range(TRIALS):
        log_alpha = _clamp(at.log_alpha - step_size * z)
        x, error = solve_lower(problem, math.exp(log_alpha), at.x, tolerance)
        value, gradient = problem.upper(x)
        most = value + float(gradient.norm()) * error + problem.upper_smoothness / 2 * error**2
        if least - most >= (ETA * (log_alpha - at.log_alpha)) ** 2 / step_size:
            at.log_alpha, at.x, at.error = log_alpha, x, error
            at.descents.append(least - most)
            return step_size
        step_size /= 2
    return None


class ProbeMAID(MAP):
    """MAP of a linear head on a frozen network, whose strength `descend` finds after the first step.

    The features of all training and validation images are computed once, in evaluation mode and not augmented, and
    `descend` works on them in float64. The rest of the run trains as MAP with the strength that it ends with.

    Args:
        groups: the head's alone.
        num_examples: as in `Objective`.
        start: initial strength; clamped to the range of `deelbo.limits`.
        tolerance: the first eps and delta.

    Raises:
        ValueError: other weights than the head's are trained, or a number is not positive.
    """

    def __init__(self, groups: Sequence[Group], num_examples: int, start: float = 1e-2, tolerance: float = 0.1) -> None:
        super().__init__(groups, num_examples, {group.name: start for group in groups})
        if (names := [group.name for group in groups]) != ["head"]:
            expected = "maid's bounds hold for a linear head on frozen features"
            raise ValueError(f"{expected}, got the groups {', '.join(names)}: freeze all other weights")
        if not (0 < start < math.inf and 0 < tolerance < math.inf):
            raise ValueError(f"start and tolerance must be positive numbers, got {start} and {tolerance}")
        self.tolerance = tolerance
        self._found = torch.tensor([_clamp(math.log(start)), 0, 0, 0, math.inf], dtype=torch.float64)
        self._set_strength()

    def should_adapt(self, steps_done: int) -> bool:
        return steps_done == 1

    def warm_up(self, run: TrainingContext) -> None:
        linear_probe(run)

    def adapt(self, run: TrainingContext) -> None:
        """Find the strength; a run without validation images, or with a network of another form, raises ValueError."""
        end = descend(linear_probe(run), math.exp(self._found[0]), flatten(self.weights).double(), self.tolerance)
        descents = [len(end.descents), sum(end.descents), min(end.descents, default=0.0)]
        self._found.copy_(torch.tensor([end.log_alpha, *descents, end.slope], dtype=torch.float64))
        self._set_strength()

    def learned_state(self) -> dict[str, Tensor]:
        return {"found": self._found}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_learned_state(state)
        self._set_strength()

    def describe(self) -> dict[str, float]:
        """Return, beside the usual state, the accepted steps and how much they lowered the validation NLL for certain.

        ``certified_descent`` is the sum over the steps and ``certified_least`` the least of a step, in nats;
        ``certified_slope`` bounds the absolute derivative of the validation NLL by log alpha at the end.
        """
        names = ("certified_steps", "certified_descent", "certified_least", "certified_slope")
        return super().describe() | dict(zip(names, self._found[1:].tolist(), strict=True))

    def _set_strength(self) -> None:
        self._strengths = {"head": math.exp(self._found[0])}


def linear_probe(run: TrainingContext) -> LinearProbe:
    """Return the problem of the run's head, on features of its training and validation images."""
    validation, weights = run.split.validation, run.objective.weights
    if validation is None:
        raise ValueError("maid needs validation images, got none: give the split validation images")
    head = next((module for module in run.model.modules() if getattr(module, "weight", None) is weights[0]), None)
    if not isinstance(head, nn.Linear) or len(weights) != len(list(head.parameters())):
        raise ValueError(f"maid needs a head that is one linear layer, got {type(head).__name__}: name one as head")
    train = run.split.train
    return LinearProbe(
        _features(run, head, train.inputs),
        train.labels,
        _features(run, head, validation.inputs),
        validation.labels,
        head.out_features,
        head.bias is not None,
        run.count_work,
    )


@torch.no_grad()
def _features(run: TrainingContext, head: nn.Linear, inputs: Tensor) -> Tensor:
    """Return what enters the head, float64 (n, F); ValueError unless what leaves it are the logits."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        with evaluation_mode(run.model), run.numerics.autocast(run.device):
            for part in inputs.split(run.batch_size):
                logits = run.model(run.numerics.to_memory_format(run.split.transform.evaluation(part)))
                if logits.data_ptr() != seen[-1][1].data_ptr() or seen[-1][0].shape != (len(part), head.in_features):
                    raise ValueError("maid needs logits that are the head's output, for one vector of each example")
    finally:
        hook.remove()
    run.count_work(len(inputs), FORWARD)
    return torch.cat([features.double() for features, _ in seen])
