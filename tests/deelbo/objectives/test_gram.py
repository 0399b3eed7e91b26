"""Tests of Laplace's marginal likelihood by the Gram matrix, against dense matrices and the exact evidence."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Group, Isotropic, Schedule, make_groups
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives import gram
from deelbo.objectives.gram import Gram, GramLaplaceMAP, gram_evidence, gram_matrices
from deelbo.objectives.laplace import empirical_fisher
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun
from tests.deelbo.objectives.test_laplace import SCHEDULE, inputs, make_run
from tests.helpers.ridge import Ridge, ridge

SHAPES = [{"num_examples": 60, "dim": 30}, {"num_examples": 30, "dim": 60}]


def ridge_gram(problem: Ridge, alpha: float) -> Gram:
    """Return the Gram matrix of a ridge regression at its solution, whose rows are the examples' Jacobians."""
    w = problem.solution(alpha)
    matrix = torch.tensor(problem.X @ problem.X.T) / problem.noise**2
    constant = 0.5 * math.log(2 * math.pi * problem.noise**2)
    return Gram(problem.num_examples * (problem.nll(w) + constant), (matrix,), (float(w @ w),))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1e-3, 0.07, 2.0])
def test_the_marginal_likelihood_of_ridge_regression_is_the_evidence(alpha: float, shape: dict[str, int]) -> None:
    """Log evidence, log-determinant and effective number of weights are the exact ones."""
    problem = ridge(noise=0.7, **shape)
    n, delta = problem.num_examples, problem.num_examples * alpha
    at = ridge_gram(problem, alpha)
    value, gamma = gram_evidence(at, torch.tensor([math.log(delta)], dtype=torch.float64))
    assert value == pytest.approx(n * problem.evidence(alpha), rel=1e-10)
    hessian = n * problem.hessian()
    system = hessian + delta * np.eye(problem.dim)
    log_det = np.linalg.slogdet(system / delta)[1]
    assert -2 * (value + at.nll) - delta * at.squared_distance[0] == pytest.approx(log_det, rel=1e-8)
    assert float(gamma) == pytest.approx(np.trace(np.linalg.solve(system, hessian)), rel=1e-8)


@pytest.mark.parametrize("start", [1e-4, 1e3])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_regression_ends_at_the_best_evidence(shape: dict[str, int], seed: int, start: float) -> None:
    """From far above and below, with weights solved before each update, alpha is that of maximum evidence."""
    problem = ridge(seed=seed, **shape)
    weights = nn.Parameter(torch.zeros(problem.dim, dtype=torch.float64))
    group = Group("backbone", (weights,), Isotropic(torch.zeros(problem.dim, dtype=torch.float64)))
    objective = GramLaplaceMAP([group], problem.num_examples, total_steps=100, precision=start)
    for _ in range(100):
        objective.climb(ridge_gram(problem, objective.weight_decay()["backbone"]))
    assert objective.weight_decay()["backbone"] == pytest.approx(problem.best_alpha_evidence(), rel=1e-3)


def dense(run: TrainingRun, log_precision: Tensor) -> tuple[float, list[float], Tensor]:
    """Return the same approximation by the Fisher matrix (D, D), image by image: value, gammas, gradients (N, D)."""
    x, labels = inputs(run)
    weights = [p for group in run.objective.groups for p in group.weights]
    rows, nll = [], 0.0
    run.model.eval()
    for image, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(run.model(image[None]), label[None])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights)]))
        nll += loss.item()
    gradients = torch.stack(rows)
    fisher = gradients.T @ gradients
    sizes = [group.prior.dim for group in run.objective.groups]
    precision = torch.diag(torch.repeat_interleave(log_precision.exp(), torch.tensor(sizes)))
    theta = torch.cat([p.detach().reshape(-1) for p in weights])
    d = theta - torch.cat([group.prior.mean for group in run.objective.groups])
    log_prior = 0.5 * (torch.logdet(precision) - d @ precision @ d)
    shares = torch.linalg.solve(fisher + precision, fisher).diagonal().split(sizes)
    value = float(-nll + log_prior - 0.5 * torch.logdet(fisher + precision))
    return value, [float(share.sum()) for share in shares], gradients


