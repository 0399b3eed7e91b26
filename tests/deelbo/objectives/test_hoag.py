"""Tests of HOAG: its hypergradients, its steps, the strengths that it finds where the best are known, and its runs."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Group, Handover, Isotropic, Schedule, make_groups
from deelbo._vectors import add_, flatten, views
from deelbo.data import Split
from deelbo.limits import MAX_WEIGHT_DECAY
from deelbo.objectives import hoag
from deelbo.objectives.curvature import gauss_newton, nll_gradient
from deelbo.objectives.hoag import HOAGMAP
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun
from tests.helpers.ridge import Ridge, ridge

Nll = Callable[[], Tensor]
ROUNDS = 50


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear systems are solved to a relative residual of 1e-10 in each round."""
    monkeypatch.setattr(hoag, "TOLERANCE", 1e-10)


def solve(objective: HOAGMAP, nll: Nll, tolerance: float) -> None:
    """Minimize the objective from the current weights by L-BFGS, until its gradient's norm is that small."""
    tolerance = max(tolerance, 1e-7)  # below, values of the objective are equal in float64
    settings = {"max_iter": 50, "tolerance_grad": tolerance / 10, "tolerance_change": 0.0, "history_size": 50}
    optimizer = torch.optim.LBFGS(objective.weights, line_search_fn="strong_wolfe", **settings)  # type: ignore[arg-type]

    def closure() -> float:
        with objective.step():
            loss = nll()
            loss.backward()
        return float(loss.detach() + objective.regularizer().detach())

    for _ in range(100):
        closure()
        if float(flatten([w.grad for w in objective.weights if w.grad is not None]).norm()) <= tolerance:
            return
        optimizer.step(closure)
    raise AssertionError("not solved")


def gradient_of(loss: Tensor, objective: HOAGMAP) -> Tensor:
    return flatten(torch.autograd.grad(loss, objective.weights))


class RidgeProblem:
    """A ridge regression in torch, with HOAG as its objective."""

    def __init__(self, problem: Ridge, start: float, **settings: Any) -> None:
        self.weight = nn.Parameter(torch.zeros(problem.dim, dtype=torch.float64))
        group = Group("all", (self.weight,), Isotropic(torch.zeros(problem.dim, dtype=torch.float64)))
        given = {"total_steps": ROUNDS, "rounds": ROUNDS, "iterations": 200} | settings
        self.objective = HOAGMAP([group], problem.num_examples, {"all": start}, **given)
        rows = (problem.X, problem.y, problem.fresh_x, problem.fresh_y)
        self.x, self.y, self.fresh_x, self.fresh_y = map(torch.tensor, rows)
        self.hessian, self.noise = torch.tensor(problem.hessian()), problem.noise

    def nll(self) -> Tensor:
        return (self.y - self.x @ self.weight).square().mean() / (2 * self.noise**2)

    def validation(self) -> Tensor:
        return (self.fresh_y - self.fresh_x @ self.weight).square().mean() / (2 * self.noise**2)

    def hypergradient(self) -> tuple[float, Tensor]:
        nll = self.validation()
        gradient = gradient_of(nll, self.objective)
        return float(nll.detach()), self.objective.hypergradient(lambda v: self.hessian @ v, gradient)

    @property
    def alpha(self) -> float:
        return self.objective.weight_decay()["all"]


@pytest.mark.parametrize("alpha", [1e-4, 0.03, 0.9])
def test_the_hypergradient_of_ridge_regression(alpha: float, exact: None) -> None:
    """It is -alpha theta^T (H + alpha I)^-1 grad g, and the central difference of the NLL of refitted weights."""
    problem = ridge(num_examples=60, dim=30)
    made = RidgeProblem(problem, alpha)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(problem.solution(alpha)))
    _, found = made.hypergradient()
    theta = made.weight.detach()
    system = made.hessian + alpha * torch.eye(30).double()
    dense = -alpha * theta @ torch.linalg.solve(system, gradient_of(made.validation(), made.objective))
    assert float(found) == pytest.approx(float(dense), rel=1e-8)
    ends = [problem.fresh_nll(problem.solution(alpha * math.exp(h))) for h in (1e-4, -1e-4)]
    assert float(found) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-6)
    assert abs(float(found)) > 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("start", [1e-7, 1e-4, 1.0])
