"""Tests of conjugate gradients, Gauss-Newton products and gradients, against dense matrices and loops in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deelbo import MAP, Schedule, make_groups
from deelbo._vectors import flatten
from deelbo.data import Split
from deelbo.objectives.curvature import conjugate_gradients, gauss_newton, nll_gradient, per_example_gradients
from deelbo.training.run import TrainingRun


class Attention(nn.Module):
    """A transformer layer over the rows of an image, whose attention has fused kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x.flatten(1, 2)).mean(1))
        return out


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten())
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
        "convolution": nn.Sequential(convolution, nn.Dropout(0.5), nn.Linear(8, 4)),
        "attention": Attention(),
    }


def make_run(model: nn.Module, split: Split, batch_size: int = 32) -> TrainingRun:
    """Return a float64 run whose running statistics and weights are no special ones."""
    model = model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 2)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    objective = MAP(make_groups(model, None, "l2-zero"), 160, {"backbone": 0.1})
    run = TrainingRun(model, split, objective, Schedule(0.1, steps=30, batch_size=batch_size), 0)
    run.set_training_mode()
    return run


def logits_of(run: TrainingRun, inputs: Tensor, vector: Tensor) -> Tensor:
    """Return the logits at weights (D,), in evaluation mode."""
    model = copy.deepcopy(run.model).eval()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    pieces = vector.split([weight.numel() for weight in run.objective.weights])
    given = {n: p.view_as(w) for n, p, w in zip(names, pieces, run.objective.weights, strict=True)}
    logits: Tensor = functional_call(model, given, (run.split.transform.evaluation(inputs).double(),))
    return logits


def dense_gauss_newton(run: TrainingRun, inputs: Tensor) -> Tensor:
    """Return G (D, D) from Jacobians, one example at a time."""
    weights, total = flatten(run.objective.weights), torch.zeros(run.objective.dim, run.objective.dim).double()
    for example in inputs.split(1):
        jacobian = torch.autograd.functional.jacobian(lambda w, x=example: logits_of(run, x, w)[0], weights)
        p = logits_of(run, example, weights)[0].softmax(0)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(inputs)
    return total


@pytest.mark.parametrize("kind", ["linear", "convolution", "attention"])
def test_gauss_newton_products_are_the_dense_ones(kind: str, toy_split: Split) -> None:
    """A product is that with the explicit matrix; network, mode and random numbers stay unchanged."""
    run = make_run(networks()[kind], toy_split, batch_size=5)  # three batches of the 12 images, the last a small one
    inputs = toy_split.train.inputs[:12]
    matrix = dense_gauss_newton(run, inputs)
    state, random = copy.deepcopy(run.model.state_dict()), torch.get_rng_state()
    product, work = gauss_newton(run, inputs), run.gradient_equivalents
    for _ in range(3):
        vector = torch.randn(run.objective.dim).double()
        torch.set_rng_state(random)
        torch.testing.assert_close(product(vector), matrix @ vector, rtol=1e-9, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), random)
    assert run.model.training
    assert all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in run.model.state_dict().items())
    assert run.gradient_equivalents - work == pytest.approx(3 * 2 * 12 / 5)


def test_the_gauss_newton_matrix_of_linear_logits_is_the_hessian(toy_split: Split) -> None:
    """In logistic regression products are those with autograd's Hessian of the mean NLL."""
    run = make_run(networks()["linear"], toy_split)
    examples, weights = toy_split.train, flatten(run.objective.weights)
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(logits_of(run, examples.inputs, w), examples.labels), weights
    )
    vector = torch.randn(run.objective.dim).double()
    torch.testing.assert_close(gauss_newton(run, examples.inputs)(vector), hessian @ vector, rtol=1e-9, atol=1e-12)


def test_frozen_weights_are_not_differentiated(toy_split: Split) -> None:
    """With a frozen backbone vectors are as long as the head, and products those of its rows and columns."""
    model = networks()["convolution"]
    run = make_run(model, toy_split)
    whole = dense_gauss_newton(run, toy_split.train.inputs[:4])
    model.get_submodule("0").requires_grad_(False)
    objective = MAP(make_groups(model, "2", "l2-zero"), 160, {"head": 0.1})
    probe = TrainingRun(model, toy_split, objective, Schedule(0.1, steps=30), 0)
    vector = torch.randn(objective.dim).double()
    found = gauss_newton(probe, toy_split.train.inputs[:4])(vector)
    torch.testing.assert_close(found, whole[-36:, -36:] @ vector, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_gradients_are_those_of_a_loop(kind: str, toy_split: Split) -> None:
    """The mean's gradient, by batches, and each example's, by chunks, are autograd's of one example after the other."""
    run = make_run(networks()[kind], toy_split, batch_size=5)
    inputs, labels = toy_split.train.inputs[:12], toy_split.train.labels[:12]
    weights = flatten(run.objective.weights).requires_grad_()
    losses = F.cross_entropy(logits_of(run, inputs, weights), labels, reduction="none")
    rows = torch.stack([torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses])
    nll, gradient = nll_gradient(run, inputs, labels)
    assert nll == pytest.approx(float(losses.detach().mean()), rel=1e-12)
    torch.testing.assert_close(gradient, rows.mean(0), rtol=1e-9, atol=1e-14)
    each, gradients = per_example_gradients(run, inputs, labels, chunk=7)
    torch.testing.assert_close(each, losses.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(gradients, 1), rows, rtol=1e-9, atol=1e-14)
    assert run.gradient_equivalents == pytest.approx(2 * 12 / 5)
    assert run.model.training


def test_conjugate_gradients_solve_the_system() -> None:
    """The residual is below the tolerance, the solution the dense one; a better start needs fewer iterations."""
    half = torch.randn(30, 30).double()
    matrix, right = half @ half.T + 0.1 * torch.eye(30), torch.randn(30).double()
    exact = torch.linalg.solve(matrix, right)
    zero = torch.zeros(30).double()
    found, count = conjugate_gradients(lambda v: matrix @ v, right, zero, 1e-10, 200)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)
    assert not zero.any()
    counts = []
    for start in (zero, exact + 1e-3 * torch.randn(30), found):
        rough, iterations = conjugate_gradients(lambda v: matrix @ v, right, start, 1e-3, 200)
        assert float((matrix @ rough - right).norm()) <= 1e-3 * float(right.norm())
        counts.append(iterations)
    assert count > counts[0] > counts[1] > counts[2] == 0


def test_conjugate_gradients_stop_after_their_iterations() -> None:
    """Two iterations are exact for two distinct eigenvalues; NaN and a singular direction end the iterations."""
    values, right = torch.tensor([2.0, 2.0, 5.0]).double(), torch.tensor([1.0, -3.0, 4.0]).double()
    zero = torch.zeros(3).double()
    found, count = conjugate_gradients(lambda v: values * v, right, zero, 1e-14, 2)
    torch.testing.assert_close(found, right / values, rtol=1e-12, atol=0)
    assert count == 2
    one, _ = conjugate_gradients(lambda v: values * v, right, zero, 1e-14, 1)
    torch.testing.assert_close(one, (right @ right) / (right @ (values * right)) * right)
    for product in (torch.zeros_like, lambda v: v * torch.nan):
        assert conjugate_gradients(product, right, zero, 1e-3, 9)[1] == 0