@pytest.mark.parametrize("kind", ["linear", "network"])
@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp"])
def test_the_marginal_likelihood_is_the_dense_one(kind: str, prior: str) -> None:
    """Value and effective numbers agree with explicit gradients and the determinant of a (D, D) matrix."""
    run = make_run(kind, prior)
    log_precision = torch.tensor([1.3, -0.7][: len(run.objective.groups)], dtype=torch.float64)
    value, gamma = gram_evidence(gram_matrices(run), log_precision)
    expected, gammas, _ = dense(run, log_precision)
    assert value == pytest.approx(expected, rel=1e-10)
    assert gamma.tolist() == pytest.approx(gammas, rel=1e-8)


def test_the_slope_is_the_finite_difference() -> None:
    """The slope in log delta_g is (gamma_g - delta_g ||theta_g - mu_g||^2) / 2, so it is 0 at MacKay's fixed point."""
    curvature = gram_matrices(make_run())
    at, step = torch.tensor([0.4, 2.0], dtype=torch.float64), 1e-5
    _, gamma = gram_evidence(curvature, at)
    slope = (gamma - at.exp() * torch.tensor(curvature.squared_distance)) / 2
    for i, unit in enumerate(torch.eye(2, dtype=torch.float64) * step):
        up, down = (gram_evidence(curvature, at + sign * unit)[0] for sign in (1, -1))
        assert float(slope[i]) == pytest.approx((up - down) / (2 * step), rel=1e-6)


def test_an_update_climbs_to_the_optimum() -> None:
    """After enough of MacKay's updates neither strength can raise the marginal likelihood at that curvature."""
    run = make_run()
    objective = GramLaplaceMAP(run.objective.groups, 60, 20, hyper_steps=60)
    curvature = gram_matrices(run)
    objective.climb(curvature)
    best = objective.learned_state()["log_precision"].clone()
    value, gamma = gram_evidence(curvature, best)
    assert (best.exp() * torch.tensor(curvature.squared_distance)).tolist() == pytest.approx(gamma.tolist(), rel=1e-6)
    for change in (0.1, -0.1):
        for i in range(2):
            other = best.clone()
            other[i] += change
            assert gram_evidence(curvature, other)[0] < value
    strengths = {"backbone": math.exp(best[0]) / 60, "head": math.exp(best[1]) / 60}
    assert objective.weight_decay() == pytest.approx(strengths)


def test_fewer_updates_stay_nearer_to_the_start() -> None:
    """The first update goes half of the way of MacKay's, in log delta."""
    run = make_run()
    objective = GramLaplaceMAP(run.objective.groups, 60, 20, hyper_steps=1)
    curvature, before = gram_matrices(run), objective.learned_state()["log_precision"].clone()
    _, gamma = gram_evidence(curvature, before)
    objective.climb(curvature)
    whole = (gamma / torch.tensor(curvature.squared_distance)).log()
    torch.testing.assert_close(objective.learned_state()["log_precision"], (before + whole) / 2)


def test_effective_weights_are_fewer_than_examples() -> None:
    """Whatever the strengths, gamma stays below N and D; that of the diagonal approximation does not."""
    run = make_run()
    assert run.objective.dim > 60
    curvature, diagonal = gram_matrices(run), empirical_fisher(run).diagonal
    counts = []
    for log in (-12.0, -4.0, 0.0, 4.0):
        _, gamma = gram_evidence(curvature, torch.full((2,), log, dtype=torch.float64))
        assert 0 < float(gamma.sum()) < 60
        counts.append(sum(float((part / (part + math.exp(log))).sum()) for part in diagonal))
    assert counts[0] > 60


