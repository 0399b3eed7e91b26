"""The benchmark that `finetune` stands for: names, networks, training and resources."""

from pathlib import Path
from typing import Any

import pytest

from bench.config.loading import load_benchmark
from bench.exceptions import ConfigError
from bench.finetune.configuration import FinetuneOptions, check_out, make_configuration


def configuration(gpu: bool = False, on_cluster: bool = False, **given: Any) -> dict[str, Any]:
    values = {"data": "photos", "backbone": "resnet18", "out": Path("model")} | given
    content = make_configuration(FinetuneOptions(**values), gpu, on_cluster)
    load_benchmark(content)  # is valid
    return content


@pytest.mark.parametrize(
    ("backbone", "name", "model"),
    [
        ("resnet18", "resnet18", None),
        ("torchvision:resnet50", "resnet50", None),
        ("torchvision:resnet34", "resnet34", "torchvision:resnet34"),
        ("timm:resnet18", "resnet18-own", "timm:resnet18"),
        ("my_package.nets:build", "build", "my_package.nets:build"),
        ("a-plug-in", "a-plug-in", None),
    ],
)
def test_networks(backbone: str, name: str, model: str | None) -> None:
    """Names of this package and of plug-ins stay; others get a name that is free."""
    settings = configuration(backbone=backbone, head="fc", weights="w.pt")["backbones"][name]
    assert settings == {"head": "fc", "weights": "w.pt"} | ({} if model is None else {"model": model})


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("photos", "photos"),
        ("/a/my photos/", "my-photos"),
        ("x/labels.csv", "labels"),
        ("犬", "data"),
        ("CIFAR-10", "CIFAR-10-own"),
        ("..", "work"),
    ],
)
def test_datasets(data: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are named after their folder or file, as far as that is a name."""
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    ((found, settings),) = configuration(data=data, unreadable="skip")["datasets"].items()
    expected = {"n": ["all"], "test_share": 0.0, "unreadable": "skip"}
    if data != "..":
        assert settings == expected | {"csv" if data.endswith(".csv") else "folder": data}
        assert found == name
    else:
        assert found == "work"


def test_texts() -> None:
    """With columns of texts the CSV file is one of texts."""
    (settings,) = configuration(data="news.csv", text=("title", "body"), label="class")["datasets"].values()
    network = configuration(backbone="transformers:./models/bert", max_length=8)["backbones"]
    assert network == {"bert": {"model": "transformers:./models/bert", "max_length": 8}}
    assert settings == {"csv": "news.csv", "text": ["title", "body"], "label": "class", "n": ["all"], "test_share": 0.0}


def test_training() -> None:
    """A CPU trains less by default; what is given counts. Without pretrained weights the prior is around zero."""
    assert [configuration(gpu)["training"]["steps"] for gpu in (True, False)] == [6000, 600]
    wanted = {"steps": 7, "batch_size": 3, "image_size": 32, "batchnorm": "frozen", "train": "head"}
    assert configuration(**wanted)["training"] == wanted | {"posterior_passes": 1}
    assert configuration()["priors"] == ["l2-sp"]
    assert configuration(weights="none")["priors"] == ["l2-zero"]


def test_resources() -> None:
    """Here one trial at a time takes the GPU, or all CPUs; a cluster runs as many as it can."""
    assert configuration(gpu=True)["resources"] == {"gpus_per_trial": 1, "slots": 1, "cpus_per_trial": 1}
    here = configuration()["resources"]
    assert here["gpus_per_trial"] == 0
    assert here["cpus_per_trial"] >= 1
    assert configuration(gpu=True, on_cluster=True)["resources"] == {"gpus_per_trial": 1}


def test_out(tmp_path: Path) -> None:
    """A model is written to a new or empty folder only."""
    check_out(tmp_path / "new")
    check_out(tmp_path)
    check_out(tmp_path / "new" / "deeper")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made, as nothing can be written to"):
        check_out(tmp_path / "file" / "model")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="exists and is not an empty folder: give another --out"):
            check_out(folder)
