"""Tests of strengths from the Laplace approximation, against dense and closed-form computations."""

import math
import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.data import Split
from deelbo.data.images import Geometry, Images, ImageTransform
from deelbo.groups import Group, make_groups
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.laplace import Curvature, LaplaceMAP, empirical_fisher, log_marginal_likelihood
from deelbo.priors import Isotropic, LowRank
from deelbo.training.fit import fit
from deelbo.training.numerics import Numerics
from deelbo.training.run import TrainingRun
from deelbo.training.schedule import Schedule
from tests.helpers.ridge import Ridge, ridge

SCHEDULE = Schedule(0.05, steps=20, batch_size=20)


class HeadFirst(nn.Module):
    """A network whose head comes before its backbone, with the BatchNorm and in-place ReLU of ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.first = nn.Linear(16, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.first(x.flatten(1)))
        return self.head(hidden.relu_())  # type: ignore[no-any-return]


def images(n: int, seed: int) -> Images:
    """Return grey 4x4 images of 3 classes, each with its own bright row."""
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 120, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    pixels[torch.arange(n), 0, labels] += 80
    return Images(pixels.to(torch.uint8), labels, 3)


def make_run(kind: str = "network", prior: str = "l2-zero", **settings: Any) -> TrainingRun:
    """Return a float64 run over 60 images with random weights and running statistics."""
    torch.manual_seed(0)
    train = images(60, 1)
    split = Split(train, None, images(30, 2), ImageTransform(Geometry(side=4, crop=4)).fit(train))
    if kind == "linear":
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
        groups = make_groups(model, None, prior)
    else:
        model = HeadFirst().double()
        for buffer in (model.norm.running_mean, model.norm.running_var):
            assert buffer is not None
            buffer.uniform_(0.5, 2)
        groups = make_groups(model, "head", prior)
    objective = LaplaceMAP(groups, 60, SCHEDULE.total_steps(60), **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return TrainingRun(model, split, objective, SCHEDULE, seed=0)


def inputs(run: TrainingRun) -> tuple[Tensor, Tensor]:
    """Return the network's inputs for the training images, and their labels."""
    return run.split.transform.normalization(run.split.train.pixels).double(), run.split.train.labels


def dense(run: TrainingRun, log_precision: Tensor) -> float:
    """Return the same approximation by dense matrices, image by image, with determinants by LU."""
    x, labels = inputs(run)
    weights = [p for group in run.objective.groups for p in group.weights]
    fisher = torch.zeros(run.objective.dim, run.objective.dim, dtype=torch.float64)
    nll = 0.0
    run.model.eval()
    for image, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(run.model(image[None]), label[None])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights)])
        fisher += torch.diag(gradient**2)
        nll += loss.item()
    precision = torch.diag(
        torch.cat([d.expand(g.prior.dim) for d, g in zip(log_precision.exp(), run.objective.groups, strict=True)])
    )
    theta = torch.cat([p.detach().reshape(-1) for p in weights])
    mean = torch.cat([group.prior.mean for group in run.objective.groups])
    log_prior = 0.5 * (torch.logdet(precision) - (theta - mean) @ precision @ (theta - mean))
    return float(-nll + log_prior - 0.5 * torch.logdet(fisher + precision))


@pytest.mark.parametrize("kind", ["linear", "network"])
@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp"])
def test_the_marginal_likelihood_is_the_dense_one(kind: str, prior: str) -> None:
    """The marginal likelihood agrees with explicit gradients and determinants."""
    run = make_run(kind, prior)
    log_precision = torch.tensor([1.3, -0.7][: len(run.objective.groups)], dtype=torch.float64)
    value, _ = log_marginal_likelihood(empirical_fisher(run), log_precision)
    assert value == pytest.approx(dense(run, log_precision), rel=1e-10)


def test_the_slope_is_the_finite_difference() -> None:
    """The slope in log delta of each group is the central difference of the marginal likelihood."""
    curvature = empirical_fisher(make_run())
    at, step = torch.tensor([0.4, 2.0], dtype=torch.float64), 1e-5
    _, slope = log_marginal_likelihood(curvature, at)
    for i, unit in enumerate(torch.eye(2, dtype=torch.float64) * step):
        up, down = (log_marginal_likelihood(curvature, at + sign * unit)[0] for sign in (1, -1))
        assert float(slope[i]) == pytest.approx((up - down) / (2 * step), rel=1e-6)


