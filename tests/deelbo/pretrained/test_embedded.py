"""Tests of the embedded pretrained backbone: it is repeatable, cached, and safe to read from the cache."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deelbo.data.digits import load_uci
from deelbo.data.images import Normalization
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.embedded import Pretrained, Recipe, cache_path, load_pretrained, pretrain
from tests.helpers.refusals import Bomb

TINY = Recipe(epochs=1, swag_epochs=5)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    torch.set_num_threads(1)
    return pretrain(TINY)


def test_pretraining_is_repeatable(pretrained: Pretrained) -> None:
    """Pretraining gives the same bits again and does not change torch's global random numbers."""
    torch.manual_seed(99)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = pretrain(TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert again.fingerprint == pretrained.fingerprint
    for name, tensor in pretrained.weights.items():
        assert torch.equal(again.weights[name], tensor)
    assert torch.equal(again.factor, pretrained.factor)


def test_pretrained_parts(pretrained: Pretrained) -> None:
    """State dicts fit the backbone, and SWAG is over its weights without the head's and has moved."""
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


def test_a_network_without_swag_has_a_fingerprint() -> None:
    """Without a SWAG posterior the fingerprint is of the weights alone, and SWAG changes it."""
    weights = {"w": torch.ones(3)}
    assert Pretrained(weights).fingerprint == Pretrained({"w": torch.ones(3)}).fingerprint
    assert Pretrained(weights).fingerprint != Pretrained({"w": torch.zeros(3)}).fingerprint
    assert Pretrained(weights).fingerprint != Pretrained(weights, weights, torch.ones(3), torch.ones(3, 5)).fingerprint


def test_batchnorm_is_recomputed_at_swags_mean(pretrained: Pretrained) -> None:
    """BatchNorm's running mean at SWAG's weights is that of its inputs, averaged over batches of 256."""
    source = load_uci(16)
    x = Normalization.of(source)(source.pixels)
    inputs = torch.conv2d(x, pretrained.swag_weights["conv1.weight"], padding=1)
    expected = torch.stack([part.mean((0, 2, 3)) for part in inputs.split(256)]).mean(0)
    torch.testing.assert_close(pretrained.swag_weights["bn1.running_mean"], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEELBO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_another_version_has_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached file's name depends on the recipe and on the version of the pretraining."""
    names = {cache_path(Recipe()), cache_path(TINY)}
    monkeypatch.setattr("deelbo.pretrained.embedded.VERSION", -1)
    assert len(names | {cache_path(Recipe()), cache_path(TINY)}) == 4


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, pretrained: Pretrained) -> list[Recipe]:
    """Replace pretraining by the fixture's network, and return the list of requested recipes."""
    asked: list[Recipe] = []

    def instead(recipe: Recipe) -> Pretrained:
        asked.append(recipe)
        return pretrained

    monkeypatch.setattr("deelbo.pretrained.embedded.pretrain", instead)
    return asked


def test_the_cache_is_filled_once(cache: Path, counted: list[Recipe], pretrained: Pretrained) -> None:
    """The first call pretrains and says so; the second reads the same bits and says nothing."""
    said: list[str] = []
    load_pretrained(TINY, said.append)
    second = load_pretrained(TINY, said.append)
    assert second.fingerprint == pretrained.fingerprint
    assert counted == [TINY]
    assert len(said) == 1
    assert [file.suffix for file in cache.iterdir()] == [".pt"]


def test_another_recipe_is_another_file(cache: Path, counted: list[Recipe]) -> None:
    """A recipe that differs in any setting has its own file."""
    recipes = [TINY, Recipe(epochs=1, swag_epochs=5, seed=1), Recipe(epochs=2, swag_epochs=5)]
    for recipe in recipes:
        load_pretrained(recipe)
    assert counted == recipes
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_named(cache: Path, counted: list[Recipe], damage: bytes | None) -> None:
    """An empty, wrong or truncated cached file raises a ValueError with its path and what to do."""
    load_pretrained(TINY)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(ValueError, match="delete it") as error:
        load_pretrained(TINY)
    assert str(path) in str(error.value)
    assert counted == [TINY]


def test_a_cached_file_cannot_run_code(cache: Path, counted: list[Recipe], bomb: Bomb) -> None:
    """A cached file that would run code is refused, and the code does not run."""
    load_pretrained(TINY)
    (path,) = cache.iterdir()
    torch.save(bomb, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_pretrained(TINY)
