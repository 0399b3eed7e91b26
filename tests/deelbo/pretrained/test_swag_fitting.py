"""Tests of fitting SWAG on source images, against the iterates of a plain loop."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo._vectors import flatten
from deelbo.groups import split_at_head
from deelbo.pretrained import swag_fitting
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.registry import BACKBONES, BackboneEntry
from deelbo.pretrained.source_images import SourceImages
from deelbo.pretrained.swag_files import read_swag
from deelbo.pretrained.swag_fitting import SwagConfig, fit_swag
from deelbo.pretrained.weights import load_backbone, read_weights
from tests.helpers.refusals import refusal_of


class Small(nn.Module):
    """A network with BatchNorm and dropout for small images; its head has four classes and comes first."""

    def __init__(self, image_size: int | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.conv = nn.Conv2d(3, 5, 3, 2)
        self.bn = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.dropout(self.bn(self.conv(x)).relu().mean((2, 3)), 0.1, self.training))
        return logits


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of pretrained weights of the backbone "small"."""
    monkeypatch.setitem(BACKBONES, "small", BackboneEntry(lambda _classes, size: Small(size), "fc", meta=True))
    torch.save(Small().state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten noisy images of three classes of different brightness."""
    random = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "source" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 100, (14, 12, 3)) + 70 * (number % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "source"


def fit(backbone: str, folder: Path, out: Path, weights: Path | None = None, say: Any = None, **config: Any) -> Path:
    return fit_swag(backbone, folder, out, SwagConfig(**config), weights=weights, say=say)


Iterates = np.ndarray[Any, np.dtype[np.float64]]


def plain_loop(
    backbone: str, weights: Path, folder: Path, epochs: int, every: int, batch_size: int, **given: Any
) -> tuple[nn.Module, Iterates, torch.Generator]:
    """Run SGD as documented, and return its iterates, collected every so many steps."""
    seed, size = given.get("seed", 0), given.get("image_size", 224)
    images, random = SourceImages(folder, size), torch.Generator().manual_seed(seed)
    model, head = build_backbone(backbone, images.num_classes, read_weights(backbone, weights), seed, image_size=size)
    options = {"lr": given.get("learning_rate", 0.001), "weight_decay": given.get("weight_decay", 1e-4)}
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **options)
    torch.manual_seed(seed)
    model.train()
    collected, step = [], 0
    for _ in range(epochs):
        for x, y in images.batches(batch_size, random):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
            if step % every == 0:
                collected.append(flatten(split_at_head(model, head)[0]).double().numpy())
    return model, np.stack(collected), random


@pytest.mark.parametrize(("collect_every", "epochs"), [(None, 6), (2, 4)])
def test_the_posterior_is_that_of_the_iterates(
    weights: Path, folder: Path, tmp_path: Path, collect_every: int | None, epochs: int
) -> None:
    """Mean, variance and factor are numpy's of a plain loop's iterates, per epoch or at an interval."""
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 3,
        "learning_rate": 0.1,
        "weight_decay": 0.01,
        "image_size": 8,
        "seed": 4,
    }
    out = fit("small", folder, tmp_path / "s.pt", weights=weights, collect_every=collect_every, **given)
    found = read_swag(out, "small")
    _, iterates, _ = plain_loop("small", weights, folder, every=collect_every or 3, **given)
    assert len(iterates) == 6
    deviations = [iterates[t] - iterates[: t + 1].mean(0) for t in range(1, 6)]
    np.testing.assert_allclose(found.mean, iterates.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, iterates.var(0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.factor, np.stack(deviations, 1), rtol=1e-4, atol=1e-6)
    assert iterates.var(0).max() > 1e-4


def test_batchnorm_is_recomputed_at_the_mean(weights: Path, folder: Path, tmp_path: Path) -> None:
    """The buffers are the average over batches of each batch's statistics at the mean."""
    given: dict[str, Any] = {"epochs": 5, "batch_size": 2, "learning_rate": 0.1, "image_size": 8}
    out = fit("small", folder, tmp_path / "s.pt", weights=weights, statistics_images=4, **given)
    posterior = load_backbone("small", weights, out).swag_weights
    assert posterior is not None
    _, _, random = plain_loop("small", weights, folder, every=5, **given)
    passed = [x for x, _ in SourceImages(folder, 8).batches(2, random, max_images=4)]
    inputs = [F.conv2d(x, posterior["conv.weight"], posterior["conv.bias"], 2) for x in passed]
    assert len(inputs) == 2
    for name, statistic in (("mean", torch.mean), ("var", torch.var)):
        expected = torch.stack([statistic(x, (0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(posterior[f"bn.running_{name}"], expected, rtol=1e-4, atol=1e-5)


def test_both_suffixes_and_any_workers_give_the_same(weights: Path, folder: Path, tmp_path: Path) -> None:
    """The seed alone determines the posterior; torch's global random numbers do not change."""

    def fitted(name: str, **options: Any) -> dict[str, Tensor]:
        torch.rand(len(name))
        before = torch.random.get_rng_state()
        out = fit("small", folder, tmp_path / name, weights=weights, epochs=5, image_size=8, **options)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert out == tmp_path / name
        found = read_swag(out, "small")
        return {"mean": found.mean, "variance": found.variance, "factor": found.factor} | found.buffers

    first = fitted("first.pt")
    for again in (fitted("again.safetensors"), fitted("workers.pt", workers=1)):
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.equal(fitted("other.pt", seed=1)["mean"], first["mean"])


def test_the_pretrained_head_is_kept_where_it_fits(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretrained head is kept if it has the folders' number of classes; the output says so."""
    head = {"fc.weight": torch.full((3, 5), 7.0), "fc.bias": torch.ones(3)}
    torch.save(torch.load(weights, weights_only=True) | head, tmp_path / "three.pt")
    heads: list[Tensor] = []
    monkeypatch.setattr(
        swag_fitting, "update_bn", lambda _, model, device: heads.append(model.get_parameter("fc.weight").detach())
    )
    said: list[str] = []
    for path in (weights, tmp_path / "three.pt"):
        still: dict[str, Any] = {"learning_rate": 1e-12, "weight_decay": 0, "epochs": 5, "image_size": 8}
        fit("small", folder, tmp_path / "s.pt", weights=path, say=said.append, **still)
    assert 0 < float(heads[0].abs().max()) <= 1 / 5**0.5
    assert torch.equal(heads[1], head["fc.weight"])
    assert [line for line in said if "the head" in line and "classes" in line] == [
        "10 images of 3 classes, 1 steps an epoch; the head is new",
        "10 images of 3 classes, 1 steps an epoch; the head is the pretrained one",
    ]
    assert len(said) == 2 * (2 + 5)


def test_a_real_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50's posterior is over its backbone's weights, has all buffers, and its mean has moved."""
    torch.save(build_backbone("resnet50", 3, seed=1)[0].state_dict(), tmp_path / "w.pt")
    start = flatten(split_at_head(build_backbone("resnet50", 3, seed=1)[0], "fc")[0])
    written: dict[str, Any] = {}
    monkeypatch.setattr(swag_fitting, "write_swag", lambda out, **parts: written.update(parts))
    options: dict[str, Any] = {"epochs": 5, "image_size": 32, "learning_rate": 1e-4}
    fit("resnet50", folder, tmp_path / "s.pt", weights=tmp_path / "w.pt", **options)
    assert written["factor"].shape == (23_508_032, 5)
    assert 0 < float((written["mean"] - start).norm() / start.norm()) < 0.1
    assert float(written["variance"].max()) > 0
    assert written["buffers"].keys() == dict(build_backbone("resnet50", 3)[0].named_buffers()).keys()


def refusal(*given: Any, **options: Any) -> str:
    return refusal_of(fit, *given, **({"image_size": 8, "epochs": 5} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 4}, "SWAG of rank 5 needs as many iterates, 4 epochs of 3 steps give 4: raise epochs"),
        ({"epochs": 6, "rank": 7}, "SWAG of rank 7 needs as many iterates, 6 epochs of 3 steps give 6"),
        ({"collect_every": 4}, "5 epochs of 3 steps give 3"),
        ({"rank": 4}, "rank must be at least 5, .* got 4"),
        ({"batch_size": 1}, "batch_size must be at least 2, .* got 1"),
        ({"learning_rate": 0}, "learning_rate must be finite and above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite and above 0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite and above 0, got inf"),
        ({"seed": -1}, "seed must be 0 to .* got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"image_size": 100_000}, "image_size must be 1 to 10000, got 100000"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"collect_every": 0}, "collect_every must be at least 1, got 0"),
        ({"statistics_images": 0}, "statistics_images must be at least 1, got 0"),
    ],
)
def test_impossible_settings(weights: Path, folder: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    """Impossible numbers, and too few iterates for the rank, are refused before training."""
    said: list[str] = []
    given = {"weights": weights, "batch_size": 3, "say": said.append} | options
    found = refusal("small", folder, tmp_path / "s.pt", **given)
    assert re.search(words, found), found
    assert said == []


def test_impossible_inputs_and_outputs(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits network, an unknown one, a wrong target, a missing folder and missing default weights are refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = tmp_path / "s.pt"
    assert "digits-resnet has its SWAG posterior from deelbo itself" in refusal("digits-resnet", folder, out)
    assert "backbone must be one of" in refusal("resnet51", folder, out, weights=weights)
    assert "got the suffix '.npz'" in refusal("small", folder, tmp_path / "s.npz", weights=weights)
    assert "is not a folder" in refusal("small", folder, tmp_path / "none" / "s.pt", weights=weights)
    assert "is not a folder" in refusal("small", tmp_path / "none", out, weights=weights)
    assert "IMAGENET1K_V1 weights of resnet50 are not at" in refusal("resnet50", folder, out)


def test_bad_input_is_found_before_training(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is not there, a file that is no image, and a disk without room are refused before a step."""

    def train(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(swag_fitting, "_collect_iterates", train)
    out = tmp_path / "s.pt"
    with pytest.raises(ValueError, match="device cuda:99 is not here"):
        fit_swag("small", folder, out, weights=weights, device="cuda:99")
    with monkeypatch.context() as patch:
        patch.setattr(swag_fitting.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 7 * 10))
        assert f"{out} takes 4.2e-06 GB, 2.8e-07 GB are free" in refusal("small", folder, out, weights=weights)
    (folder / "class1" / "7.png").write_text("<html>")
    found = refusal("small", folder, out, weights=weights)
    assert "class1/7.png cannot be decoded (not an image of a known format): delete it" in found


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nSee the docs"),
            "CUDA out of memory. Tried",
        ),
        (MemoryError(), "MemoryError"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "is killed by signal"),
    ],
    ids=["GPU", "CPU", "worker"],
)
def test_a_lack_of_memory(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """What torch raises while it trains is one line with what to change."""

    def forward(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(Small, "forward", forward)
    found = refusal("small", folder, tmp_path / "s.pt", weights=weights)
    assert "small cannot be trained so on cpu (" in found
    assert words in found
    assert found.endswith(": change batch_size, image_size or workers")


def test_a_diverged_run_writes_nothing(weights: Path, folder: Path, tmp_path: Path) -> None:
    """If the loss is not finite, the run fails with the learning rate to lower, and writes no file."""
    words = refusal("small", folder, tmp_path / "s.pt", weights=weights, learning_rate=1e30, batch_size=3)
    assert "diverged in epoch 1: lower learning_rate, which is 1e+30" in words
    assert not (tmp_path / "s.pt").exists()


def test_the_posterior_of_an_own_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network by its import path, with random weights: its posterior is read as its prior, over its own weights."""
    module: Any = ModuleType("own_swag_nets")
    module.build = lambda num_classes: Small()
    monkeypatch.setitem(sys.modules, "own_swag_nets", module)
    out = fit_swag(
        "own_swag_nets:build", folder, tmp_path / "own.pt", SwagConfig(image_size=8, batch_size=5), weights="none"
    )
    posterior = read_swag(out, "own_swag_nets:build")
    assert posterior.mean.numel() == 3 * 5 * 9 + 5 + 10
    pretrained = load_backbone("own_swag_nets:build", "none", out)
    assert pretrained.weights == {}  # other priors start from random weights, others for each seed
    assert torch.equal(pretrained.swag_weights["conv.weight"].flatten(), posterior.mean[: 3 * 5 * 9])
    model, _ = build_backbone("own_swag_nets:build", 3, pretrained.swag_weights)
    assert torch.equal(model.bn.running_mean, posterior.buffers["bn.running_mean"])


def test_images_are_normalized_as_the_network_expects(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry's own mean and standard deviation replace ImageNet's."""
    entry = BackboneEntry(lambda _classes, size: Small(size), "fc", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    monkeypatch.setitem(BACKBONES, "own-range", entry)
    seen: list[Any] = []
    monkeypatch.setattr(
        "deelbo.pretrained.swag_fitting.SourceImages", lambda *given: (seen.append(given), SourceImages(*given))[1]
    )
    fit_swag("own-range", folder, tmp_path / "o.pt", SwagConfig(image_size=8, batch_size=5), weights="none")
    assert seen == [(folder, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))]
    plain = SourceImages(folder, 8, (0, 0, 0), (1, 1, 1))[0, 3][0]
    shifted = SourceImages(folder, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))[0, 3][0]
    torch.testing.assert_close(shifted, (plain - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5)
