"""Lazy imports: each part of the library loads only the packages that it needs."""

import subprocess
import sys

import pytest

import deelbo
import deelbo.data

HEAVY = ("torch", "sklearn", "scipy", "pandas", "torchvision", "PIL", "safetensors", "mlxtend")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import deelbo", ""),
        ("import deelbo.limits, deelbo.training.schedule, deelbo.pretrained.registry, deelbo.data.splits", ""),
        ("import deelbo.data as d; d.TASKS['CIFAR-10'], d.crop_size('CIFAR-10'), d.data_folder()", ""),
        ("import bench.config.validation, bench.methods.hypergradient, bench.scheduling.cost", ""),
        ("import deelbo; deelbo.LearnedL2, deelbo.MAP, deelbo.LowRank", "torch"),
        ("import deelbo; deelbo.fit, deelbo.evaluate, deelbo.Checkpoint", "torch"),
        ("import deelbo.pretrained.weights, deelbo.pretrained.swag_fitting, deelbo.pretrained.embedded", "torch"),
    ],
)
def test_packages_that_an_import_loads(statement: str, expected: str) -> None:
    """A name that needs no torch loads none, and all but reading images needs torch alone."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("package", [deelbo, deelbo.data])
def test_every_exported_name_can_be_imported(package: object) -> None:
    """Each name of ``__all__`` is an attribute, and another name is an AttributeError."""
    assert all(getattr(package, name) is not None for name in package.__all__)  # type: ignore[attr-defined]
    assert not hasattr(package, "no_such_name")
