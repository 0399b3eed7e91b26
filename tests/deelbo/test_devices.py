"""Tests of the check of a device."""

import pytest
import torch

from deelbo.devices import usable_device
from tests.helpers.refusals import refusal_of


def test_devices_that_can_be_used() -> None:
    """The CPU can be used by any of its names, and a device is chosen if none is given."""
    for name in ("cpu", torch.device("cpu")):
        assert usable_device(name) == torch.device("cpu")
    assert usable_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["banana", "", "cuda:", "cpu0", "mps", "meta", "xla", "cuda:99", "cuda:-1", 3.5])
def test_devices_that_cannot_be_used(name: str) -> None:
    """Another word, another kind of device and a GPU that is not there are refused in one line."""
    message = refusal_of(usable_device, name)
    assert str(name) in message
    assert "expected cpu, cuda or cuda:NUMBER" in message
    assert "\n" not in message


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is refused where torch finds none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device cuda is not here, as torch finds 0 GPUs on this machine" in refusal_of(usable_device, "cuda")
    assert usable_device() == torch.device("cpu")


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_a_device_that_does_not_compute(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver raises is described by its first line."""

    def fail(*_: object, **__: object) -> None:
        raise error("CUDA error: all CUDA-capable devices are busy\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "zeros", fail)
    expected = "device cpu cannot be used (CUDA error: all CUDA-capable devices are busy): expected cpu"
    assert expected in refusal_of(usable_device, "cpu")
