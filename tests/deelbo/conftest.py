"""Fixtures of the library's tests: one thread, one seed, small networks in float64, and toy images."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

from deelbo import GaussianPrior, LowRank
from deelbo.data import Geometry, Images, ImageTransform, Split
from tests.helpers.refusals import Bomb


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class HeadFirst(nn.Module):
    """A small network whose head comes before its backbone in ``parameters()``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


NAMES = {"backbone": ("body.0.weight", "body.0.bias"), "head": ("head.weight", "head.bias")}


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    """Return a working bomb that must not go off in the test."""
    target = tmp_path / "bombed"
    pickle.loads(pickle.dumps(Bomb(target)))  # noqa: S301
    target.rmdir()
    yield Bomb(target)
    assert not target.exists()


@dataclass
class Problem:
    """A network (backbone 25 weights, head 18; float64), a batch, and a prior of the backbone with its dense form."""

    model: nn.Module
    x: Tensor
    y: Tensor
    prior: str | GaussianPrior
    mean: Tensor
    covariance: Tensor

    def move(self) -> None:
        """Move the weights away from their values at the time when the prior was made."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def weights(self) -> dict[str, Tensor]:
        """Return copies for autograd, backbone first."""
        own = dict(self.model.named_parameters())
        return {n: own[n].detach().clone().requires_grad_() for names in NAMES.values() for n in names}

    def nll(self, weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(self.model, weights, (self.x,)), self.y)

    def groups(self, weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return weights, prior mean and prior covariance of each group."""
        vectors = {g: torch.cat([weights[n].reshape(-1) for n in names]) for g, names in NAMES.items()}
        zero, one = torch.zeros(18).double(), torch.eye(18).double()
        return {"backbone": (vectors["backbone"], self.mean, self.covariance), "head": (vectors["head"], zero, one)}

    def kl(self, weights: dict[str, Tensor], sigma: Tensor, detach: bool = False) -> Tensor:
        """Return the sum of the groups' dense KL at the closed-form scales, through which autograd may go."""
        total = torch.zeros(()).double()
        for vector, mean, covariance in self.groups(weights).values():
            precision, d = torch.linalg.inv(covariance), vector - mean
            scale = (sigma**2 * precision.trace() + d @ precision @ d) / len(d)
            p = MultivariateNormal(mean, (scale.detach() if detach else scale) * covariance)
            total = total + kl_divergence(MultivariateNormal(vector, sigma**2 * torch.eye(len(d)).double()), p)
        return total

    def bound(self, sigma: float, seed: int, share: float, detach: bool) -> dict[str, Tensor]:
        """Return autograd's gradients of NLL at the seed's draw + share * KL, and the KL."""
        weights = self.weights()
        rho = torch.tensor(sigma, dtype=torch.float64).expm1().log().requires_grad_()
        noise = torch.randn((43,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        pieces = noise.split([w.numel() for w in weights.values()])
        drawn = {n: w + F.softplus(rho) * e.view_as(w) for (n, w), e in zip(weights.items(), pieces, strict=True)}
        kl = self.kl(weights, F.softplus(rho), detach)
        gradients = torch.autograd.grad(self.nll(drawn) + share * kl, [*weights.values(), rho])
        return dict(zip([*weights, "rho"], gradients, strict=True)) | {"kl": kl.detach()}


@pytest.fixture(params=["l2-zero", "l2-sp", "low-rank"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """A problem for each kind of prior."""
    model = HeadFirst().double()
    own = dict(model.named_parameters())
    start = torch.cat([own[name].detach().reshape(-1) for name in NAMES["backbone"]])
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    identity = torch.eye(25, dtype=torch.float64)
    if request.param == "low-rank":
        mean, variance = torch.randn(25).double(), torch.rand(25).double()
        factor = torch.randn(25, 4).double()
        covariance = torch.diag(variance) / 2 + 0.1 * identity + factor @ factor.T / 6
        return Problem(model, x, y, LowRank(mean, variance, factor), mean, covariance)
    mean = start if request.param == "l2-sp" else torch.zeros_like(start)
    return Problem(model, x, y, request.param, mean, identity)


@pytest.fixture
def toy_images() -> Callable[[int, int], Images]:
    """Return a function that makes n grey 4x4 images of 4 classes, each with its own bright quarter."""

    def make(n: int, seed: int) -> Images:
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % 4
        pixels = torch.randint(0, 120, (n, 1, 4, 4), generator=random)
        for quarter in range(4):
            row, column = 2 * (quarter // 2), 2 * (quarter % 2)
            pixels[labels == quarter, :, row : row + 2, column : column + 2] += 80
        return Images(pixels.to(torch.uint8), labels, 4)

    return make


@pytest.fixture
def toy_split(toy_images: Callable[[int, int], Images]) -> Split:
    """160 training images, 40 to validate, 80 to test."""
    train = toy_images(160, 1)
    return Split(
        train,
        toy_images(40, 2),
        toy_images(80, 3),
        ImageTransform(Geometry(side=4, crop=4, pad=1)).fit(train),
    )


@pytest.fixture
def toy_model() -> nn.Module:
    """A small float32 network for the toy images, with BatchNorm and dropout; its head is called ``4``."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 4))
