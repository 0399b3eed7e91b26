"""Configurations that fit the datasets, backbones and sizes that exist, and those that do not."""

from pathlib import Path
from typing import Any

import pytest

from bench.config.loading import load_benchmark, parse_benchmark, preset_names
from bench.config.validation import check
from bench.exceptions import ConfigError
from tests.helpers.news4 import write_news4


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"transfer"}))
def test_every_preset_can_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets, backbones, heads and sizes of every preset exist and fit together, given the user's own files.

    `transfer` needs a plug-in: `tests/examples/test_efficientnet_lite.py` plans it.
    """
    monkeypatch.chdir(tmp_path)
    write_news4(tmp_path)
    check(load_benchmark(name))


def test_a_plugin_of_this_repository_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset `transfer` says in one line how to install the plug-in of its network."""
    monkeypatch.setattr("deelbo.plugins._entry_points", lambda group: {})
    refuse(load_benchmark("transfer").content(), ["efficientnet_lite0", "pip install ./examples/efficientnet_lite"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": [100, 4010]}, ["n = 4010", "pool of 4000", "n <= 4000"]),
        ({"n": [105]}, ["n = 105", "multiple of the 10 classes", "try 100"]),
        ({"n": [20]}, ["n = 20", "n >= 50"]),
        ({"dataset": "imagenet"}, ["dataset = 'imagenet'", "mnist-digits"]),
        ({"backbone": "resnet5000"}, ["backbone = 'resnet5000'", "digits-resnet"]),
        ({"head": "nose"}, ["'nose'", "fc"]),
        ({"head": "conv1"}, ["'conv1'", "Linear"]),
        ({"resources": {"gpus_per_trial": 2}}, ["gpus_per_trial = 2", "1 at most"]),
        ({"resources": {"gpus_per_trial": 0.5}}, ["gpus_per_trial = 0.5", "timed: true", "1 or 0", "timed: false"]),
    ],
)
def test_what_does_not_fit_is_named(content: dict[str, Any], change: dict[str, Any], words: list[str]) -> None:
    """A value that does not exist or fit is refused in one line with what was expected."""
    refuse(content | change, words)


def refuse(content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(content, "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "timed"), [(0, True), (1, True), (0.5, False), (1, False)], ids=["none", "whole", "shared", "untimed"]
)
def test_a_gpu_is_shared_only_where_nobody_times(content: dict[str, Any], gpus: float, timed: bool) -> None:
    """Trials may share a GPU only if they are not timed."""
    check(parse_benchmark(content | {"resources": {"gpus_per_trial": gpus}, "timed": timed}, "x"))


POSTER = load_benchmark("poster").content()
PRIORS = {"priors": ["l2-sp"]}
TRAINING = {"steps": 6000, "batch_size": 128}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datasets": {"CIFAR-10": [100], "mnist-digits": [100]}}, ["resnet50", "3 channels", "mnist-digits have 1"]),
        ({"backbones": {"digits-resnet": {}}}, ["digits-resnet", "1 channel,", "CIFAR-10 have 3"]),
        (PRIORS | {"backbones": {"vit_b_16": {}}, "training": {"image_size": 100}}, ["vit_b_16", "of 16", "got 100"]),
        (PRIORS | {"backbones": {"vit_b_16": {}}, "training": {"image_size": 8}}, ["vit_b_16", "of 16", "got 8"]),
        (
            {
                "datasets": {"mnist-digits": [100]},
                "backbones": {"digits-resnet": {}},
                "training": TRAINING | {"image_size": 32},
            },
            ["image_size of mnist-digits must be 16", "got 32"],
        ),
        ({"backbones": {"resnet50": {}}}, ["prior ptyl", "backbones.resnet50.ptyl", "take ptyl out of priors"]),
        (
            {"backbones": POSTER["backbones"] | {"convnext_tiny": {"weights": "x.pt"}}},
            ["prior ptyl", "backbones.convnext_tiny.ptyl"],
        ),
        (PRIORS | {"backbones": {"resnet50": {"head": "classifier"}}}, ["'classifier' must be a Linear layer", "fc"]),
        (PRIORS | {"backbones": {"convnext_tiny": {"head": "classifier"}}}, ["'classifier'", "Linear", "Sequential"]),
        ({"datasets": {"CIFAR-10": [100], "Oxford-IIIT_Pet": [371]}}, ["n = 371", "37 classes", "try 370"]),
        ({"datasets": {"Oxford-IIIT_Pet": [3442]}}, ["n = 3442", "pool of 3441"]),
        ({"datasets": {"Flowers-102": [408]}}, ["n = 408", "81 validation examples", "n >= 510"]),
        ({"datasets": {"Imagenette": [100]}}, ["dataset = 'Imagenette'", "CIFAR-10, Fashion-MNIST"]),
        (PRIORS | {"backbones": {"resnet51": {}}}, ["backbone = 'resnet51'", "convnext_tiny", "resnet50"]),
    ],
)
def test_what_does_not_fit_the_poster_is_named(change: dict[str, Any], words: list[str]) -> None:
    """Datasets, backbones and sizes that do not fit together are refused in one line before any file is read."""
    refuse(POSTER | change, words)


@pytest.mark.parametrize(
    "change",
    [
        PRIORS | {"backbones": {"vit_b_16": {}, "resnet50": {}}, "training": {"image_size": 64}},
        {"priors": ["ptyl"], "datasets": {"mnist-digits": [100]}, "backbones": {"digits-resnet": {}}},
        {"datasets": {"mnist-digits": [100]}, "backbones": {"digits-resnet": {}}, "training": {"image_size": 16}},
        PRIORS | {"backbones": {"convnext_tiny": {"head": "classifier.2"}}, "datasets": {"Oxford-IIIT_Pet": [185]}},
    ],
)
def test_what_fits_is_accepted(change: dict[str, Any]) -> None:
    """Smaller images, PTYL of the embedded network without a file, a head by name and the smallest N are accepted."""
    check(parse_benchmark(POSTER | change, "x"))


def test_the_whole_pool_may_be_used(content: dict[str, Any]) -> None:
    """N equal to the pool, and the name of the default head, are accepted."""
    check(parse_benchmark(content | {"n": [50, 4000], "head": "fc"}, "x"))
