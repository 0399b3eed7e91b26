"""Optimizers without a learning rate: how they are made, how they train rho, and that their state can be saved."""

import sys
from copy import deepcopy
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.execution.optimizers import PRODIGY_D0, RHO_RATE, AveragedWeights, WeightsAndScalars, make_optimizer
from deelbo.data import Split
from deelbo.data.images import Geometry, Images, ImageTransform
from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.training.checkpoint import Handover
from deelbo.training.fit import FitResult, fit
from deelbo.training.schedule import Schedule

FREE = ["prodigy", "schedule-free"]
SCHEDULE = Schedule(1.0, steps=40, batch_size=20, posterior_passes=2, series_points=4)


def images(n: int, seed: int) -> Images:
    """Return grey 4x4 images of 4 classes: each class has its own bright row, with noise."""
    labels = torch.arange(n) % 4
    pixels = torch.randint(0, 120, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    pixels[torch.arange(n), 0, labels] += 80
    return Images(pixels.to(torch.uint8), labels, 4)


SPLIT = Split(images(60, 1), None, images(80, 2), ImageTransform(Geometry(side=4, crop=4)).fit(images(60, 1)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def trained(
    name: str, until: float = 1.0, handover: Handover | None = None, steps: int = 40
) -> tuple[nn.Module, FitResult]:
    """Train the DE ELBo of the toy images with that optimizer."""
    model = network()
    objective = DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 60, generator=torch.Generator().manual_seed(1))
    schedule = replace(SCHEDULE, steps=steps)
    result = fit(model, SPLIT, objective, schedule, optimizer=make_optimizer(name), until=until, handover=handover)
    return model, result


def made(name: str, rate: float = 1.0) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Return two weights, a scalar, and their optimizer."""
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2)), nn.Parameter(torch.zeros(1))]
    make = make_optimizer(name)
    assert make is not None
    return parameters, make(parameters, rate)


def test_sgd_is_the_trainers_own() -> None:
    """For SGD there is no factory, as the trainer has its own."""
    assert make_optimizer("sgd") is None


def test_another_name_is_refused() -> None:
    """An unknown optimizer is refused with the known ones."""
    with pytest.raises(ValueError, match="optimizer must be one of sgd, prodigy, schedule-free, got 'adam'"):
        make_optimizer("adam")


@pytest.mark.parametrize(("name", "package"), [("prodigy", "prodigyopt"), ("schedule-free", "schedulefree")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is one line with the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{name} needs the package {package}: pip install 'deelbo\[methods\]'$"):
        make_optimizer(name)


@pytest.mark.parametrize("name", FREE)
def test_the_rate_multiplies(name: str) -> None:
    """The learning rate multiplies the steps of weights and rho; there is no weight decay beside the objective's."""
    _, optimizer = made(name, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5 * RHO_RATE]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}


def test_prodigy_is_prodigy() -> None:
    """The weights take Prodigy's steps with a cosine schedule; the scalar takes Adam's."""
    prodigy = import_module("prodigyopt").Prodigy
    torch.manual_seed(0)
    parameters, optimizer = made("prodigy")
    copies = deepcopy(parameters)
    alone = prodigy(copies[:2], lr=1.0, d0=PRODIGY_D0), torch.optim.Adam(copies[2:], lr=RHO_RATE)
    cosines = [torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=10) for one in (optimizer, *alone)]
    for _ in range(8):
        for ours, theirs in zip(parameters, copies, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        for one in (optimizer, *alone):
            one.step()
        for cosine in cosines:
            cosine.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters, copies, strict=True))
    assert optimizer.param_groups[0]["d"] > PRODIGY_D0


def test_schedule_free_is_evaluated_at_its_average() -> None:
    """The evaluated weights are the mean of the iterates of plain SGD; rho does not change."""
    parameters, optimizer = made("schedule-free", 0.1)
    assert isinstance(optimizer, AveragedWeights)
    point = parameters[1].detach().clone()
    points = []
    optimizer.train()
    for _ in range(5):
        gradients = [torch.randn_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        point -= 0.1 * gradients[1]
        points.append(point.clone())
        optimizer.step()
    rho = parameters[2].detach().clone()
    optimizer.eval()
    torch.testing.assert_close(parameters[1].detach(), torch.stack(points).mean(0))
    assert torch.equal(parameters[2], rho)


@pytest.mark.parametrize("name", FREE)
def test_a_state_can_be_loaded(name: str) -> None:
    """An optimizer that loads another's state takes the same steps as that one, to the bit."""
    parameters, optimizer = made(name)
    copies = deepcopy(parameters)
    make = make_optimizer(name)
    assert make is not None
    other = make(copies, 1.0)
    assert isinstance(optimizer, WeightsAndScalars)
    assert isinstance(other, WeightsAndScalars)

    def step(ones: list[tuple[list[nn.Parameter], WeightsAndScalars]]) -> None:
        gradients = [torch.randn_like(p) for p in parameters]
        for those, of in ones:
            if isinstance(of, AveragedWeights):
                of.train()
            for parameter, gradient in zip(those, gradients, strict=True):
                parameter.grad = gradient.clone()
            of.step()

    for _ in range(3):
        step([(parameters, optimizer)])
    with torch.no_grad():
        for ours, theirs in zip(parameters, copies, strict=True):
            theirs.copy_(ours)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step([(parameters, optimizer), (copies, other)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters, copies, strict=True))


@pytest.mark.parametrize("name", FREE)
def test_one_run_learns(name: str) -> None:
    """One run of the DE ELBo fits the images, and sigma moves far from its initial value."""
    _, result = trained(name, steps=200)
    assert result.status == "completed"
    assert result.metrics["test_acc"] > 0.9
    assert result.state["sigma"] > 1e-3


@pytest.mark.parametrize("name", FREE)
def test_a_run_in_two_segments_is_one_run(name: str) -> None:
    """A run in two segments ends with the weights of a run in one piece, to the bit."""
    whole, expected = trained(name)
    kept: list[bytes] = []
    trained(name, 0.5, Handover(lambda: None, kept.append))
    half = Handover(lambda: kept[-1], kept.append)
    model, result = trained(name, 1.0, half)
    assert half.resumed_at_step == 21
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert result.metrics == expected.metrics


def test_without_a_posterior_there_is_only_one() -> None:
    """Without a scalar parameter, as in MAP, there is no Adam."""
    make = make_optimizer("prodigy")
    assert make is not None
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make([weight], 1.0)
    F.mse_loss(weight, torch.zeros(2, 2)).backward()
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert bool((weight < 1).all())
