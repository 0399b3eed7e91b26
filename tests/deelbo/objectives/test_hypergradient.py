"""Tests of one-step hypergradients: the formula, and its use in a training run."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Handover, Schedule, make_groups
from deelbo._vectors import flatten
from deelbo.data import Split
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.hypergradient import HypergradientMAP
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun

N, ETA = 12, 0.3
SHORT = Schedule(0.05, steps=40, batch_size=32)  # 8 epochs


def test_a_hypergradient_is_the_finite_difference(problem: Any) -> None:
    """dL_val / dlog alpha of each group is the central difference of the validation NLL after one plain SGD step."""
    start = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    problem.move()
    theta = [p.detach().clone() for p in problem.model.parameters()]
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    strengths = {"backbone": 0.02, "head": 0.3}
    with torch.no_grad():
        for name, p in problem.model.named_parameters():
            p.copy_(start[name])
    groups = make_groups(problem.model, "head", problem.prior)

    def after_a_step(alphas: dict[str, float]) -> tuple[HypergradientMAP, Tensor]:
        objective = HypergradientMAP(groups, N, alphas)
        with torch.no_grad():
            for p, value in zip(problem.model.parameters(), theta, strict=True):
                p.copy_(value)
        with objective.step():
            F.cross_entropy(problem.model(problem.x), problem.y).backward()
        torch.optim.SGD(problem.model.parameters(), lr=ETA).step()
        return objective, F.cross_entropy(problem.model(x), y)

    objective, loss = after_a_step(strengths)
    slopes = objective._pieces(flatten(torch.autograd.grad(loss, objective.weights)))
    products = [float(pull @ slope) for pull, slope in zip(objective._pulls(), slopes, strict=True)]
    found = {g.name: -ETA * strengths[g.name] * product for g, product in zip(groups, products, strict=True)}
    for name in strengths:
        ends = [
            float(after_a_step(strengths | {name: strengths[name] * math.exp(h)})[1].detach()) for h in (1e-4, -1e-4)
        ]
        assert found[name] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-6)
        assert abs(found[name]) > 1e-6


def made(model: nn.Module, start: float = 1e-3, by: str = "backbone+head", **given: Any) -> HypergradientMAP:
    return HypergradientMAP(make_groups(model, "4", "l2-sp", by), 160, {"backbone": start, "head": start}, **given)


def test_a_run_recommends_the_geometric_mean(toy_model: nn.Module) -> None:
    """Each group's mean strength is the geometric mean of those after each call, at first the initial one."""
    objective = made(toy_model, start=1e-3, rate=0.5)
    assert objective.mean_strengths() == pytest.approx({"backbone": 1e-3, "head": 1e-3})
    seen = []
    for sign in (1.0, 1.0, -1.0):
        objective.move(torch.tensor([sign, -1.0], dtype=torch.float64), 0.5)
        seen.append(objective.weight_decay())
    for name in ("backbone", "head"):
        expected = math.exp(sum(math.log(strengths[name]) for strengths in seen) / 3)
        assert objective.mean_strengths()[name] == pytest.approx(expected, rel=1e-12)
        assert objective.describe()[f"mean_weight_decay_{name}"] == objective.mean_strengths()[name]
        assert expected != pytest.approx(seen[-1][name], rel=1e-3)


def test_directions_move_strengths(toy_model: nn.Module) -> None:
    """A positive direction lowers the strength, a negative one raises it, within the range of strengths."""
    objective = made(toy_model, rate=0.5)
    for _ in range(3):
        objective.move(torch.tensor([1e-9, -0.7]).double(), 0.5)
    assert objective.weight_decay() == pytest.approx({"backbone": 1e-3 * math.exp(-1.5), "head": 1e-3 * math.exp(1.5)})
    for _ in range(100):
        objective.move(torch.tensor([1e-9, -0.7]).double(), 0.5)
    assert objective.weight_decay() == pytest.approx({"backbone": MIN_WEIGHT_DECAY, "head": MAX_WEIGHT_DECAY})


def test_a_run_learns_its_strengths(toy_split: Split, toy_model: nn.Module) -> None:
    """Strengths of groups and of layers move, adapt's time is booked, and BatchNorm sees training batches only."""
    for by, count in (("backbone+head", 2), ("layer", 3)):
        model = copy.deepcopy(toy_model)
        seen: list[int] = []

        def note(module: nn.Module, args: tuple[Tensor], _: Any, seen: list[int] = seen) -> None:
            if module.training:
                seen.append(len(args[0]))

        model[2].register_forward_hook(note)
        objective = made(model, by=by, every=4)
        result = fit(model, toy_split, objective, SHORT, test=False)
        assert seen == [32] * (2 + 40)
        assert len(objective.weight_decay()) == count
        assert all(strength != pytest.approx(1e-3, rel=0.1) for strength in objective.weight_decay().values())
        assert result.state["weight_decay_backbone"] != result.series[0]["weight_decay_backbone"]
        assert 0 < result.seconds["adapt"] < result.seconds["train"]


def test_segments_learn_as_one_run(toy_split: Split, toy_model: nn.Module) -> None:
    """A run that is handed over continues with its strengths and Adam's averages, to the bit."""
    kept: list[bytes] = []
    ends = []
    for shares in ((1.0,), (0.3, 1.0)):
        for until in shares:
            model = copy.deepcopy(toy_model)
            handover = Handover(lambda: kept[-1] if kept else None, kept.append) if len(shares) > 1 else None
            result = fit(model, toy_split, made(model, every=3), SHORT, until=until, handover=handover)
        ends.append((result.metrics, result.state, [p.tolist() for p in model.parameters()]))
    assert len(kept) == 1
    assert ends[0] == ends[1]


def test_validation_images_are_used_in_passes(toy_model: nn.Module) -> None:
    """Three batches of 32 of 100 images have different images, and the next three come in another order."""
    objective = made(toy_model)
    seen = []
    for _ in range(6):
        seen.append(objective._next_batch(100, 32).tolist())
        objective.move(torch.zeros(2).double(), 0.1)
    assert all(len({place for batch in seen[i : i + 3] for place in batch}) == 96 for i in (0, 3))
    assert seen[:3] != seen[3:]
    assert sorted(objective._next_batch(20, 32).tolist()) == list(range(20))


def test_validation_images_are_required(toy_split: Split, toy_model: nn.Module) -> None:
    """A split without validation images is refused before training."""
    run = TrainingRun(toy_model, replace(toy_split, validation=None), made(toy_model), SHORT, 0)
    with pytest.raises(ValueError, match="hypergradients need validation images, got none: give the split"):
        run.warm_up()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rate": 0.0}, "rate must be a number above 0, the step of log alpha in nats, got 0.0"),
        ({"rate": math.inf}, "rate must be a number above 0"),
        ({"every": 0}, "every must be a number of training steps of at least 1, got 0"),
        ({"start": -1.0}, "the weight decay of 'backbone' must be a number >= 0, got -1.0|must be a number >= 0"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, float], words: str, toy_model: nn.Module) -> None:
    """An impossible rate, interval or initial strength is refused."""
    with pytest.raises(ValueError, match=words):
        made(toy_model, **given)  # type: ignore[arg-type]
