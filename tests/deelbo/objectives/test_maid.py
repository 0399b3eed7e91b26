"""Tests of certified descent: its bounds against exact solutions, in ridge and in softmax regression, and in runs."""

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.func import hessian
from torch.nn import functional as F

from deelbo import Handover, Schedule, make_groups
from deelbo._vectors import flatten
from deelbo.data import Split
from deelbo.objectives import maid
from deelbo.objectives.curvature import Product
from deelbo.objectives.maid import BilevelProblem, LinearProbe, ProbeMAID, descend, hypergradient, solve_lower
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun
from tests.helpers.ridge import Ridge, ridge

SHORT = Schedule(0.05, steps=20, batch_size=32, train="head")
TOLERANCES = [1e-1, 1e-3, 1e-5, 1e-8]
ALPHAS = [1e-3, 0.03, 1.0]


@dataclass
class RidgeProblem:
    """The fresh NLL of a ridge regression's solution."""

    of: Ridge
    hessian_lipschitz: float = 0.0

    @cached_property
    def upper_smoothness(self) -> float:
        rows = self.of.fresh_x
        return float(np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1]) / self.of.noise**2

    def lower_gradient(self, x: Tensor) -> Tensor:
        rows, outputs = torch.tensor(self.of.X), torch.tensor(self.of.y)
        return rows.T @ (rows @ x - outputs) / (len(outputs) * self.of.noise**2)

    def lower_curvature(self, x: Tensor) -> Product:
        dense = torch.tensor(self.of.hessian())
        return lambda vector: dense @ vector

    def upper(self, x: Tensor) -> tuple[float, Tensor]:
        rows, outputs = torch.tensor(self.of.fresh_x), torch.tensor(self.of.fresh_y)
        gradient = rows.T @ (rows @ x - outputs) / (len(outputs) * self.of.noise**2)
        return self.of.fresh_nll(x.numpy()), gradient

    def solution(self, alpha: float) -> Tensor:
        return torch.tensor(self.of.solution(alpha))

    def dense(self, x: Tensor) -> Tensor:
        return torch.tensor(self.of.hessian())


class Softmax(LinearProbe):
    """Softmax regression with its dense Hessian and a solution by plain Newton steps."""

    def nll(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(self.features, x), self.labels)

    def dense(self, x: Tensor) -> Tensor:
        found: Tensor = hessian(self.nll)(x)
        return found

    def solution(self, alpha: float) -> Tensor:
        x = torch.zeros(self.classes * (self.features.shape[1] + 1)).double()
        eye = alpha * torch.eye(len(x)).double()
        for _ in range(50):
            weight = x.clone().requires_grad_()
            gradient = torch.autograd.grad(self.nll(weight), weight)[0] + alpha * x
            step = torch.linalg.solve(self.dense(x) + eye, gradient)
            x = x - step / max(1.0, float(step.norm()))
        assert float(gradient.norm()) < 1e-14
        return x


