"""SWAG against numpy, and the pretrained backbone: repeatable, cached, and safe to read from the cache."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deelbo import LowRank
from deelbo.backbones import build_backbone, split_at_head
from deelbo.pretraining import SWAG, Pretrained, Recipe, cache_folder, load_pretrained, pretrain
from deelbo.tasks.digits import load_uci
from deelbo.tasks.images import Normalisation

TINY = Recipe(epochs=1, swag_epochs=5)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    torch.set_num_threads(1)
    return pretrain(TINY)


def walk(steps: int, rank: int) -> tuple[SWAG, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """SWAG over a random walk of two weight tensors, and all the iterates it saw."""
    weights = [nn.Parameter(torch.randn(2, 3).double()), nn.Parameter(torch.randn(4).double())]
    swag, seen = SWAG(weights, rank), []
    for _ in range(steps):
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight))
        swag.collect()
        seen.append(np.concatenate([w.detach().numpy().ravel() for w in weights]))
    return swag, np.stack(seen)


@pytest.mark.parametrize(("steps", "rank"), [(2, 2), (5, 5), (9, 3)])
def test_swag_against_numpy(steps: int, rank: int) -> None:
    """Mean, variance and the last K deviations from the running mean are numpy's of the iterates."""
    swag, seen = walk(steps, rank)
    np.testing.assert_allclose(swag.mean, seen.mean(0), rtol=1e-10)
    np.testing.assert_allclose(swag.variance, seen.var(0), rtol=1e-8)
    deviations = [seen[t] - seen[: t + 1].mean(0) for t in range(steps)]
    np.testing.assert_allclose(swag.factor, np.stack(deviations[-rank:], axis=1), rtol=1e-8, atol=1e-12)
    assert swag.count == steps


def test_swags_variance_is_not_negative() -> None:
    """Iterates that hardly move have variance 0, not a rounding error below it."""
    weight = nn.Parameter(1000 * torch.randn(1000))
    swag = SWAG([weight])
    for _ in range(7):
        with torch.no_grad():
            weight.add_(1e-4 * torch.randn(1000))
        swag.collect()
    assert float(swag.variance.min()) == 0


def test_the_prior_from_swag() -> None:
    """LowRank made from SWAG is the Gaussian of the dense 1/2 diag(s) + eps I + Q Q^T / (2K - 2)."""
    swag, seen = walk(8, rank=5)
    prior = LowRank(swag.mean, swag.variance, swag.factor)
    deviations = np.stack([seen[t] - seen[: t + 1].mean(0) for t in range(3, 8)], axis=1)
    dense = np.diag(seen.var(0)) / 2 + 0.1 * np.eye(10) + deviations @ deviations.T / 8
    vector = np.arange(10.0) - 4
    np.testing.assert_allclose(
        prior.precision_times(torch.from_numpy(vector)), np.linalg.solve(dense, vector), rtol=1e-8
    )
    assert prior.log_det == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-9)
    assert prior.trace_precision == pytest.approx(np.trace(np.linalg.inv(dense)), rel=1e-9)


def test_too_few_iterates_are_refused() -> None:
    """SWAG's factor is refused while fewer iterates than its rank were collected, both numbers named."""
    with pytest.raises(ValueError, match="rank 5 needs as many iterates, 4 were collected"):
        _ = walk(4, rank=5)[0].factor


def test_a_rank_below_two_is_refused() -> None:
    """SWAG of rank 1 is refused: its covariance would divide by zero."""
    with pytest.raises(ValueError, match="rank must be at least 2, got 1"):
        walk(0, rank=1)


