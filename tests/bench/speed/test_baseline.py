"""The baseline of `speed`, compared with torch.distributions in float64 and with the fast path."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

from bench.speed.baseline import BaselineRun, SingleImages, reference_kl, reference_terms
from deelbo.data import Geometry, Images, ImageTransform, Normalization, Split
from deelbo.groups import make_groups
from deelbo.objectives.base import Objective
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.objectives.map import MAP
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.run import TrainingRun
from deelbo.training.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = 8


def images(count: int, channels: int, side: int) -> Images:
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=random)
    return Images(pixels, torch.arange(count) % 10, 10)


@pytest.fixture
def split() -> Split:
    """One batch of digits without augmentation, the same in every step."""
    train = images(BATCH, 1, 16)
    return Split(train, None, train, ImageTransform(Geometry(side=16, crop=16)).fit(train))


def kl_by_torch(weights: dict[str, Tensor], means: dict[str, Tensor], sigma: Tensor, scale: Tensor) -> Tensor:
    """Return KL(N(w, sigma^2 I) || N(mu, scale I)), summed over elements."""
    pairs = [(Normal(w, sigma), Normal(means[n], scale.sqrt())) for n, w in weights.items()]
    return torch.stack([kl_divergence(q, p).sum() for q, p in pairs]).sum()


def best_scale(weights: dict[str, Tensor], means: dict[str, Tensor], sigma: Tensor) -> Tensor:
    """Return the scale that minimizes that KL: the zero of its derivative, found by autograd."""
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(100):  # Newton's method
        (slope,) = torch.autograd.grad(
            kl_by_torch(weights, means, sigma, log_scale.exp()), log_scale, create_graph=True
        )
        (curvature,) = torch.autograd.grad(slope, log_scale)
        with torch.no_grad():
            log_scale -= (slope / curvature.clamp_min(1e-3 * slope.abs())).clamp(-2, 2)
    return log_scale.detach().exp()


@pytest.fixture
def small() -> nn.Module:
    """A network in float64 with the head ``head`` and weights away from the prior means."""
    torch.manual_seed(0)
    parts = OrderedDict(body=nn.Linear(4, 5), tanh=nn.Tanh(), head=nn.Linear(5, 3))
    return nn.Sequential(parts).double()


def means_of(model: nn.Module, head: str) -> dict[str, Tensor]:
    """Return zeros for the head, and 0.9 times the weights for the backbone."""
    return {
        name: torch.zeros_like(p) if name.startswith(f"{head}.") else (p * 0.9).detach()
        for name, p in model.named_parameters()
    }


def test_the_reference_kl_is_torchs_at_the_best_scale(small: nn.Module) -> None:
    """The KL of a group is that of torch.distributions at the scale that minimizes it."""
    weights = {name: p.detach() for name, p in small.named_parameters()}
    means, sigma = means_of(small, "head"), torch.tensor(0.03, dtype=torch.float64)
    scale = best_scale(weights, means, sigma)
    expected = kl_by_torch(weights, means, sigma, scale)
    assert all(kl_by_torch(weights, means, sigma, scale * off) > expected for off in (0.9, 1.1))
    torch.testing.assert_close(reference_kl(weights, means, sigma), expected, rtol=1e-9, atol=0)


def test_the_plain_loss_is_the_bound(small: nn.Module) -> None:
    """Loss and gradients are those of mean NLL + KL / D by torch.distributions and autograd in float64."""
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))
    means = means_of(small, "head")
    noise = {name: torch.randn_like(p) for name, p in small.named_parameters()}
    rho = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    found = sum(reference_terms(small, "head", means, rho, lambda name, _: noise[name], (x, y), 7))
    names = [name for name, _ in small.named_parameters()]
    gradients = torch.autograd.grad(found, [*small.parameters(), rho])

    own = {name: p.detach().clone().requires_grad_() for name, p in small.named_parameters()}
    own_rho = rho.detach().clone().requires_grad_()
    sigma = F.softplus(own_rho)
    drawn = {name: p + sigma * noise[name] for name, p in own.items()}
    expected = F.cross_entropy(functional_call(small, drawn, (x,)), y)
    for group in ("body.", "head."):
        part = {name: p for name, p in own.items() if name.startswith(group)}
        fixed = {name: p.detach() for name, p in part.items()}
        scale = best_scale(fixed, means, sigma.detach())  # no gradient goes through it: its derivative there is zero
        expected = expected + kl_by_torch(part, means, sigma, scale) / sum(p.numel() for p in own.values())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for name, one, other in zip(
        [*names, "rho"], gradients, torch.autograd.grad(expected, [*own.values(), own_rho]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10, msg=name)


def fast_run(model: nn.Module, head: str, split: Split, method: str) -> TrainingRun:
    """Return the run of the fast path with the same objective."""
    groups = make_groups(model, head, "l2-sp")
    objective: Objective = MAP(groups, BATCH, {"backbone": 1e-3, "head": 1e-3})
    if method == "de-elbo":
        objective = DataEmphasizedELBO(groups, BATCH, sigma=1e-2, generator=torch.Generator().manual_seed(5))
    return TrainingRun(model.train(), split, objective, Schedule(0.001, steps=10**6, batch_size=BATCH), 0)


@pytest.mark.parametrize("method", ["map", "de-elbo"])
def test_a_baseline_step_equals_the_fast_path(method: str, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights and noise, the first step of the baseline equals that of the fast path."""
    model, head = build_backbone("digits-resnet", 10, seed=1)
    other = copy.deepcopy(model)
    naive, fast = BaselineRun(model, head, split, method, BATCH, 0), fast_run(other, head, split, method)
    with torch.no_grad():  # off the prior's means
        for p in [*model.parameters(), *other.parameters()]:
            p.mul_(1.1)
        if method == "de-elbo":
            naive.rho.copy_(fast.objective.parameters()[0])
    noise = torch.randn(fast.objective.dim, generator=torch.Generator().manual_seed(5))
    pieces = iter(noise.split([p.numel() for p in model.parameters()]))
    monkeypatch.setattr(torch, "randn_like", lambda weight: next(pieces).view_as(weight))
    naive.step()
    fast.step(fast.batches()[0])
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6, msg=f"gradient of {name}")
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7, msg=name)
    if method == "de-elbo":
        torch.testing.assert_close(naive.rho.grad, fast.objective.parameters()[0].grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["map", "de-elbo"])