def learned_alpha(problem: Ridge, curvature: str) -> float:
    """Return what `LaplaceMAP` learns on a ridge regression that is solved exactly before each update."""
    weights = nn.Parameter(torch.zeros(problem.dim, dtype=torch.float64))
    group = Group("backbone", (weights,), Isotropic(torch.zeros(problem.dim, dtype=torch.float64)))
    objective = LaplaceMAP([group], problem.num_examples, total_steps=100)
    for _ in range(100):
        w = problem.solution(objective.weight_decay()["backbone"])
        objective.learn(at(problem, w, curvature))
    return objective.weight_decay()["backbone"]


def at(problem: Ridge, w: Any, curvature: str) -> Curvature:
    """Return a ridge regression's curvature at weights (D,): the Hessian's or the empirical Fisher's diagonal."""
    diagonal = problem.num_examples * np.diag(problem.hessian())
    if curvature == "fisher":
        residuals = problem.y - problem.X @ w
        diagonal = np.sum((residuals[:, None] * problem.X / problem.noise**2) ** 2, axis=0)
    constant = 0.5 * math.log(2 * math.pi * problem.noise**2)
    nll = problem.num_examples * (problem.nll(w) + constant)
    return Curvature(nll, (torch.from_numpy(diagonal.copy()),), (float(w @ w),))


def orthogonal() -> Ridge:
    """Return a ridge regression with orthogonal columns, whose Hessian is diagonal."""
    drawn, random = ridge(), np.random.default_rng(1)
    columns = np.linalg.qr(drawn.X)[0] * math.sqrt(drawn.num_examples)
    noise = drawn.noise * random.normal(size=drawn.num_examples)
    return replace(drawn, X=columns, y=columns @ (0.5 * random.normal(size=drawn.dim)) + noise)


def test_exact_cases_give_the_evidence() -> None:
    """With a Gaussian likelihood and orthogonal inputs the approximation is the evidence, and alpha is its best."""
    problem = orthogonal()
    for alpha in (1e-3, 0.07, 2.0):
        log_precision = torch.tensor([math.log(problem.num_examples * alpha)], dtype=torch.float64)
        value, _ = log_marginal_likelihood(at(problem, problem.solution(alpha), "hessian"), log_precision)
        assert value == pytest.approx(problem.num_examples * problem.evidence(alpha), rel=1e-10)
    assert learned_alpha(problem, "hessian") == pytest.approx(problem.best_alpha_evidence(), rel=0.01)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("curvature", ["hessian", "fisher"])
def test_learned_alpha_of_a_ridge_regression(curvature: str, seed: int) -> None:
    """With correlated inputs alpha is within 15 % of the evidence's, its leave-one-out NLL within 5 %."""
    problem = ridge(seed=seed)
    alpha = learned_alpha(problem, curvature)
    assert 1 / 1.15 < alpha / problem.best_alpha_evidence() < 1.15
    assert problem.loo(alpha) < 1.05 * problem.loo(problem.best_alpha_loo())


def test_learning_does_not_change_the_network() -> None:
    """Weights, buffers, gradients, modes and random numbers stay the same to the bit."""
    run = make_run()
    run.model.train()
    run.model.get_submodule("norm").eval()
    F.cross_entropy(run.model(inputs(run)[0]), inputs(run)[1]).backward()
    weights, random = deepcopy(run.model.state_dict()), torch.get_rng_state()
    gradients = [deepcopy(p.grad) for p in run.model.parameters()]
    run.objective.adapt(run)
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in run.model.modules()] == [True, True, True, False]


def test_training_uses_the_learned_strengths() -> None:
    """Strengths start at a precision of 1, move, and determine the gradients of the next step."""
    run = make_run()
    assert run.objective.weight_decay() == {"backbone": pytest.approx(1 / 60), "head": pytest.approx(1 / 60)}
    run.objective.adapt(run)
    learned = run.objective.weight_decay()
    assert all(abs(math.log(strength * 60)) > 0.1 for strength in learned.values())
    with run.objective.step():
        (0 * torch.stack([p.sum() for p in run.model.parameters()]).sum()).backward()
    for group in run.objective.groups:
        for weight in group.weights:
            torch.testing.assert_close(weight.grad, learned[group.name] * weight.detach())