def softmax() -> Softmax:
    """Three overlapping classes in four dimensions: 30 training and 60 validation examples."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 4, generator=random).double()
    features[torch.arange(90), labels] += 0.8
    return Softmax(features[:30], labels[:30], features[30:], labels[30:], 3)


def problem_named(name: str) -> Any:
    return softmax() if name == "softmax" else RidgeProblem(ridge(num_examples=60, dim=60, fresh=500))


def exact_slope(problem: Any, alpha: float) -> float:
    """Return dG / dnu by dense linear algebra at the solution."""
    x = problem.solution(alpha)
    matrix = problem.dense(x) + alpha * torch.eye(len(x)).double()
    return float(-alpha * x @ torch.linalg.solve(matrix, problem.upper(x)[1]))


@pytest.fixture(params=["ridge", "softmax"])
def problem(request: pytest.FixtureRequest) -> Any:
    """A problem with a known solution."""
    return problem_named(request.param)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_the_distance_from_the_solution_is_bounded(problem: Any, alpha: float, tolerance: float) -> None:
    """||x - x*|| is at most ||grad h|| / alpha, which is at most the tolerance."""
    expected = problem.solution(alpha)
    start = expected + torch.randn(len(expected), generator=torch.Generator().manual_seed(0)).double()
    x, error = solve_lower(problem, alpha, start, tolerance)
    assert error == pytest.approx(float((problem.lower_gradient(x) + alpha * x).norm()) / alpha)
    assert float((x - expected).norm()) <= error <= tolerance
    assert float((start - expected).norm()) > tolerance


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_the_error_of_the_hypergradient_is_bounded(problem: Any, alpha: float, tolerance: float) -> None:
    """|z - dG/dnu| is at most w, for eps and delta of any size, and w goes to 0 with them."""
    exact, start = exact_slope(problem, alpha), torch.zeros_like(problem.solution(alpha))
    for eps, delta in ((tolerance, 1e-12), (1e-9, tolerance), (tolerance, tolerance)):
        x, error = solve_lower(problem, alpha, start, eps)
        z, w, _ = hypergradient(problem, alpha, x, error, problem.upper(x)[1], start, delta)
        assert abs(z - exact) <= w
    assert tolerance > 1e-8 or w < 1e-3 * abs(exact)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_hypergradient_is_a_finite_difference(problem: Any, alpha: float) -> None:
    """At small tolerances it is the central difference of the solution's upper NLL in log alpha."""
    x, error = solve_lower(problem, alpha, torch.zeros_like(problem.solution(alpha)), 1e-10)
    z, _, _ = hypergradient(problem, alpha, x, error, problem.upper(x)[1], torch.zeros_like(x), 1e-11)
    ends = [problem.upper(problem.solution(alpha * math.exp(h)))[0] for h in (1e-4, -1e-4)]
    assert z == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-6)
    assert abs(z) > 1e-4


