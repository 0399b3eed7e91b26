"""Tests of files of SWAG posteriors: written files are read back, and wrong ones are refused in one line."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deelbo.groups import split_at_head
from deelbo.pretrained.registry import BACKBONES, BackboneEntry
from deelbo.pretrained.swag_files import SwagSource, check_target, read_swag, weights_at_mean, write_swag
from tests.helpers.refusals import refusal_of

D = 19


class Small(nn.Module):
    """A network with BatchNorm whose backbone has D weights; its head comes first."""

    def __init__(self, image_size: int | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)
        self.conv = nn.Conv2d(3, 2, (2, 1))
        self.bn = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(torch.ones(()))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "small", BackboneEntry(lambda _classes, size: Small(size), "fc", meta=True))


@pytest.fixture
def parts() -> dict[str, Tensor]:
    return {"mean": torch.randn(D), "variance": torch.rand(D), "factor": torch.randn(D, 5)}


@pytest.fixture
def buffers() -> dict[str, Tensor]:
    counted = {"bn.num_batches_tracked": torch.tensor(4)}
    return {"bn.running_mean": torch.randn(2), "bn.running_var": torch.rand(2) + 1} | counted


def saved(tensors: object, folder: Path) -> Path:
    torch.save(tensors, folder / "swag.pt")
    return folder / "swag.pt"


def refusal(source: SwagSource) -> str:
    return refusal_of(read_swag, source, "small")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_written_files_are_read(
    tmp_path: Path, parts: dict[str, Tensor], buffers: dict[str, Tensor], suffix: str
) -> None:
    """Every number is read back, also after replacing a file, and no other file is left."""
    out = tmp_path / f"swag{suffix}"
    out.write_bytes(b"older")
    assert write_swag(out, **parts, buffers=buffers) == out
    found = read_swag(str(out), "small")
    assert all(torch.equal(getattr(found, name), tensor) for name, tensor in parts.items())
    assert found.buffers.keys() == buffers.keys()
    assert all(torch.equal(found.buffers[name], tensor) for name, tensor in buffers.items())
    assert found.image_size is None
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(("error", "raised"), [(OSError, OSError), (RuntimeError, ValueError)])
def test_a_failed_write_keeps_the_older_file(
    tmp_path: Path,
    parts: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    raised: type[Exception],
) -> None:
    """If writing fails, the older file is unchanged, and no part of the new one is left; torch's error is described."""

    def half(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error("No space left on device")

    out = saved(parts, tmp_path)
    before = out.read_bytes()
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(raised, match="No space left"):
        write_swag(out, **parts, buffers={})
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_three_files(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    """Three files of one tensor each give the same posterior as one file of three, without buffers."""
    paths: dict[str, str | Path] = {name: tmp_path / f"{name}.pt" for name in parts}
    for name, tensor in parts.items():
        torch.save(tensor, paths[name])
    paths["factor"] = tmp_path / "factor.safetensors"
    save_file({"anything": parts["factor"]}, paths["factor"])
    found = read_swag(paths, "small")
    assert all(torch.equal(getattr(found, name), tensor) for name, tensor in parts.items())
    assert found.buffers == {}


@pytest.mark.parametrize("shape", [(D,), (D, 1), (1, D)])
def test_shapes_of_vectors(tmp_path: Path, parts: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    """Mean and variance may be columns or rows, of any precision; they become vectors of float32."""
    path = saved({n: t.reshape(shape).double() if n != "factor" else t for n, t in parts.items()}, tmp_path)
    found = read_swag(path, "small")
    assert torch.equal(found.mean, parts["mean"])
    assert torch.equal(found.variance, parts["variance"])


@pytest.mark.parametrize("rank", [5, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_shapes_of_factors(tmp_path: Path, parts: dict[str, Tensor], rank: int, turned: bool) -> None:
    """A factor may be transposed and have more columns, of which the last 5 are used."""
    factor = torch.randn(D, rank)
    found = read_swag(saved(parts | {"factor": factor.T if turned else factor}, tmp_path), "small")
    assert torch.equal(found.factor, factor[:, -5:])
    assert found.factor.is_contiguous()
    assert found.factor.untyped_storage().nbytes() == 4 * D * 5


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        *(
            (part, torch.ones(length), f"swag.pt: {part} has {length} numbers, expected {D}, the weights of a small")
            for part, length in (("mean", D - 1), ("mean", D + 12), ("variance", D - 1), ("variance", D + 12))
        ),
        *(
            ("mean", tensor, f"mean has shape {tuple(tensor.shape)} of")
            for tensor in (torch.ones(D, 2), torch.ones(()), torch.ones(1, 1, D), torch.ones(D).long())
        ),
        *(
            ("factor", torch.ones(shape), f"factor has shape {shape}, expected (19, K) or (K, 19), K at least 5")
            for shape in ((D,), (D - 1, 5), (5, D + 1), (D, 5, 1))
        ),
        *(("factor", torch.ones(rank, D), f"factor has rank {rank}, PTYL's prior needs 5") for rank in (0, 1, 2, 4)),
        ("variance", torch.tensor([1.0] * 18 + [-1e-6]), "variance has negative elements"),
        ("covariance", torch.ones(1), "covariance is unknown"),
    ],
)
def test_impossible_parts(tmp_path: Path, parts: dict[str, Tensor], part: str, tensor: Tensor, words: str) -> None:
    """A wrong length, shape, type or rank, a negative variance and an unknown part are refused by name."""
    assert words in refusal(saved(parts | {part: tensor}, tmp_path))


def test_the_file_of_the_wrong_part_is_named(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    """Of three files the one that holds the wrong part is named."""
    paths = {name: tmp_path / f"{name}.pt" for name in parts}
    for name, tensor in parts.items():
        torch.save(tensor[1:] if name == "variance" else tensor, paths[name])
    assert refusal(paths).startswith(f"{paths['variance']}: variance has 18 numbers")


@pytest.mark.parametrize("part", ["mean", "variance", "factor", "buffers.bn.running_mean"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(
    tmp_path: Path, parts: dict[str, Tensor], buffers: dict[str, Tensor], part: str, number: float
) -> None:
    """NaN and infinity are refused with the name of the part."""
    whole = parts | {f"buffers.{name}": tensor for name, tensor in buffers.items()}
    whole[part].view(-1)[0] = number
    assert f"{part.removeprefix('buffers.')} holds NaN or infinity" in refusal(saved(whole, tmp_path))


def test_missing_parts(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    """A file without one of the three parts is refused."""
    assert "has no variance and no factor" in refusal(saved({"mean": parts["mean"]}, tmp_path))


def test_several_files_are_these_three(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    """Several files must be mean, variance and factor, of one tensor each."""
    path = saved(parts, tmp_path)
    assert "is mean, variance, factor, got mean, variance" in refusal({"mean": path, "variance": path})
    assert "holds a dict, expected one tensor, SWAG's mean" in refusal(dict.fromkeys(parts, path))


def test_buffers_of_another_network(tmp_path: Path, parts: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Unknown, differently shaped or missing buffers are refused; batch counts may be missing."""
    named = {f"buffers.{name}": tensor for name, tensor in buffers.items()}
    assert "buffers.norm has shape (1,), expected no such buffer" in refusal(
        saved(parts | named | {"buffers.norm": torch.ones(1)}, tmp_path)
    )
    assert "running_mean has shape (3,), expected (2,)" in refusal(
        saved(parts | named | {"buffers.bn.running_mean": torch.ones(3)}, tmp_path)
    )
    del named["buffers.bn.num_batches_tracked"]
    assert read_swag(saved(parts | named, tmp_path), "small").buffers.keys() == buffers.keys() - {
        "bn.num_batches_tracked"
    }
    del named["buffers.bn.running_var"]
    assert "buffers.bn.running_var is missing" in refusal(saved(parts | named, tmp_path))


def test_weights_at_the_mean(tmp_path: Path, parts: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Backbone weights are the mean, buffers the file's, the head the pretrained one; no memory is shared."""
    pretrained = dict(Small().state_dict())
    write_swag(tmp_path / "swag.pt", **parts, buffers=buffers)
    posterior = read_swag(tmp_path / "swag.pt", "small")
    state = weights_at_mean(pretrained, posterior, "small")
    assert list(state) == list(pretrained)
    model = Small()
    model.load_state_dict(state)
    placed = torch.cat([p.detach().reshape(-1) for p in split_at_head(model, "fc")[0]])
    assert torch.equal(placed, parts["mean"])
    assert all(torch.equal(state[name], tensor) for name, tensor in buffers.items())
    assert torch.equal(state["fc.weight"], pretrained["fc.weight"])
    state["conv.weight"].fill_(0)
    assert torch.equal(posterior.mean, parts["mean"])
    assert state["conv.weight"].untyped_storage().nbytes() == 4 * 12


def test_without_buffers_the_pretrained_ones_stay(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    """If the file has no buffers, those of the pretrained weights stay."""
    pretrained = dict(Small().state_dict())
    pretrained["bn.running_mean"].fill_(8)
    state = weights_at_mean(pretrained, read_swag(saved(parts, tmp_path), "small"), "small")
    assert torch.equal(state["bn.running_mean"], torch.full((2,), 8.0))


def test_the_image_size_of_a_vit_posterior(tmp_path: Path) -> None:
    """The length of a vit_b_16 mean determines its image size; an impossible length is refused."""
    published = 85_798_656
    one, at_32 = torch.ones(()), published - 192 * 768  # 4 patches in place of 196
    for size, words in ((at_32, "factor has rank 2"), (at_32 + 768, "mean has .*, expected 85,798,656, .* vit_b_16")):
        path = saved({"mean": one.expand(size), "variance": one.expand(size), "factor": one.expand(size, 2)}, tmp_path)
        with pytest.raises(ValueError, match=words):
            read_swag(path, "vit_b_16")


def test_impossible_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another suffix, a missing folder, a folder as target, and missing safetensors are refused."""
    assert check_target(str(tmp_path / "swag.pt")) == tmp_path / "swag.pt"
    assert check_target(tmp_path / "swag.safetensors") == tmp_path / "swag.safetensors"
    (tmp_path / "folder.pt").mkdir()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    cases = {"swag.npz": "got the suffix '.npz'", "none/swag.pt": "is not a folder", "folder.pt": "is a folder"}
    for name, words in (cases | {"swag.safetensors": "pip install safetensors"}).items():
        with pytest.raises(ValueError, match=words):
            check_target(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.pt"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_permissions_of_written_files(tmp_path: Path, suffix: str) -> None:
    """A posterior's file has the permissions of any new file."""
    usual = tmp_path / "usual"
    usual.touch()
    file = write_swag(tmp_path / f"swag{suffix}", torch.zeros(3), torch.ones(3), torch.ones(3, 5), {})
    assert file.stat().st_mode == usual.stat().st_mode
