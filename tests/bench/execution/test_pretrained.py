"""The pretrained weights and SWAG files that are read for the selected trials."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config.benchmark import make_methods
from bench.config.loading import parse_benchmark
from bench.config.selection import filter_methods
from bench.exceptions import ConfigError
from bench.execution.pretrained import load_pretrained_backbones
from deelbo.pretrained.embedded import Pretrained

CONTENT = {
    "name": "a",
    "datasets": {"CIFAR-10": [100]},
    "priors": ["l2-sp", "ptyl"],
    "seeds": [1],
    "methods": {"de-elbo": {}},
}
FILES = {"mean": "m.pt", "variance": "v.pt", "factor": "q.pt"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what `load_pretrained_backbones` requests, without reading anything."""
    calls: list[tuple[Any, ...]] = []

    def spy(
        name: str, weights: Any, ptyl: Any, say: Any, image_size: int, head: Any, max_length: int | None = None
    ) -> Pretrained:
        calls.append((name, weights, ptyl, image_size))
        return Pretrained({"w": torch.tensor([float(len(calls))])})

    monkeypatch.setattr("bench.execution.pretrained.load_backbone", spy)
    return calls


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, [("resnet50", "a.pt", "swag.pt", 64), ("vit_b_16", None, {n: Path(f) for n, f in FILES.items()}, 64)]),
        ("prior=l2-sp", [("resnet50", "a.pt", None, 64), ("vit_b_16", None, None, 64)]),
        ("backbone=resnet50", [("resnet50", "a.pt", "swag.pt", 64)]),
        ("backbone=vit_b_16,prior=l2-sp", [("vit_b_16", None, None, 64)]),
    ],
)
def test_only_needed_files_are_read(
    only: str | None, expected: list[tuple[Any, ...]], asked: list[tuple[Any, ...]]
) -> None:
    """Each backbone is read with its own settings, and SWAG files only for trials with PTYL."""
    backbones = {"resnet50": {"weights": "a.pt", "ptyl": "swag.pt"}, "vit_b_16": {"ptyl": FILES}}
    benchmark = parse_benchmark(CONTENT | {"backbones": backbones, "training": {"image_size": 64}}, "x")
    starts = load_pretrained_backbones(benchmark, filter_methods(make_methods(benchmark), only))
    assert asked == expected
    assert list(starts) == [name for name, *_ in expected]


def test_images_are_of_the_tasks_size_unless_said(asked: list[tuple[Any, ...]]) -> None:
    """Without an image size, weights are read for that of the task."""
    benchmark = parse_benchmark(CONTENT | {"backbones": {"vit_b_16": {"ptyl": "swag.pt"}}}, "x")
    load_pretrained_backbones(benchmark, make_methods(benchmark))
    assert asked == [("vit_b_16", None, "swag.pt", 224)]


def test_the_embedded_network_has_its_own(cache: Path, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded network and its SWAG posterior need no file."""
    monkeypatch.setenv("DEELBO_CACHE", str(cache))
    content = CONTENT | {"dataset": "mnist-digits", "n": [100], "backbone": "digits-resnet"}
    del content["datasets"]
    benchmark = parse_benchmark(content, "x")
    said: list[str] = []
    starts = load_pretrained_backbones(benchmark, make_methods(benchmark), said.append)
    assert starts["digits-resnet"].fingerprint == pretrained.fingerprint
    assert starts["digits-resnet"].factor is not None
    assert said == []


@pytest.mark.parametrize("setting", ["weights", "ptyl"])
def test_the_embedded_network_takes_no_files(setting: str) -> None:
    """Files given for the embedded network are refused by their key."""
    content = CONTENT | {"datasets": {"mnist-digits": [100]}, "backbones": {"digits-resnet": {setting: "a.pt"}}}
    benchmark = parse_benchmark(content, "x")
    with pytest.raises(ConfigError, match=rf"^backbones\.digits-resnet: .*leave out `{setting}`"):
        load_pretrained_backbones(benchmark, make_methods(benchmark))


def test_a_local_file_of_weights_is_read(resnet50: Path) -> None:
    """Training starts from the weights of a local file, to the bit."""
    content = CONTENT | {"priors": ["l2-sp"], "backbones": {"resnet50": {"weights": str(resnet50)}}}
    benchmark = parse_benchmark(content, "x")
    starts = load_pretrained_backbones(benchmark, make_methods(benchmark))
    expected = torch.load(resnet50, weights_only=True)
    assert set(starts["resnet50"].weights) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in starts["resnet50"].weights.items())
    assert starts["resnet50"].swag_weights is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"weights": "IMAGENET1K_V9"}, "IMAGENET1K_V1, IMAGENET1K_V2"),
        ({"weights": "WEIGHTS", "ptyl": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"weights": "WEIGHTS", "ptyl": FILES}, "m.pt"),
    ],
)
def test_a_missing_file_is_named(
    settings: dict[str, Any], words: str, resnet50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file of weights or SWAG is refused in one line with the key and the file."""
    monkeypatch.chdir(tmp_path)
    if settings.get("weights") == "WEIGHTS":
        settings = settings | {"weights": str(resnet50)}
    benchmark = parse_benchmark(CONTENT | {"backbones": {"resnet50": settings}}, "x")
    with pytest.raises(ConfigError) as caught:
        load_pretrained_backbones(benchmark, make_methods(benchmark))
    message = str(caught.value)
    assert message.startswith("backbones.resnet50: ")
    assert words in message
    assert len(message.splitlines()) == 1
