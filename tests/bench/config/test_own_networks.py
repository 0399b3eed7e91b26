"""Networks of the user's own in a configuration: which code may run, what is refused, and a run with one of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli.main import main
from bench.config.loading import parse_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.storage.records import RecordStore

SOURCE = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""
BASE = {
    "name": "mine",
    "datasets": {"mnist-digits": [50]},
    "priors": ["l2-sp"],
    "seeds": [1001],
    "methods": {"de-elbo": {"learning_rates": [0.01]}},
    "training": {"steps": 4, "batch_size": 25},
    "resources": {"gpus_per_trial": 0},
}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package below the current folder, which is not on the search path, and return the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    (tmp_path / "lab_nets").mkdir()
    (tmp_path / "lab_nets" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "lab_digits.py").write_text(SOURCE)
    return tmp_path


def refuse(backbones: dict[str, Any], words: list[str], change: dict[str, Any] | None = None) -> None:
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(BASE | {"backbones": backbones} | (change or {}), "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def test_a_configuration_alone_runs_no_code(nets: Path) -> None:
    """A package is not imported unless the caller allows it by name."""
    refuse({"mine": {"model": "lab_nets:build", "weights": "none"}}, ["lab_nets:build", "--allow-import lab_nets"])
    assert "lab_nets" not in sys.modules


@pytest.mark.parametrize(
    ("backbones", "words"),
    [
        ({"mine": {}}, ["backbone = 'mine'", "backbones.mine.model"]),
        ({"mine": {"model": "resnet5000"}}, ["backbones.mine.model = 'resnet5000'", "torchvision:NAME"]),
        ({"resnet18": {"model": "torchvision:resnet34"}}, ["backbones.resnet18", "no name of a built-in network"]),
        ({"a b": {"model": "torchvision:resnet34"}}, ["backbones.a b", "expected letters"]),
        ({"mine": {"model": "timm:resnet10t"}}, ["backbones.mine.weights is missing", "or none"]),
        ({"mine": {"model": "torchvision:resnet34"}}, ["images of 3 channels", "mnist-digits have 1"]),
        ({"mine": {"model": "digits-resnet", "head": "nose"}}, ["backbones.mine: the head 'nose'", "it has fc"]),
        (
            {"mine": {"model": "digits-resnet", "normalization": {"mean": [0.5, 0.5], "std": [1, 1]}}},
            ["backbones.mine.normalization.mean = [0.5, 0.5]", "each of the 1 channels"],
        ),
    ],
)
def test_what_is_refused(nets: Path, backbones: dict[str, Any], words: list[str]) -> None:
    refuse(backbones, words)


def test_a_network_is_tried_on_images_of_the_datasets(nets: Path) -> None:
    """One that takes other images than the dataset's is refused before any trial."""
    for label in ("cat", "dog"):
        (nets / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(nets / "photos" / label / f"{i}.png")
    photos = {"datasets": {"photos": {"folder": "photos", "n": [16]}}, "training": {"image_size": 32}}
    mine = {"model": "lab_digits:build", "weights": "none"}
    benchmark = parse_benchmark(BASE | photos | {"backbones": {"mine": mine}}, "x")
    with pytest.raises(
        ConfigError, match=r"backbones\.mine: lab_digits:build fails on a batch of shape \(2, 3, 32, 32"
    ):
        check(benchmark, allow_import=["lab_digits"])
    other = {"other": {"model": "torchvision:resnet34", "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}}
    assert check(parse_benchmark(BASE | photos | {"backbones": other}, "x")).imported_packages() == []


def test_what_a_network_prints_is_not_in_the_json(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nets / "lab_prints.py").write_text(SOURCE.replace("    return", "    print('layers')\n    return"))
    mine = BASE | {"backbones": {"mine": {"model": "lab_prints:build", "weights": "none"}}}
    (nets / "b.yaml").write_text(json.dumps(mine))
    assert main(["plan", "b.yaml", "--json", "--allow-import", "lab_prints"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["trials"] == 1
    assert "layers" in shown.err


@pytest.mark.slow
def test_a_run_with_an_own_network(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers import it from the current folder; a storage refuses another network under the same name."""
    (nets / "b.yaml").write_text(
        "name: mine\ndatasets: {mnist-digits: [50]}\nbackbones: {mine: {model: 'lab_digits:build', weights: none}}\n"
        "priors: [l2-sp]\nseeds: [1001]\nmethods: {de-elbo: {learning_rates: [0.01]}}\n"
        "training: {steps: 4, batch_size: 25}\nresources: {gpus_per_trial: 0}\n"
    )
    assert main(["run", "b.yaml"]) == 2
    assert "--allow-import lab_digits" in capsys.readouterr().err
    assert main(["run", "b.yaml", "--allow-import", "lab_digits"]) == 0
    (record,) = RecordStore("deelbo-runs/mine").records()
    assert record.spec.backbone == "mine"
    assert record.state["dim_backbone"] == 256 * 8 + 8
    (nets / "lab_digits.py").write_text(SOURCE.replace("256, 8", "256, 9").replace("(8,", "(9,"))
    del sys.modules["lab_digits"]
    assert main(["run", "b.yaml", "--allow-import", "lab_digits"]) == 2
    assert "backbones.mine" in capsys.readouterr().err