def test_pretraining_is_repeatable(pretrained: Pretrained) -> None:
    """Pretraining again gives the same bits, whatever torch's global random numbers, which it leaves alone."""
    torch.manual_seed(99)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = pretrain(TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert again.fingerprint == pretrained.fingerprint
    for name, tensor in pretrained.weights.items():
        assert torch.equal(again.weights[name], tensor)
    assert torch.equal(again.factor, pretrained.factor)


def test_what_is_pretrained(pretrained: Pretrained) -> None:
    """State dicts fit the backbone, SWAG is over its weights without the head's, and is no longer the ordinary end."""
    model, head = build_backbone("digits-resnet", 10, pretrained.swag_weights)
    model.load_state_dict(pretrained.weights)
    backbone, _ = split_at_head(model, head)
    size = sum(p.numel() for p in backbone)
    assert pretrained.variance.shape == (size,)
    assert pretrained.factor.shape == (size, 5)
    assert float(pretrained.variance.min()) >= 0
    assert not torch.equal(pretrained.weights["conv1.weight"], pretrained.swag_weights["conv1.weight"])


def test_the_fingerprint_sees_every_number(pretrained: Pretrained) -> None:
    """Changing one number of any part changes the fingerprint."""
    parts = {"weights": pretrained.weights, "swag_weights": pretrained.swag_weights}
    parts |= {"variance": pretrained.variance, "factor": pretrained.factor}
    prints = {pretrained.fingerprint}
    for name, part in parts.items():
        if isinstance(part, Tensor):
            changed: Tensor | dict[str, Tensor] = part.clone()
            changed.view(-1)[0] += 1
        else:
            changed = {key: tensor.clone() for key, tensor in part.items()}
            changed["bn1.running_mean"][0] += 1
        prints.add(Pretrained(**(parts | {name: changed})).fingerprint)
    assert len(prints) == 5


def test_batchnorm_is_recomputed_at_swags_mean(pretrained: Pretrained) -> None:
    """The first BatchNorm's running mean at SWAG's weights is that of its own inputs, averaged over batches of 256."""
    source = load_uci()
    x = Normalisation.of(source)(source.pixels)
    inputs = torch.conv2d(x, pretrained.swag_weights["conv1.weight"], padding=1)
    expected = torch.stack([part.mean((0, 2, 3)) for part in inputs.split(256)]).mean(0)
    torch.testing.assert_close(pretrained.swag_weights["bn1.running_mean"], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEELBO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, pretrained: Pretrained) -> list[Recipe]:
    """Puts the fixture's network in place of pretraining, and lists the recipes that were asked for."""
    asked: list[Recipe] = []

    def instead(recipe: Recipe) -> Pretrained:
        asked.append(recipe)
        return pretrained

    monkeypatch.setattr("deelbo.pretraining.pretrain", instead)
    return asked


def test_the_cache_is_filled_once(cache: Path, counted: list[Recipe], pretrained: Pretrained) -> None:
    """The first call makes and says so, the second reads the same bits from one file and says nothing."""
    said: list[str] = []
    load_pretrained(TINY, said.append)
    second = load_pretrained(TINY, said.append)
    assert second.fingerprint == pretrained.fingerprint
    assert counted == [TINY]
    assert len(said) == 1
    assert [file.suffix for file in cache.iterdir()] == [".pt"]


def test_another_recipe_is_another_file(cache: Path, counted: list[Recipe]) -> None:
    """A recipe that differs anywhere has a file of its own."""
    recipes = [TINY, Recipe(epochs=1, swag_epochs=5, seed=1), Recipe(epochs=2, swag_epochs=5)]
    for recipe in recipes:
        load_pretrained(recipe)
    assert counted == recipes
    assert len(list(cache.iterdir())) == 3


def test_the_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$DEELBO_CACHE names the folder; else it is ``deelbo`` in $XDG_CACHE_HOME, else in ~/.cache."""
    assert cache_folder() == cache
    monkeypatch.delenv("DEELBO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "deelbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "deelbo"


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_named(cache: Path, counted: list[Recipe], damage: bytes | None) -> None:
    """A cached file that is empty, something else or cut short raises ValueError with its path and what to do."""
    load_pretrained(TINY)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(ValueError, match="delete it") as error:
        load_pretrained(TINY)
    assert str(path) in str(error.value)
    assert counted == [TINY]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_cached_file_cannot_run_code(cache: Path, counted: list[Recipe], tmp_path: Path) -> None:
    """A cached file that would run code when unpickled is refused, and the code does not run."""
    load_pretrained(TINY)
    (path,) = cache.iterdir()
    target = tmp_path / "bombed"
    pickle.loads(pickle.dumps(Bomb(target)))  # noqa: S301  the bomb works
    target.rmdir()
    torch.save(Bomb(target), path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_pretrained(TINY)
    assert not target.exists()