def test_baseline_steps_train(method: str, split: Split) -> None:
    """The NLL of the images decreases after some steps of the baseline."""
    model, head = build_backbone("digits-resnet", 10, seed=1)
    run = BaselineRun(model, head, split, method, BATCH, 0)
    x = split.transform.normalization(split.transform.geometry.evaluation(split.train.pixels))

    def nll() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(x), split.train.labels))

    before = nll()
    for _ in range(60):
        run.step()
    assert nll() < before - 0.03


@pytest.mark.parametrize(
    ("channels", "stored", "geometry"),
    [(1, 16, Geometry(side=16, crop=16)), (3, 12, Geometry(side=20, crop=20)), (3, 24, Geometry(side=16, crop=16))],
    ids=["as stored", "made larger", "made smaller"],
)
def test_images_one_by_one_are_those_of_a_batch(channels: int, stored: int, geometry: Geometry) -> None:
    """Without random augmentation, torchvision's transforms of one image equal those of a batch."""
    found = images(4, channels, stored)
    split = Split(found, None, found, ImageTransform(geometry).fit(found))
    expected = split.transform.normalization(geometry.evaluation(found.pixels))
    loader = SingleImages(split)
    for i in range(len(loader)):
        image, label = loader[i]
        torch.testing.assert_close(image, expected[i], rtol=1e-4, atol=1e-4)
        assert label == found.labels[i]


def test_images_one_by_one_are_moved_and_mirrored() -> None:
    """Crop and mirror are drawn for every image: all positions occur, and about half are mirrored."""
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pixels[0, 0, 1, 1] = 255
    found = Images(pixels, torch.zeros(1, dtype=torch.int64), 1)
    split = Split(
        found, None, found, ImageTransform(Geometry(4, 3, flip=True), Normalization(torch.zeros(1), torch.ones(1)))
    )
    loader: Any = SingleImages(split)
    torch.manual_seed(0)
    seen = [tuple(divmod(int(loader[0][0].argmax()), 3)) for _ in range(200)]
    assert set(seen) == {(row, column) for row in (0, 1) for column in (0, 1, 2)}
    # without a mirror the light is in column 0 or 1; in column 2 only mirrored, from 0
    assert 0.15 < sum(column == 2 for _, column in seen) / len(seen) < 0.35


def test_workers_give_the_same_images(split: Split) -> None:
    """The baseline trains on the same images with and without worker processes."""
    made: list[Callable[[], Any]] = []
    for workers in (0, 1):
        model, head = build_backbone("digits-resnet", 10, seed=1)
        run = BaselineRun(model, head, split, "map", BATCH, workers)
        made.append(lambda run=run: next(run.batches))  # type: ignore[misc]
    (x, y), (other_x, other_y) = (take() for take in made)
    order, other_order = y.argsort(stable=True), other_y.argsort(stable=True)
    assert torch.equal(y[order], other_y[other_order])
    torch.testing.assert_close(x[order], other_x[other_order])