def test_ridge_regression(start: float, seed: int) -> None:
    """From far away, with inexact solves of the weights, the validation NLL ends within 1.001 of the least."""
    problem = ridge(num_examples=60, dim=60, fresh=500, seed=seed)
    made = RidgeProblem(problem, start)
    first = float(gradient_of(made.nll(), made.objective).norm())
    for _ in range(ROUNDS):
        solve(made.objective, made.nll, made.objective.tolerance * first * min(made.alpha / start, 1))
        made.objective.learn(*made.hypergradient())
    least = problem.fresh_nll(problem.solution(problem.best_alpha_fresh()))
    assert problem.fresh_nll(problem.solution(made.alpha)) < 1.001 * least
    assert problem.fresh_nll(problem.solution(start)) > 1.2 * least


class Probe:
    """Logistic regression on toy images in float64, with HOAG as its objective."""

    def __init__(self, split: Split, start: float, **settings: Any) -> None:
        torch.manual_seed(1)
        self.split = split
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()
        groups = make_groups(self.model, None, "l2-zero")
        given = {"total_steps": ROUNDS, "rounds": ROUNDS, "iterations": 100, "images": 160} | settings
        self.objective = HOAGMAP(groups, len(split.train), {"backbone": start}, **given)
        self.run = TrainingRun(self.model, split, self.objective, Schedule(0.1, steps=ROUNDS), 0)

    def nll_of(self, examples: Any) -> Tensor:
        inputs = self.split.transform.evaluation(examples.inputs).double()
        return F.cross_entropy(self.model(inputs), examples.labels)

    def solve(self, tolerance: float) -> None:
        solve(self.objective, lambda: self.nll_of(self.split.train), tolerance)

    def fitted(self, log_alpha: float) -> float:
        """Return the validation NLL of the weights that minimize the objective at that strength."""
        self.objective._log.fill_(log_alpha)
        self.objective._set_strengths()
        self.solve(1e-7)
        hessian = gauss_newton(self.run, self.split.train.inputs)
        identity = torch.eye(self.objective.dim, dtype=torch.float64)
        for _ in range(3):  # of Newton's
            with self.objective.step():
                self.nll_of(self.split.train).backward()
            system = torch.stack([hessian(unit) for unit in identity]) + math.exp(log_alpha) * identity
            slope = flatten([w.grad for w in self.objective.weights if w.grad is not None])
            add_(self.objective.weights, views(torch.linalg.solve(system, slope), self.objective.weights), -1)
        return float(self.nll_of(self.split.validation).detach())


@pytest.fixture
def noisy_split(toy_split: Split) -> Split:
    """Toy images of which a quarter of the labels are wrong, so that the best strength is inside the range."""
    random = torch.Generator().manual_seed(5)

    def flip(examples: Any) -> Any:
        wrong = torch.rand(len(examples), generator=random) < 0.25
        return replace(examples, labels=torch.where(wrong, (examples.labels + 1) % 4, examples.labels))

    assert toy_split.validation is not None
    return replace(toy_split, train=flip(toy_split.train), validation=flip(toy_split.validation))


def test_the_hypergradient_of_logistic_regression(noisy_split: Split, exact: None) -> None:
    """By a run's validation gradient and Gauss-Newton products it is the central difference over refitted weights."""
    probe, at = Probe(noisy_split, 0.02), math.log(0.02)
    ends = [probe.fitted(at + h) for h in (1e-3, -1e-3)]
    probe.fitted(at)
    assert noisy_split.validation is not None
    _, gradient = nll_gradient(probe.run, noisy_split.validation.inputs, noisy_split.validation.labels)
    found = probe.objective.hypergradient(gauss_newton(probe.run, noisy_split.train.inputs), gradient)
    assert float(found) == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-6)


@pytest.mark.parametrize("start", [1e-6, 1.0])
def test_logistic_regression(start: float, noisy_split: Split) -> None:
    """By `adapt` after inexact solves, log alpha ends within 0.05 of the minimum over refits by Brent's method."""
    probe = Probe(noisy_split, start)
    first = float(gradient_of(probe.nll_of(noisy_split.train), probe.objective).norm())
    for _ in range(ROUNDS):
        alpha = probe.objective.weight_decay()["backbone"]
        probe.solve(probe.objective.tolerance * first * min(alpha / start, 1))
        probe.objective.adapt(probe.run)
    found = math.log(probe.objective.weight_decay()["backbone"])
    best = minimize_scalar(probe.fitted, bounds=(math.log(1e-5), 0), method="bounded", options={"xatol": 1e-4}).x
    assert math.log(1e-4) < best < math.log(0.5)
    assert found == pytest.approx(best, abs=0.05)