@pytest.mark.parametrize("tolerance", [1e-1, 1e-5])
@pytest.mark.parametrize("start", [1e-3, 1.0])
def test_accepted_steps_lower_the_exact_value(
    problem: Any, start: float, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step lowers G at the exact solutions by at least what was certified."""
    zero, values = torch.zeros_like(problem.solution(1.0)), []
    steps = len(descend(problem, start, zero, tolerance).descents)
    assert steps >= 3
    for count in range(steps + 1):
        monkeypatch.setattr(maid, "STEPS", count)
        end = descend(problem, start, zero, tolerance)
        values.append(problem.upper(problem.solution(math.exp(end.log_alpha)))[0])
    for certified, before, after in zip(end.descents, values, values[1:], strict=False):
        assert 0 < certified <= before - after + 1e-13


def test_the_strength_does_not_depend_on_the_tolerance_or_the_start(problem: Any) -> None:
    """From eps = delta = 1e-1 and 1e-5 and alpha = 1e-3 and 1 the same alpha is found, the best by Brent's method."""
    zero = torch.zeros_like(problem.solution(1.0))
    best = minimize_scalar(
        lambda nu: problem.upper(problem.solution(math.exp(nu)))[0], bounds=(-14, 0), method="bounded"
    )
    for start in (1e-3, 1.0):
        for tolerance in (1e-1, 1e-5):
            end = descend(problem, start, zero, tolerance)
            assert end.log_alpha == pytest.approx(best.x, abs=0.01)
            assert abs(exact_slope(problem, math.exp(end.log_alpha))) <= end.slope <= maid.STATIONARY


def test_descent_ends_at_the_end_of_the_range() -> None:
    """Outputs that are noise alone want the largest strength."""
    noise = ridge(num_examples=30, dim=20, scale=0.0, fresh=2000)
    end = descend(RidgeProblem(noise), 0.1, torch.zeros(20).double())
    assert end.log_alpha == 0
    assert end.descents


def test_descent_ends_where_the_strength_hardly_matters() -> None:
    """For separable classes the least strength is best, and the validation NLL goes to 0 with it."""
    features, labels = torch.eye(3).double().repeat(4, 1), torch.arange(3).repeat(4)
    end = descend(LinearProbe(features, labels, features, labels, 3), 1e-2, torch.zeros(12).double())
    assert end.slope <= maid.STATIONARY
    assert math.log(1e-8) < end.log_alpha < math.log(1e-5)


def test_descent_ends_where_rounding_allows_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another end it stops close to the best strength, where float64 cannot certify that G still falls."""
    monkeypatch.setattr(maid, "STATIONARY", 0.0)
    end = descend(softmax(), 0.1, torch.zeros(15).double())
    assert 3 <= len(end.descents) < maid.STEPS
    assert abs(exact_slope(softmax(), math.exp(end.log_alpha))) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_a_linear_probe(bias: bool) -> None:
    """Gradients and Hessian products are autograd's of a linear layer, and the constants bound its Hessians."""
    random = torch.Generator().manual_seed(2)
    features, labels = torch.randn(12, 4, generator=random).double(), torch.arange(12) % 3
    more, others = torch.randn(9, 4, generator=random).double(), torch.arange(9) % 3
    probe = LinearProbe(features, labels, more, others, 3, bias)
    size = 3 * (4 + bias)

    def nll(x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(inputs, x[:12].view(3, 4), x[12:] if bias else None), targets)

    for _ in range(20):
        x, v = (2 * torch.randn(size, generator=random).double() for _ in range(2))
        weight = x.clone().requires_grad_()
        lower = torch.autograd.grad(nll(weight, features, labels), weight)[0]
        value = nll(weight, more, others)
        upper = torch.autograd.grad(value, weight)[0]
        dense = hessian(nll)(x, features, labels)
        assert torch.allclose(probe.lower_gradient(x), lower, rtol=1e-12)
        assert torch.allclose(probe.lower_curvature(x)(v), dense @ v, rtol=1e-10)
        assert probe.upper(x)[0] == pytest.approx(float(value.detach()), rel=1e-12)
        assert torch.allclose(probe.upper(x)[1], upper, rtol=1e-12)
        assert float(torch.linalg.matrix_norm(hessian(nll)(x, more, others), 2)) <= probe.upper_smoothness
        near = 0.01 * v
        change = torch.linalg.matrix_norm(hessian(nll)(x + near, features, labels) - dense, 2)
        assert float(change) <= probe.hessian_lipschitz * float(near.norm())


def test_the_third_derivative_of_log_sum_exp() -> None:
    """The constant is attained by two classes, and no random point of more classes exceeds it."""
    p = torch.tensor((1 - 1 / math.sqrt(3)) / 2).double()
    logits, v = torch.stack([p, 1 - p]).log(), torch.tensor([1.0, -1.0]).double() / math.sqrt(2)

    def third(logits: Tensor, v: Tensor) -> float:
        p = logits.softmax(0)
        return float(abs((p * (v - p @ v) ** 3).sum()))

    assert third(logits, v) == pytest.approx(maid.THIRD_DERIVATIVE, rel=1e-7)
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits, v = (torch.randn(5, generator=random).double() for _ in range(2))
        assert third(3 * logits, v / v.norm()) <= maid.THIRD_DERIVATIVE


@pytest.fixture
def frozen(toy_model: nn.Module) -> nn.Module:
    """The toy network, of which the head alone is trained."""
    toy_model[:4].requires_grad_(False)
    toy_model[2].running_mean.uniform_(-0.5, 0.5)
    return toy_model


def made(model: nn.Module, **given: Any) -> ProbeMAID:
    return ProbeMAID(make_groups(model, "4", "l2-sp"), 160, **given)


def test_a_run_finds_the_strength_on_fixed_features(toy_split: Split, frozen: nn.Module) -> None:
    """It is that of `descend` on the head's inputs, in evaluation mode; the record has the certified descents."""
    validation = toy_split.validation
    assert validation is not None
    body = frozen[:4].eval()
    inputs = [body(toy_split.transform.evaluation(e.inputs)).detach().double() for e in (toy_split.train, validation)]
    probe = LinearProbe(inputs[0], toy_split.train.labels, inputs[1], validation.labels, 4)
    expected = descend(probe, 1e-2, torch.zeros(52).double())
    head = copy.deepcopy(frozen[4])
    result = fit(frozen, toy_split, made(frozen), SHORT)
    assert not torch.equal(head.weight, frozen[4].weight)
    assert result.state["weight_decay_head"] == pytest.approx(math.exp(expected.log_alpha), rel=0.02)
    assert result.state["certified_steps"] >= 1
    assert 0 < result.state["certified_least"] <= result.state["certified_descent"]
    assert result.state["certified_slope"] <= maid.STATIONARY
    assert result.state["gradient_equivalents"] > 20 + (160 + 40) / 32 / 3  # the steps, and the features
    assert result.seconds["adapt"] > 0
    assert {row["weight_decay_head"] for row in result.series} == {result.state["weight_decay_head"]}


def test_work_is_counted_by_images() -> None:
    """Gradients of training and of validation images are 1 for each, products 2."""
    counted: list[tuple[int, float]] = []
    probe = replace(softmax(), count=lambda images, gradients: counted.append((images, gradients)))
    probe.lower_gradient(torch.zeros(15).double())
    probe.lower_curvature(torch.zeros(15).double())(torch.ones(15).double())
    probe.upper(torch.zeros(15).double())
    assert counted == [(30, 1.0), (30, 2.0), (60, 1.0)]


def test_segments_are_one_run(toy_split: Split, frozen: nn.Module) -> None:
    """A run that is handed over keeps its strength and what was certified, to the bit."""
    kept: list[bytes] = []
    ends = []
    for shares in ((1.0,), (0.5, 1.0)):
        for until in shares:
            model = copy.deepcopy(frozen)
            handover = Handover(lambda: kept[-1] if kept else None, kept.append) if len(shares) > 1 else None
            result = fit(model, toy_split, made(model), SHORT, until=until, handover=handover)
        state = {name: value for name, value in result.state.items() if name != "gradient_equivalents"}
        ends.append((result.metrics, state, flatten(model.parameters()).tolist()))
    assert ends[0] == ends[1]


class Tokens(nn.Module):
    """A network whose head is applied to each token."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0]).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "head", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LogSoftmax(1)), "1", "logits that are the head's output"),
        (Tokens(), "head", "logits that are the head's output, for one vector of each example"),
        (nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten()), "0", "one linear layer, got Conv2d: name one as head"),
    ],
    ids=["softmax", "tokens", "convolution"],
)
def test_networks_of_another_form_are_refused(toy_split: Split, network: nn.Module, head: str, words: str) -> None:
    """Where the problem would not be linear, the run is refused before it is timed."""
    objective = ProbeMAID(make_groups(network, head, "l2-zero"), 160)
    with pytest.raises(ValueError, match=words):
        fit(network, toy_split, objective, SHORT)


def test_validation_images_are_required(toy_split: Split, frozen: nn.Module) -> None:
    run = TrainingRun(frozen, replace(toy_split, validation=None), made(frozen), SHORT, 0)
    with pytest.raises(ValueError, match="maid needs validation images, got none: give the split validation images"):
        run.warm_up()


def test_a_trained_backbone_is_refused(toy_model: nn.Module) -> None:
    expected = "a linear head on frozen features, got the groups backbone, head: freeze all other weights"
    with pytest.raises(ValueError, match=expected):
        made(toy_model)


@pytest.mark.parametrize("given", [{"start": 0.0}, {"tolerance": 0.0}, {"tolerance": math.nan}])
def test_impossible_settings_are_refused(given: dict[str, float], frozen: nn.Module) -> None:
    with pytest.raises(ValueError, match="start and tolerance must be positive numbers, got"):
        made(frozen, **given)


def test_the_protocol_is_met() -> None:
    """Both problems are what `descend` takes."""
    problems: list[BilevelProblem] = [softmax(), RidgeProblem(ridge())]
    assert all(problem.upper_smoothness > 0 for problem in problems)
