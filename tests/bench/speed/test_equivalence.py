"""The fast path agrees with the plain formulas, and a wrong one is refused."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.speed.equivalence import BOUNDS, Deviation, measure_deviation
from bench.speed.measure import measure
from bench.speed.workloads import Setting
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.posterior import Draw, IsotropicPosterior
from deelbo.pretrained.backbones import build_backbone
from deelbo.training import run as training
from deelbo.training.numerics import Numerics

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = Setting(batch=8, rounds=1, steps=1, priors=("l2-sp",))


def digits(numerics: Numerics, batch: int = 16) -> Deviation:
    """Return the deviation of the digits network with these numerics."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 1, 16, 16, generator=random)
    model, head = build_backbone("digits-resnet", 10, seed=1)
    return measure_deviation(model, head, x, torch.arange(batch) % 10, 50, numerics)


def test_float32_deviates_by_rounding_alone() -> None:
    """In float32 loss, gradient and dL/drho agree with the plain formulas to a few digits."""
    found = digits(Numerics())
    assert found.loss < 1e-5
    assert found.gradient < 1e-3
    assert found.rho < 1e-3


def test_a_network_that_is_stabilized_keeps_its_prior_mean() -> None:
    """The last BatchNorm of a ResNet's branch is scaled before both paths take L2-SP's mean from the weights."""
    parts = {"conv": nn.Conv2d(1, 4, 3), "bn3": nn.BatchNorm2d(4), "flat": nn.Flatten(), "head": nn.Linear(144, 10)}
    model = nn.Sequential(OrderedDict(parts))
    found = measure_deviation(model, "head", torch.randn(16, 1, 8, 8), torch.arange(16) % 10, 50, Numerics())
    assert found.exceeds(Deviation(1e-5, 1e-3, 1e-3)) == []


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_deviates_by_its_rounding(channels_last: bool) -> None:
    """In bf16 the deviation is larger than in float32, and within its bound."""
    found = digits(Numerics("bf16", channels_last))
    assert found.exceeds(BOUNDS["bf16"]) == []
    assert found.gradient > 10 * digits(Numerics()).gradient


def test_the_model_is_not_changed() -> None:
    """The compared model keeps its weights, its BatchNorm statistics and its mode."""
    model, head = build_backbone("digits-resnet", 10)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_deviation(model, head, torch.randn(4, 1, 16, 16), torch.arange(4), 4, Numerics())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("part", ["loss", "gradient", "rho"])
@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_every_part_has_its_bound(part: str, value: float) -> None:
    """A part that exceeds its bound or is not a number is named; a part at the bound is not."""
    bound = Deviation(1.0, 1.0, 1.0)
    assert bound.exceeds(bound) == []
    assert replace(bound, **{part: value}).exceeds(bound) == [f"{part} by {value:.2g} (at most 1)"]


def no_kl(self: Any, draw: Draw, factor: float) -> None:
    """Forget the KL."""


def double_kl(self: Any, draw: Draw, factor: float) -> None:
    """Count the KL twice."""
    add_kl(self, draw, 2 * factor)


def half_noise(self: Any) -> Tensor:
    """Draw samples nearer to the mean than sigma says."""
    return sigma.fget(self) / 2  # type: ignore[misc]


def mirrored(self: Numerics, x: Tensor) -> Tensor:
    """Turn the images over instead of changing only the memory layout."""
    return x.flip(3)


add_kl = DataEmphasizedELBO._add_kl_gradient
sigma = IsotropicPosterior.sigma
WRONG: dict[str, tuple[Any, str, Any]] = {
    "no KL": (DataEmphasizedELBO, "_add_kl_gradient", no_kl),
    "KL twice": (DataEmphasizedELBO, "_add_kl_gradient", double_kl),
    "half of sigma": (IsotropicPosterior, "sigma", property(half_noise)),
    "other images": (Numerics, "to_memory_format", mirrored),
}


@pytest.mark.parametrize(("owner", "name", "wrong"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_wrong_fast_path_is_not_timed(
    precision: str, owner: Any, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast path that computes something else is refused with its deviation, before anything is timed."""
    steps: list[int] = []
    monkeypatch.setattr(training.TrainingRun, "step", lambda *_: steps.append(1))
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(ValueError, match="the fast path of digits-resnet deviates from plain float32") as refused:
        measure(replace(SMALL, numerics=Numerics(precision)), CPU)
    assert len(str(refused.value).splitlines()) == 1
    assert steps == []


@pytest.mark.parametrize("numerics", [Numerics(), Numerics("bf16", channels_last=True)], ids=["float32", "bf16"])
def test_the_true_fast_path_is_timed(numerics: Numerics) -> None:
    """The correct fast path is timed, and the result has its deviation."""
    result = measure(replace(SMALL, numerics=numerics), CPU)
    found = Deviation(**result["deviation_from_plain"])
    assert found.exceeds(BOUNDS[numerics.precision]) == []
    assert found.gradient > 0