def test_the_hypergradient_of_each_group(problem: Any, exact: None) -> None:
    """For each prior it is -alpha_g P_g . q_g, with q from the dense Gauss-Newton matrix and prior precisions."""
    groups = make_groups(problem.model, "head", problem.prior)
    problem.move()
    alphas = {"backbone": 0.02, "head": 0.3}
    objective = HOAGMAP(groups, 12, alphas, total_steps=9, rounds=3, iterations=200)
    half, gradient = torch.randn(objective.dim, objective.dim).double(), torch.randn(objective.dim).double()
    hessian = half @ half.T
    found = objective.hypergradient(lambda v: hessian @ v, gradient)
    weights = {name: w.detach() for name, w in problem.model.named_parameters()}
    terms, system, start = problem.groups(weights), hessian.clone(), 0
    for name, (vector, _, covariance) in terms.items():
        part = slice(start, start + len(vector))
        system[part, part] += alphas[name] * torch.linalg.inv(covariance)
        start += len(vector)
    q, start = torch.linalg.solve(system, gradient), 0
    for value, (name, (vector, mean, covariance)) in zip(found, terms.items(), strict=True):
        pull = torch.linalg.solve(covariance, vector - mean)
        assert float(value) == pytest.approx(-alphas[name] * float(pull @ q[start : start + len(vector)]), rel=1e-6)
        start += len(vector)


def two_groups(**settings: Any) -> HOAGMAP:
    weights = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    groups = [Group(name, (w,), Isotropic(w.detach())) for name, w in zip(("backbone", "head"), weights, strict=True)]
    start = {"backbone": 1e-3, "head": 1e-2}
    return HOAGMAP(groups, 10, start, **({"total_steps": 100, "rounds": 10} | settings))


def moved(objective: HOAGMAP, nll: float, slopes: list[float]) -> list[float]:
    """Return the change of log alpha in one round."""
    before = torch.tensor(list(objective.weight_decay().values())).log()
    objective.learn(nll, torch.tensor(slopes, dtype=torch.float64))
    return (torch.tensor(list(objective.weight_decay().values())).log() - before).tolist()


def test_steps_follow_the_hypergradient() -> None:
    """The first step is sqrt(2) long, whatever the scale; later ones are scaled by L, and never longer."""
    for scale in (1e-6, 1.0, 1e6):
        objective = two_groups()
        assert moved(objective, 2.0, [3 * scale, -4 * scale]) == pytest.approx(
            [-0.6 * math.sqrt(2), 0.8 * math.sqrt(2)], rel=1e-4
        )
        size = 5 * scale / math.sqrt(2)  # L
        assert objective._round.tolist() == pytest.approx([0.9e-3, 1e-3, size, math.sqrt(2), 2.0])
    objective = two_groups()
    moved(objective, 2.0, [3.0, -4.0])
    lipschitz = 5 / math.sqrt(2) * 0.95  # 10 nats less than before is enough
    assert moved(objective, -8.0, [0.3, 0.4]) == pytest.approx([-0.3 / lipschitz, -0.4 / lipschitz], rel=1e-4)
    assert math.hypot(*moved(objective, -18.0, [30.0, 40.0])) == pytest.approx(math.sqrt(2), rel=1e-4)


def test_the_step_constant_follows_the_validation_nll() -> None:
    """L falls by 5 % if the NLL has fallen by L s^2, and is doubled if it has grown, up to the tolerances' slack."""
    first = 1 / math.sqrt(2)
    slack = 0.25 * 0.9e-3 + 1.25 * 1e-3 * math.sqrt(2)
    growths = {-2 * first + slack: 0.95, slack: 1.0, 0.39: 2.0}
    for growth, factor in growths.items():
        for more, then in ((-1e-9, factor), (1e-9, {0.95: 1.0, 1.0: 2.0, 2.0: 2.0}[factor])):
            objective = two_groups()
            moved(objective, 2.0, [0.0, 1.0])
            assert math.hypot(*moved(objective, 2.0 + growth + more, [0.0, 1e-3])) > 0
            assert float(objective._round[2]) == pytest.approx(then * first)


def test_a_rejected_step_restores_the_strengths() -> None:
    """An NLL 1.2 times as high undoes the step, doubles L and halves the tolerance; the next round judges nothing."""
    objective = two_groups()
    start = objective.weight_decay()
    moved(objective, 2.0, [1.0, 1.0])
    away = objective.weight_decay()
    assert away != pytest.approx(start, rel=0.1)
    epsilon, lipschitz = objective.tolerance, float(objective._round[2])
    moved(objective, 2.4, [-50.0, 7.0])
    assert objective.weight_decay() == start
    assert objective.tolerance == epsilon / 2
    assert float(objective._round[2]) == 2 * lipschitz
    assert moved(objective, 9.0, [0.1, 0.1]) == pytest.approx([-0.1 / (2 * lipschitz)] * 2, rel=1e-4)
    assert objective.weight_decay() != start