def test_large_sets_are_represented_by_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a bound on images, or on the numbers of their gradients, 20 of 60 have three times their weight."""
    run = make_run()
    whole, work = gram_matrices(run), run.gradient_equivalents
    assert work == pytest.approx(60 / 20)
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20]
    _, _, gradients = dense(run, torch.zeros(2, dtype=torch.float64))
    losses = F.cross_entropy(run.model(inputs(run)[0]), inputs(run)[1], reduction="none").detach()
    expected = 3 * gradients[chosen, :95] @ gradients[chosen, :95].T  # the backbone's
    for name, value in (("MAX_EXAMPLES", 20), ("MAX_NUMBERS", 20 * run.objective.dim)):
        with monkeypatch.context() as patch:
            patch.setattr(gram, name, value)
            part = gram_matrices(run)
        torch.testing.assert_close(part.matrices[0], expected, rtol=1e-9, atol=1e-12)
        assert part.squared_distance == whole.squared_distance
        assert part.nll == pytest.approx(3 * float(losses[chosen].sum()))
    assert len(whole.matrices[0]) == 60


def test_learning_does_not_change_the_network() -> None:
    """Weights, buffers, gradients, modes and random numbers stay the same to the bit."""
    run = make_run()
    objective = GramLaplaceMAP(run.objective.groups, 60, 20)
    run.model.train()
    run.model.get_submodule("norm").eval()
    F.cross_entropy(run.model(inputs(run)[0]), inputs(run)[1]).backward()
    weights, random = deepcopy(run.model.state_dict()), torch.get_rng_state()
    gradients = [deepcopy(p.grad) for p in run.model.parameters()]
    objective.adapt(run)
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in run.model.modules()] == [True, True, True, False]


@pytest.mark.parametrize(("scale", "distance", "end"), [(1e6, 1e-9, MAX_WEIGHT_DECAY), (0.0, 1.0, MIN_WEIGHT_DECAY)])
def test_strengths_stay_in_their_range(scale: float, distance: float, end: float) -> None:
    """The strength stops at the ends of the range of `deelbo.limits`, also without any curvature."""
    mean = torch.zeros(4, dtype=torch.float64)
    objective = GramLaplaceMAP([Group("backbone", (nn.Parameter(mean),), Isotropic(mean))], 50, 10)
    objective.climb(Gram(1.0, (scale * torch.eye(3, dtype=torch.float64),), (distance,)))
    assert objective.weight_decay() == {"backbone": pytest.approx(end)}


def test_a_run_that_has_diverged_is_not_an_error() -> None:
    """With weights that are not finite the value and the strengths are NaN."""
    run = make_run()
    objective = GramLaplaceMAP(run.objective.groups, 60, 20)
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(math.nan)
    objective.adapt(run)
    assert all(map(math.isnan, objective.weight_decay().values()))
    assert math.isnan(objective.selection_metrics(run)["objective"])


@pytest.mark.parametrize("batch_size", [20, 60])
def test_a_whole_run(batch_size: int) -> None:
    """`fit` learns the strengths, books time and work, and ends with minus the log marginal likelihood per image."""
    run = make_run()
    model = run.model.float()
    schedule = Schedule(0.05, steps=20, batch_size=batch_size)
    objective = GramLaplaceMAP(make_groups(model, "head", "l2-sp"), 60, schedule.total_steps(60), every=0.25)
    result = fit(model, run.split, objective, schedule)
    assert result.status == "completed"
    assert result.seconds["adapt"] > 0
    steps = schedule.total_steps(60)
    assert result.state["gradient_equivalents"] == pytest.approx(steps + 3 * 60 / batch_size)  # two updates, one value
    assert result.state["weight_decay_head"] == objective.weight_decay()["head"] != pytest.approx(1 / 60, rel=0.1)
    ended = TrainingRun(model, run.split, objective, SCHEDULE, 0)
    value, _ = gram_evidence(gram_matrices(ended), objective.learned_state()["log_precision"])
    assert result.metrics["objective"] == pytest.approx(-value / 60, rel=1e-5)
