"""Tests of reading tensors from files, and of refusing everything else in one line."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deelbo.pretrained.tensor_files import read_file, read_tensors
from tests.helpers.refusals import refusal_of


def refusal(path: Path) -> str:
    """Return the one line with which a file is refused, which must have its path."""
    words = refusal_of(read_tensors, path)
    assert str(path) in words
    return words


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.randn(3).half()}


@pytest.mark.parametrize(
    ("suffix", "wrapper"),
    [(".pt", None), (".pt", "state_dict"), (".pt", "model"), (".pth", None), (".safetensors", None)],
)
def test_files_of_tensors(tmp_path: Path, tensors: dict[str, Tensor], suffix: str, wrapper: str | None) -> None:
    """Tensors by name are read bare or, from torch's files, under "state_dict" or "model", beside other things."""
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3}, path)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], tensor) and found[n].dtype == tensor.dtype for n, tensor in tensors.items())


def test_parameters_become_tensors(tmp_path: Path) -> None:
    """Parameters are read as detached tensors."""
    torch.save({"a": nn.Parameter(torch.ones(2))}, tmp_path / "w.pt")
    assert not read_tensors(tmp_path / "w.pt")["a"].requires_grad


def test_a_missing_file(tmp_path: Path) -> None:
    """A missing file, or a folder in its place, is refused."""
    assert "does not exist" in refusal(tmp_path / "w.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.pt")


@pytest.mark.parametrize("name", ["w.npz", "w", "w.pth.tar"])
def test_another_suffix(tmp_path: Path, name: str) -> None:
    """Another suffix than .pt, .pth and .safetensors is refused with that list."""
    (tmp_path / name).write_bytes(b"")
    assert ".pt, .pth, .safetensors" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", [b"", b"hello there", b"\x80\x02", None], ids=["empty", "text", "stub", "cut"])
def test_a_damaged_file(tmp_path: Path, tensors: dict[str, Tensor], suffix: str, damage: bytes | None) -> None:
    """An empty, wrong or truncated file is refused as damaged."""
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    assert "is damaged" in refusal(path)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, "holds argparse.Namespace"),
        (nn.Linear(2, 2), "could run code"),
    ],
    ids=["checkpoint with arguments", "module"],
)
def test_other_objects_are_refused(tmp_path: Path, held: object, words: str) -> None:
    """A training checkpoint with its arguments, and a module, are refused with what to save instead."""
    torch.save(held, tmp_path / "w.pt")
    assert words in refusal(tmp_path / "w.pt")
    assert "torch.save(model.state_dict()" in refusal(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program(tmp_path: Path) -> None:
    """A TorchScript archive is refused, as it is a program."""
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    assert "holds a program" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "holds nothing"),
        ({"a": torch.ones(1), "b": 3}, "'b' is a int"),
        ({1: torch.ones(1)}, "1 is a Tensor"),
        ({"a": torch.ones(1).to_sparse()}, "'a' is sparse_coo, expected a dense tensor"),
        ({"a": torch.ones(1, device="meta")}, "'a' is of the device meta"),
    ],
)
def test_anything_but_tensors_by_name(tmp_path: Path, held: object, words: str) -> None:
    """A file of anything but tensors by name is refused with the type of its content."""
    torch.save(held, tmp_path / "w.pt")
    assert words in refusal(tmp_path / "w.pt")


def test_one_tensor_is_read_by_read_file(tmp_path: Path) -> None:
    """`read_file` returns the tensor of a file with a bare one."""
    torch.save(torch.arange(3), tmp_path / "t.pt")
    found = read_file(tmp_path / "t.pt")
    assert isinstance(found, Tensor)
    assert found.tolist() == [0, 1, 2]


def test_safetensors_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without safetensors such a file is refused with the command that installs it."""
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refusal(tmp_path / "w.safetensors")