def test_strengths_stay_in_their_range_and_finite() -> None:
    """Steps end at the range; a step that is clipped away, or a hypergradient that is not finite, moves nothing."""
    objective = two_groups()
    for i in range(20):
        moved(objective, 1000 - 10.0 * i, [-1.0, -1.0])
    assert objective.weight_decay() == pytest.approx({"backbone": MAX_WEIGHT_DECAY, "head": MAX_WEIGHT_DECAY})
    assert float(objective._round[3]) == 0
    for slope in (math.nan, math.inf):
        assert moved(objective, math.nan, [slope, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("total_steps", "rounds", "expected"),
    [(100, 4, {25, 50, 75, 100}), (10, 4, {2, 5, 8, 10}), (3, 20, {1, 2, 3}), (2, 2, {1, 2})],
)
def test_rounds_are_equal_segments(total_steps: int, rounds: int, expected: set[int]) -> None:
    objective = two_groups(total_steps=total_steps, rounds=rounds)
    assert {step for step in range(1, total_steps + 1) if objective.should_adapt(step)} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rounds": 1}, "rounds of a run, of which there must be at least 2, got 1 in 100 steps"),
        ({"total_steps": 1}, "at least 2, got 10 in 1 steps"),
        ({"iterations": 0}, "iterations and images must be at least 1, got 0 and 250"),
        ({"images": 0}, "iterations and images must be at least 1, got 10 and 0"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        two_groups(**given)


SHORT = Schedule(0.05, steps=40, batch_size=32)  # 8 epochs


def made(model: nn.Module) -> HOAGMAP:
    start = {"backbone": 1e-3, "head": 1e-3}
    return HOAGMAP(make_groups(model, "4", "l2-sp"), 160, start, 40, rounds=8, iterations=3, images=50)


def test_a_run_learns_its_strengths(toy_split: Split, toy_model: nn.Module) -> None:
    """Strengths move in each round, are recommended by their mean, and time and work are those of adapt."""
    seen: list[dict[str, float]] = []
    objective = made(toy_model)
    learn = objective.learn

    def spy(nll: float, hypergradient: Tensor) -> None:
        learn(nll, hypergradient)
        seen.append(objective.weight_decay())

    objective.learn = spy  # type: ignore[method-assign]
    result = fit(toy_model, toy_split, objective, SHORT, test=False)
    seen = seen[1:]  # without warm-up's
    assert len(seen) == 8
    assert objective.weight_decay() == seen[-1]
    for name in ("backbone", "head"):
        assert len({strengths[name] for strengths in seen}) > 4
        mean = math.exp(sum(math.log(strengths[name]) for strengths in seen) / 8)
        assert result.state[f"mean_weight_decay_{name}"] == pytest.approx(mean)
    assert result.seconds["adapt"] > 0
    # a validation gradient of 40 images and four products by 50 a round, and the last validation
    work = 40 + 8 * (40 + 4 * 2 * 50) / 32 + 40 / 32 / 3
    assert result.state["gradient_equivalents"] == pytest.approx(work)


def test_learning_does_not_change_the_network(toy_split: Split, toy_model: nn.Module) -> None:
    """Weights, buffers, gradients, modes and random numbers stay the same to the bit."""
    run = TrainingRun(toy_model, toy_split, made(toy_model), SHORT, 0)
    run.set_training_mode()
    run.step(run.batches()[0])
    state, random = copy.deepcopy(toy_model.state_dict()), torch.get_rng_state()
    gradients = [copy.deepcopy(p.grad) for p in toy_model.parameters()]
    run.objective.adapt(run)
    assert all(torch.equal(value, state[name]) for name, value in toy_model.state_dict().items())
    for parameter, gradient in zip(toy_model.parameters(), gradients, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in toy_model.modules())


def test_segments_learn_as_one_run(toy_split: Split, toy_model: nn.Module) -> None:
    """A run that is handed over continues with its strengths, steps and linear solution, to the bit."""
    kept: list[bytes] = []
    ends = []
    for shares in ((1.0,), (0.3, 1.0)):
        for until in shares:
            model = copy.deepcopy(toy_model)
            handover = Handover(lambda: kept[-1] if kept else None, kept.append) if len(shares) > 1 else None
            result = fit(model, toy_split, made(model), SHORT, until=until, handover=handover)
        ends.append((result.metrics, result.state, [p.tolist() for p in model.parameters()]))
    assert len(kept) == 1
    assert ends[0] == ends[1]


def test_validation_images_are_required(toy_split: Split, toy_model: nn.Module) -> None:
    run = TrainingRun(toy_model, replace(toy_split, validation=None), made(toy_model), SHORT, 0)
    with pytest.raises(ValueError, match="hypergradients need validation images, got none: give the split"):
        run.warm_up()
