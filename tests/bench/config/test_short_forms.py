"""Short and long forms of datasets and backbones, and errors in the form of the file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.config.benchmark import Benchmark
from bench.config.loading import load_benchmark, parse_benchmark
from bench.config.sections import BackboneSettings, SWAGFiles
from bench.exceptions import ConfigError
from bench.methods.grid_search import GridSearchSettings

REST: dict[str, Any] = {"name": "a", "priors": ["l2-sp"], "seeds": [1], "methods": {"elbo": {}}}
DATASET: dict[str, Any] = {"datasets": {"CIFAR-10": [100]}}
BACKBONE: dict[str, Any] = {"backbones": {"resnet50": {}}}


def read(*parts: dict[str, Any]) -> Benchmark:
    """Return the benchmark of a file with these keys beside the others."""
    content = dict(REST)
    for part in parts:
        content |= part
    return parse_benchmark(content, "my.yaml")


def refusal(*parts: dict[str, Any]) -> str:
    """Return the one line with which they are refused."""
    with pytest.raises(ConfigError) as caught:
        read(*parts)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix("my.yaml: ")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (
            {"dataset": "CIFAR-10", "n": [100, 1000], "backbone": "resnet50"},
            {"datasets": {"CIFAR-10": [100, 1000]}, "backbones": {"resnet50": {}}},
        ),
        (
            {"dataset": "mnist-digits", "n": [100], "backbone": "digits-resnet", "head": "fc"},
            {"datasets": {"mnist-digits": [100]}, "backbones": {"digits-resnet": {"head": "fc"}}},
        ),
        (
            {"dataset": "mnist-digits", "n": [100], "backbone": "digits-resnet", "head": None},
            {"datasets": {"mnist-digits": [100]}, "backbones": {"digits-resnet": {}}},
        ),
        (
            {"dataset": "CIFAR-10", "n": [100], "backbones": ["resnet50"]},
            {"datasets": {"CIFAR-10": [100]}, "backbones": {"resnet50": {"weights": None, "ptyl": None}}},
        ),
    ],
)
def test_short_and_long_forms_agree(short: dict[str, Any], long: dict[str, Any]) -> None:
    """The short form of one dataset or backbone is the same benchmark as the long form, which is what is stored."""
    assert read(short) == read(long)
    assert read(short).content() == read(long).content()
    assert {"datasets", "backbones"} <= set(read(short).content())


def test_what_is_read_is_left_as_it_is() -> None:
    """Reading the short form does not change the content."""
    content = REST | {"dataset": "CIFAR-10", "n": [100], "backbone": "resnet50", "head": "fc"}
    before = yaml.safe_dump(content)
    parse_benchmark(content, "x")
    assert yaml.safe_dump(content) == before


TWO = {"mean": "m.pt", "variance": "v.pt"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": "CIFAR-10", "n": [100]} | DATASET | BACKBONE, "dataset and datasets are both given: keep one"),
        ({"n": [100]} | DATASET | BACKBONE, "n and datasets are both given: keep one"),
        ({"backbone": "resnet50"} | DATASET | BACKBONE, "backbone and backbones are both given: keep one"),
        ({"head": "fc"} | DATASET | BACKBONE, "head and backbones are both given: keep one"),
        ({"n": [100]} | BACKBONE, "key dataset is missing: add it"),
        ({"dataset": "CIFAR-10"} | BACKBONE, "key n is missing: add it"),
        ({"head": "fc"} | DATASET, "key backbone is missing: add it"),
        (BACKBONE, "key datasets is missing: add it"),
        ({"priors": 3}, "keys datasets and backbones are missing: add them (and 1 more)"),
        (DATASET, "key backbones is missing: add it"),
        (DATASET | {"backbones": ["resnet50", "resnet50"]}, "backbones"),
        (DATASET | {"backbones": []}, "backbones"),
        (DATASET | BACKBONE | {"strength": 1}, "unknown key strength: "),
        (DATASET | BACKBONE | {"structure": 1}, "unknown key structure: "),
        (DATASET | {"backbones": {"resnet50": {"ptyl": TWO}}}, "backbones.resnet50.ptyl"),
        (
            DATASET | {"backbones": {"resnet50": {"ptyl": TWO | {"factor": "q.pt", "rank": 5}}}},
            "backbones.resnet50.ptyl",
        ),
        ({"dataset": "CIFAR-10", "n": [0]} | BACKBONE, "n.0 = 0: "),
        ({"dataset": "CIFAR-10", "n": [100, 100]} | BACKBONE, "n = [100, 100]: must not hold a value twice"),
        ({"dataset": "CIFAR-10", "n": 100} | BACKBONE, "n = 100: must be a list"),
        ({"dataset": "CIFAR-10", "n": None} | BACKBONE, "n = None: must be a list"),
        ({"dataset": ["CIFAR-10"], "n": [100]} | BACKBONE, "dataset = ['CIFAR-10']: must be a name"),
        ({"backbone": 50} | DATASET, "backbone = 50: must be a name"),
        ({"backbone": "resnet50", "head": 3} | DATASET, "head = 3: "),
        ({"datasets": {"CIFAR-10": [100], "Flowers-102": [0]}} | BACKBONE, "datasets.Flowers-102.0 = 0: "),
        ({"datasets": {"CIFAR-10": 100}} | BACKBONE, "datasets.CIFAR-10 = 100: must be a list"),
        ({"datasets": {"CIFAR-10": None}} | BACKBONE, "datasets.CIFAR-10 = None: must be a list"),
        ({"datasets": {}} | BACKBONE, "datasets: must hold at least one value"),
        ({"datasets": ["CIFAR-10"]} | BACKBONE, "datasets = ['CIFAR-10']: "),
        ({"backbones": {}} | DATASET, "backbones: must hold at least one value"),
        ({"backbones": {"resnet50": {"head": 3}}} | DATASET, "backbones.resnet50.head = 3: "),
        ({"backbones": {"resnet50": {"color": 1}}} | DATASET, "unknown key backbones.resnet50.color: "),
        ({"backbones": {"resnet50": "V1"}} | DATASET, "backbones.resnet50 = 'V1': "),
        ({"backbones": "resnet50"} | DATASET, "backbones = 'resnet50': "),
        ({"backbones": {"resnet50": {"ptyl": 3}}} | DATASET, "backbones.resnet50.ptyl = 3: "),
    ],
)
def test_errors_are_in_the_words_people_wrote(given: dict[str, Any], words: str) -> None:
    """Errors name the key of the file, in short (``n``) or long form (``datasets.NAME``)."""
    assert refusal(given).startswith(words)


@pytest.mark.parametrize(
    "given",
    [
        ["resnet50", "vit_b_16"],
        {"resnet50": {}, "vit_b_16": {}},
        {"resnet50": None, "vit_b_16": {"head": None}},
    ],
)
def test_backbones_are_a_list_or_a_mapping(given: Any) -> None:
    """Backbones without settings may be a list, or a mapping with empty values."""
    benchmark = read(DATASET, {"backbones": given})
    assert list(benchmark.backbones.items()) == [("resnet50", BackboneSettings()), ("vit_b_16", BackboneSettings())]


def test_a_backbone_with_nothing_behind_it(tmp_path: Path) -> None:
    """In YAML ``resnet50:`` without a value means the default settings."""
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(REST | DATASET) + "backbones:\n  resnet50:\n  convnext_tiny: {weights: a.pt}\n")
    found = load_benchmark(str(file)).backbones
    assert found == {"resnet50": BackboneSettings(), "convnext_tiny": BackboneSettings(weights="a.pt")}


def test_ptyl_is_a_file_or_three() -> None:
    """PTYL's prior is one file, or one each for mean, variance and factor."""
    files = {"mean": "m.pt", "variance": "v.pt", "factor": "q.pt"}
    benchmark = read(DATASET, {"backbones": {"resnet50": {"ptyl": "swag.pt"}, "vit_b_16": {"ptyl": files}}})
    assert benchmark.backbones["resnet50"].ptyl == "swag.pt"
    assert benchmark.backbones["vit_b_16"].ptyl == SWAGFiles(mean="m.pt", variance="v.pt", factor="q.pt")
    assert benchmark.content()["backbones"] == {"resnet50": {"ptyl": "swag.pt"}, "vit_b_16": {"ptyl": files}}
    assert parse_benchmark(benchmark.content(), "x") == benchmark


def test_an_unknown_key_is_told_what_there_is() -> None:
    """An unknown key is refused with the keys that its section has."""
    top = refusal(DATASET, BACKBONE, {"color": "red"})
    assert {"datasets", "backbones", "dataset", "n", "backbone", "head"} <= set(
        top.rpartition("one of ")[2].split(", ")
    )
    inner = refusal(DATASET, {"backbones": {"resnet50": {"color": 1}}})
    assert inner.endswith("use one of model, weights, ptyl, head, normalization, max_length")


def test_untied_priors_are_named() -> None:
    """``untied`` is a list of priors, empty by default."""
    assert GridSearchSettings().untied == ()
    made = read(DATASET, BACKBONE, {"methods": {"map-gs": {"untied": ["l2-sp", "l2-zero"]}}}).methods["map-gs"]
    assert made.untied == ("l2-sp", "l2-zero")
    assert "methods.map-gs.untied" in refusal(DATASET, BACKBONE, {"methods": {"map-gs": {"untied": ["l1"]}}})
    assert refusal(DATASET, BACKBONE, {"methods": {"map-gs": {"untied": "l2-sp"}}}).startswith("methods.map-gs.untied")