def test_the_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of images that are differentiated at one time changes nothing."""
    run = make_run()
    whole = empirical_fisher(run)
    monkeypatch.setattr("deelbo.objectives.laplace.MAX_GRADIENT_NUMBERS", 7 * run.objective.dim)
    parts = empirical_fisher(run)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-12)
    for one, other in zip(parts.diagonal, whole.diagonal, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_weights_stay_out() -> None:
    """A frozen weight is in no group and has no curvature."""
    run = make_run()
    every = empirical_fisher(run)
    run.model.get_submodule("norm").requires_grad_(False)
    groups = make_groups(run.model, "head", "l2-zero")
    some = empirical_fisher(TrainingRun(run.model, run.split, LaplaceMAP(groups, 60, 20), SCHEDULE, seed=0))
    assert [len(diagonal) for diagonal in some.diagonal] == [16 * 5 + 5, 5 * 3 + 3]
    torch.testing.assert_close(some.diagonal[0], every.diagonal[0][:85])
    torch.testing.assert_close(some.diagonal[1], every.diagonal[1])


@pytest.mark.parametrize(
    ("every", "burn_in", "expected"),
    [(0.1, 0.5, {100, 120, 140, 160, 180}), (0.25, 0, {1, 50, 100, 150}), (1, 0.9, {180}), (0.001, 0.99, {198, 199})],
)
def test_update_steps(every: float, burn_in: float, expected: set[int]) -> None:
    """Updates are spaced evenly from the burn-in on, at most one per step and none after the last step."""
    objective = LaplaceMAP(make_run().objective.groups, 60, 200, every, burn_in)
    assert {step for step in range(1, 201) if objective.should_adapt(step)} == expected


def test_learned_state_is_restored() -> None:
    """An objective that loads another's learned state continues exactly like it."""
    run = make_run()
    curvature = empirical_fisher(run)
    one, other = (LaplaceMAP(run.objective.groups, 60, 20) for _ in range(2))
    one.learn(curvature)
    kept = deepcopy(one.learned_state())
    other.load_learned_state(kept)
    assert other.weight_decay() == one.weight_decay()
    for objective in (one, other):
        objective.learn(curvature)
    assert other.weight_decay() == one.weight_decay()
    assert not torch.equal(kept["log_precision"], other.learned_state()["log_precision"])


@pytest.mark.parametrize(("curvature", "distance", "precision", "end"), [(5.0, 0.0, 40, 1), (0.0, 1e9, 1e-6, 0)])
def test_strengths_stay_in_their_range(curvature: float, distance: float, precision: float, end: int) -> None:
    """The strength alpha stops at the ends of the range of `deelbo.limits`."""
    mean, diagonal = torch.zeros(4).double(), torch.full((4,), curvature).double()
    objective = LaplaceMAP([Group("backbone", (nn.Parameter(mean),), Isotropic(mean))], 50, 10, precision=precision)
    objective.learn(Curvature(1.0, (diagonal,), (distance,)))
    assert objective.weight_decay() == {"backbone": pytest.approx((MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY)[end])}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_whole_run(precision: str) -> None:
    """`fit` learns the strengths, books the time, and ends with minus the log marginal likelihood per image."""
    run = make_run()
    model = run.model.float()
    objective = LaplaceMAP(make_groups(model, "head", "l2-sp"), 60, SCHEDULE.total_steps(60))
    numerics = Numerics(precision)
    result = fit(model, run.split, objective, SCHEDULE, numerics=numerics)
    assert result.status == "completed"
    assert result.seconds["adapt"] > 0
    assert result.series[0]["weight_decay_head"] == pytest.approx(1 / 60)
    assert result.state["weight_decay_head"] == objective.weight_decay()["head"] != pytest.approx(1 / 60, rel=0.1)
    ended = TrainingRun(model, run.split, objective, SCHEDULE, 0, numerics)
    value, _ = log_marginal_likelihood(empirical_fisher(ended), objective.learned_state()["log_precision"])
    assert result.metrics["objective"] == pytest.approx(-value / 60)


def test_low_rank_priors_are_refused() -> None:
    """A prior whose precision is not diagonal is refused."""
    weights = nn.Parameter(torch.randn(6))
    prior = LowRank(torch.zeros(6), torch.rand(6), torch.randn(6, 3))
    with pytest.raises(ValueError, match="must be isotropic, got LowRank for 'backbone': use l2-zero or l2-sp"):
        LaplaceMAP([Group("backbone", (weights,), prior)], 10, 10)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"every": 0.0}, r"every must be in \(0, 1\]"),
        ({"burn_in": 1.0}, r"burn_in in \[0, 1\)"),
        ({"hyper_steps": 0}, "hyper_steps and total_steps must be at least 1"),
        ({"hyper_rate": -0.1}, "hyper_rate and precision positive numbers"),
        ({"precision": math.inf}, "hyper_rate and precision positive numbers"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], words: str) -> None:
    """A setting out of its range is refused with its value."""
    groups = make_run().objective.groups
    with pytest.raises(ValueError, match=words):
        LaplaceMAP(groups, 60, 20, **setting)  # type: ignore[arg-type]


def test_missing_laplace_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error is one line with the command that installs it."""
    monkeypatch.setitem(sys.modules, "laplace.curvature", None)
    with pytest.raises(
        ImportError, match=r"^laplace needs laplace-torch and curvlinops: pip install 'deelbo\[methods\]'$"
    ):
        empirical_fisher(make_run())
