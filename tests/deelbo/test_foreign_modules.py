"""Tests of `LearnedL2` on modules that know nothing of it, and of the package without optional dependencies."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import LearnedL2

ROOT = Path(__file__).parents[2]


def resnet18() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=3)
    return model


def vit_b_16() -> nn.Module:
    model: nn.Module = torchvision.models.vit_b_16(image_size=32, num_classes=3)
    nn.init.normal_(model.get_submodule("heads.head").weight, std=0.01)  # starts at 0, which stops all gradients
    return model


def convnext_tiny() -> nn.Module:
    model: nn.Module = torchvision.models.convnext_tiny(num_classes=3)
    return model


class TiedEncoder(nn.Module):
    """Two layers that share one matrix, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return logits


def one_step(model: nn.Module, head: str, x: Tensor, learning_rate: float = 0.01) -> LearnedL2:
    reg = LearnedL2(model, num_examples=100, head=head, sigma=1e-3)
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=learning_rate, momentum=0.9, nesterov=True)
    with reg.sample():
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
    opt.step()
    return reg


@pytest.mark.parametrize(
    ("make", "head", "size", "weights"),
    [
        (resnet18, "fc", 32, 11_178_051),
        (vit_b_16, "heads", 32, 85_653_507),
        (convnext_tiny, "classifier.2", 32, 27_822_435),
    ],
)
def test_torchvision_models(make: Callable[[], nn.Module], head: str, size: int, weights: int) -> None:
    """A torchvision model takes a step: D is its number of weights, and all of them move and stay finite."""
    model = make().train()
    before = [p.detach().clone() for p in model.parameters()]
    reg = one_step(model, head, torch.randn(3, 3, size, size))
    assert reg.dim == weights
    assert reg.kappa == weights / 100
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert reg.sigma != pytest.approx(1e-3, rel=1e-6)
    assert 0 < reg.lambda_ < 1
    assert 0 < reg.tau < 1


def test_tied_weights() -> None:
    """A shared matrix is counted and moved once, and stays shared."""
    model = TiedEncoder()
    before = model.first.weight.detach().clone()
    reg = one_step(model, "head", torch.randn(4, 12))
    assert reg.dim == 12 * 12 + 12 + 12 + 12 * 3 + 3
    assert model.first.weight is model.second.weight
    assert not torch.equal(model.first.weight, before)


def test_a_frozen_stem() -> None:
    """Frozen weights are not counted and do not move, not even inside the block."""
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    frozen = model[0].requires_grad_(False).weight
    before, seen = frozen.clone(), []
    model.register_forward_hook(lambda *_: seen.append(frozen.clone()))
    reg = one_step(model, "2", torch.randn(4, 12))
    assert reg.dim == 8 * 3 + 3
    assert torch.equal(frozen, before)
    assert torch.equal(seen[0], before)
    assert frozen.grad is None


def test_batchnorm_buffers() -> None:
    """BatchNorm's buffers get no noise: after one block they have the statistics of its inputs."""
    model = resnet18().train()
    inputs: list[Tensor] = []
    norm = model.get_submodule("bn1")
    norm.register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))
    reg = LearnedL2(model, 100, head="fc", sigma=0.05)
    buffers = dict(norm.named_buffers())
    with reg.sample():
        assert torch.equal(buffers["running_mean"], torch.zeros(64))
        F.cross_entropy(model(torch.randn(3, 3, 32, 32)), torch.arange(3)).backward()
    torch.testing.assert_close(buffers["running_mean"], 0.1 * inputs[0].mean((0, 2, 3)))
    unbiased = inputs[0].transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(buffers["running_var"], 0.9 + 0.1 * unbiased, rtol=1e-4, atol=1e-5)
    assert int(buffers["num_batches_tracked"]) == 1


def test_autocast() -> None:
    """Under bfloat16 autocast weights and gradients stay float32, near those of full precision."""
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    x, y = torch.randn(16, 12), torch.arange(16) % 3
    gradients, seen = [], []
    model.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    for enabled in (True, False):
        reg = LearnedL2(model, 100, head="2", sigma=1e-3, generator=torch.Generator().manual_seed(2))
        with reg.sample(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            F.cross_entropy(model(x).float(), y).backward()
        assert all(p.dtype == torch.float32 == p.grad.dtype for p in model.parameters() if p.grad is not None)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert seen == [torch.bfloat16, torch.float32]
    assert len(gradients[0]) == reg.dim
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.1
    assert not torch.equal(*gradients)


def test_gradient_accumulation() -> None:
    """Two halves of a batch in one block, each loss halved, give the whole batch's step."""
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y, gradients = torch.randn(8, 12).double(), torch.arange(8) % 3, []
    for parts in (1, 2):
        reg = LearnedL2(model, 100, head="2", sigma=0.1, generator=torch.Generator().manual_seed(2))
        with reg.sample():
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(a), b) / parts).backward()
        trained = [*model.parameters(), *reg.parameters()]
        gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    assert len(gradients[0]) == 12 * 8 + 8 + 8 * 3 + 3 + 1
    torch.testing.assert_close(*gradients)


def test_a_weight_that_the_loss_does_not_reach() -> None:
    """A weight without a gradient of its own still gets the regularizer's."""
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(2, 2)}).double()
    reg = LearnedL2(model, 10, prior="l2-zero", sigma=0.1)
    with reg.sample():
        F.cross_entropy(model["used"](torch.randn(5, 4).double()), torch.arange(5) % 3).backward()
    expected = reg.weight_decay()["backbone"] * model["spare"].weight
    torch.testing.assert_close(model["spare"].weight.grad, expected.detach())


ALONE = """
import sys, importlib, pkgutil

import torchvision  # torch asks where pandas is when torchvision is imported, and does not import it

ABSENT = {"ray", "mlflow", "pandas", "pydantic", "mlxtend", "bench"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
try:
    import bench
except ImportError:
    print("refused")
import deelbo, torch
for module in pkgutil.walk_packages(deelbo.__path__, "deelbo."):
    importlib.import_module(module.name)
    print(module.name)
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
reg = deelbo.LearnedL2(model, num_examples=8)
with reg.sample():
    torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 2).backward()
assert model.weight.grad is not None
assert not ABSENT & set(sys.modules), ABSENT & set(sys.modules)
print("stepped")
"""


def test_the_package_stands_alone() -> None:
    """Every module of deelbo imports, and a step runs, without bench, ray, mlflow, pandas, pydantic or mlxtend."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[0] == "refused"
    assert lines[-1] == "stepped"
    files = {file for file in (ROOT / "deelbo").rglob("*.py") if file != ROOT / "deelbo" / "__init__.py"}
    assert len(lines) - 2 == len(files)
