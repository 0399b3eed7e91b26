"""Linear algebra with the curvature of a network: Gauss-Newton products, conjugate gradients, per-example gradients.

With p_i the class probabilities of example i and J_i the Jacobian of its logits by the weights, the generalized
Gauss-Newton matrix of the mean NLL over n examples is

    G = 1/n sum_i J_i^T (diag p_i - p_i p_i^T) J_i

It is positive semi-definite, equals the Hessian where the logits are linear in the weights, and is the Hessian without
the logits' second derivatives elsewhere (Schraudolph 2002, "Fast Curvature Matrix-Vector Products for Second-Order
Gradient Descent"). It is never formed: a product is one forward-mode and one reverse-mode derivative.

Networks are differentiated in evaluation mode, by examples that are not augmented. Vectors (D,) are in the order of the
objective's weights. All functions add to the run's work, see `TrainingContext.count_work`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vjp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from deelbo._vectors import dot, flatten, views
from deelbo.objectives.base import PRODUCT, TrainingContext, evaluation_mode

Product = Callable[[Tensor], Tensor]
"""A product of a symmetric matrix with a vector (D,)."""


def conjugate_gradients(
    product: Product, right: Tensor, start: Tensor, tolerance: float, iterations: int
) -> tuple[Tensor, int]:
    """Solve A x = b by conjugate gradients, for a symmetric and positive definite A.

    Source: Hestenes and Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems".

    Args:
        product: with A.
        right: b, (D,).
        start: the first x, (D,).
        tolerance: the norm of the residual b - A x, relative to b's, at which the iterations end.
        iterations: their largest number.

    Returns:
        x, and the number of iterations. There is one product more than iterations, for the first residual.
    """
    x, residual = start.clone(), right - product(start)
    direction, count = residual.clone(), 0
    squared, enough = float(dot(residual, residual)), tolerance**2 * float(dot(right, right))
    while squared > enough and count < iterations:
        image = product(direction)
        curvature = float(dot(direction, image))
        if not curvature > 0:  # by rounding, or NaN
            break
        x.add_(direction, alpha=squared / curvature)
        residual.sub_(image, alpha=squared / curvature)
        squared, before = float(dot(residual, residual)), squared
        direction.mul_(squared / before).add_(residual)
        count += 1
    return x, count


def gauss_newton(run: TrainingContext, inputs: Tensor) -> Product:
    """Return the products with the Gauss-Newton matrix G of the mean NLL over the examples with these inputs."""
    weights = _named_weights(run)

    def product(vector: Tensor) -> Tensor:
        run.count_work(len(inputs), PRODUCT)
        total = torch.zeros_like(vector)
        tangents = dict(zip(weights, views(vector, run.objective.weights), strict=True))
        with _differentiable(run.model):
            for x in _batches(run, inputs):

                def logits_of(given: dict[str, Tensor], x: Tensor = x) -> Tensor:
                    logits: Tensor = functional_call(run.model, given, (x,))
                    return logits

                logits, slope = jvp(logits_of, (weights,), (tangents,))  # type: ignore[misc]
                p = logits.softmax(-1)
                pulled = p * (slope - (p * slope).sum(-1, keepdim=True))
                (gradients,) = vjp(logits_of, weights)[1](pulled)
                total.add_(flatten(gradients.values()), alpha=1 / len(inputs))
        return total

    return product


def nll_gradient(run: TrainingContext, inputs: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Return the mean NLL of examples in nats and its gradient (D,), in the precision of training."""
    run.count_work(len(labels))
    weights, nll = run.objective.weights, 0.0
    total = torch.zeros(run.objective.dim, dtype=weights[0].dtype, device=run.device)
    with evaluation_mode(run.model):
        for x, targets in zip(_batches(run, inputs), labels.split(run.batch_size), strict=True):
            with run.numerics.autocast(run.device):
                loss = F.cross_entropy(run.model(x).to(weights[0].dtype), targets)
            share = len(targets) / len(labels)
            total.add_(flatten(torch.autograd.grad(loss, weights, materialize_grads=True)), alpha=share)
            nll += share * float(loss.detach())
    return nll, total


def per_example_gradients(
    run: TrainingContext, inputs: Tensor, labels: Tensor, chunk: int
) -> tuple[Tensor, list[Tensor]]:
    """Return the NLL of n examples (n,) and their gradients by each weight (n, size), ``chunk`` examples at a time."""
    run.count_work(len(labels))

    def nll_of(weights: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(run.model, weights, (x[None],)), label[None])

    with _differentiable(run.model):
        x = torch.cat(list(_batches(run, inputs)))
        gradients, nll = vmap(grad_and_value(nll_of), (None, 0, 0), chunk_size=chunk)(_named_weights(run), x, labels)
    return nll, [gradient.flatten(1) for gradient in gradients.values()]


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """A block in evaluation mode with attention in plain operations, as fused ones lack derivatives of `torch.func`."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own use of torch.jit, on the first jvp
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _named_weights(run: TrainingContext) -> dict[str, Tensor]:
    """Return the objective's weights by their names in the network, in order."""
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    return {names[weight]: weight.detach() for weight in run.objective.weights}


def _batches(run: TrainingContext, inputs: Tensor) -> Iterator[Tensor]:
    """Return the network's inputs in batches, real numbers in the weights' precision."""
    dtype = run.objective.weights[0].dtype
    for part in inputs.split(run.batch_size):
        x = run.split.transform.evaluation(part)
        yield run.numerics.to_memory_format(x.to(dtype) if x.is_floating_point() else x)
