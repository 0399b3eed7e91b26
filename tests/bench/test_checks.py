"""What is checked before anything starts: the configuration against what exists, the storage against both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.benchmark import Benchmark
from bench.checks import check, check_start, check_storage, claim
from bench.config import ConfigError, load_benchmark, parse_benchmark, preset_names
from bench.execute import start_fingerprint
from bench.records import RecordError, RecordStore
from deelbo.pretraining import Pretrained


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_run(name: str) -> None:
    """Dataset, backbone, head and sizes of every preset exist and fit together."""
    check(load_benchmark(name))


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
    ],
)
def test_what_does_not_fit_is_named(content: dict[str, Any], change: dict[str, Any], words: list[str]) -> None:
    """What the types cannot say is refused in one line: what came, what was expected."""
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(content | change, "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


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
        (PRIORS | {"backbones": {"resnet50": {"head": "classifier"}}}, ["no submodule 'classifier'", "fc"]),
        (PRIORS | {"backbones": {"convnext_tiny": {"head": "classifier"}}}, ["'classifier'", "Linear", "Sequential"]),
        ({"datasets": {"CIFAR-10": [100], "Oxford-IIIT_Pet": [371]}}, ["n = 371", "37 classes", "try 370"]),
        ({"datasets": {"Oxford-IIIT_Pet": [3442]}}, ["n = 3442", "pool of 3441"]),
        ({"datasets": {"Flowers-102": [408]}}, ["n = 408", "81 validation images", "n >= 510"]),
        ({"datasets": {"Imagenette": [100]}}, ["dataset = 'Imagenette'", "CIFAR-10, Flowers-102"]),
        (PRIORS | {"backbones": {"resnet51": {}}}, ["backbone = 'resnet51'", "convnext_tiny", "resnet50"]),
    ],
)
def test_what_does_not_fit_the_poster_is_named(change: dict[str, Any], words: list[str]) -> None:
    """Datasets, backbones and sizes that do not go together are refused in one line, before any file is read."""
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(POSTER | change, "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


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
    """A smaller image for a network that takes any, PTYL of the embedded network without a file, the head by name, and
    the least N, which leaves one validation image a class."""
    check(parse_benchmark(POSTER | change, "x"))


def test_the_whole_pool_may_be_used(content: dict[str, Any]) -> None:
    """N equal to the pool is accepted, and so is the head that the network has."""
    check(parse_benchmark(content | {"n": [50, 4000], "head": "fc"}, "x"))


def test_a_storage_is_claimed_once(tiny: Benchmark, tmp_path: Path) -> None:
    """A new storage becomes the benchmark's; claiming it again keeps it so."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    first = (tmp_path / "a" / "benchmark.json").read_bytes()
    claim(store, tiny)
    assert (tmp_path / "a" / "benchmark.json").read_bytes() == first
    content = store.read_benchmark()
    assert content is not None
    assert parse_benchmark(content, "x") == tiny


def test_a_benchmark_may_be_extended(tiny: Benchmark, content: dict[str, Any], tmp_path: Path) -> None:
    """More seeds, sizes, priors, datasets and backbones, another head and other resources keep the storage, which then
    has the new configuration."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    del content["dataset"], content["n"], content["backbone"]
    content |= {
        "datasets": {"CIFAR-10": [100], "mnist-digits": [100, 1000]},
        "backbones": {"resnet50": {"weights": "here.pt"}, "digits-resnet": {"head": "fc"}},
        "priors": ["l2-sp", "ptyl"],
        "seeds": [1001, 7],
        "max_failures": 0,
        "resources": {"slots": 1},
    }
    more = parse_benchmark(content, "x")
    claim(store, more)
    there = store.read_benchmark()
    assert there is not None
    assert parse_benchmark(there, "x") == more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, ["name was 'tiny' and is now 'other'"]),
        ({"training": {"steps": 8, "batch_size": 50}}, ["training was", "'steps': 4", "'steps': 8"]),
        ({"training": {"steps": 4, "batch_size": 50, "precision": "bf16"}}, ["'precision': 'bf16'"]),
        ({"training": {"steps": 4, "batch_size": 50, "image_size": 16}}, ["'image_size': 16"]),
    ],
)
def test_another_benchmark_is_kept_out(
    tiny: Benchmark, content: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    """A storage that holds another benchmark, or one trained otherwise, is refused with what differs, and stays."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    first = (tmp_path / "a" / "benchmark.json").read_bytes()
    with pytest.raises(RecordError, match="choose another --storage") as refused:
        claim(store, parse_benchmark(content | change, "x"))
    assert all(word in str(refused.value) for word in words)
    assert (tmp_path / "a" / "benchmark.json").read_bytes() == first


def test_a_storage_of_version_0_1_is_continued(tiny: Benchmark, tmp_path: Path) -> None:
    """A storage whose benchmark.json was written in the short form, before precision and image size, is taken up."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    old = {
        "name": "tiny",
        "dataset": "mnist-digits",
        "backbone": "digits-resnet",
        "priors": ["l2-sp"],
        "n": [100],
        "seeds": [1001],
        "methods": {"de-elbo": {"learning_rates": [0.1], "kappa": "D/N"}},
        "training": {
            "steps": 4,
            "batch_size": 50,
            "momentum": 0.9,
            "clip_norm": 1.0,
            "sigma": 0.0001,
            "posterior_passes": 10,
            "series_points": 20,
        },
        "head": None,
    }
    (tmp_path / "a" / "benchmark.json").write_text(json.dumps(old))
    check_storage(store, tiny)


def start(weight: float, *swag: float) -> Pretrained:
    """A network of one weight, and of one number each in SWAG's parts where given."""
    weights = {"w": torch.tensor([weight])}
    if not swag:
        return Pretrained(weights)
    mean, variance, factor = (torch.tensor([value]) for value in swag)
    return Pretrained(weights, {"w": mean}, variance, factor[None])


def test_other_pretrained_weights_are_refused(tiny: Benchmark, play: Any, fake: Any, tmp_path: Path) -> None:
    """A storage whose trials started from other pretrained weights is not continued; records without a word are."""
    store, (one, other, *_) = RecordStore(str(tmp_path / "s")), [record.spec for record in play(tiny)]
    abc, other_weights = start(1.0), start(2.0)
    store.write(fake(one), [])
    check_start(store, {"digits-resnet": abc})
    store.write(fake(other, versions={"pretrained": abc.fingerprint}), [])
    check_start(store, {"digits-resnet": abc})
    words = f"pretrained weights {abc.fingerprint}, here they are {other_weights.fingerprint}"
    with pytest.raises(RecordError, match=words):
        check_start(store, {"digits-resnet": other_weights})


def test_only_the_backbones_at_hand_are_compared(tiny: Benchmark, play: Any, fake: Any, tmp_path: Path) -> None:
    """A trial is compared with the weights of its own backbone; one whose backbone does not run now is passed over."""
    store, (spec, *_) = RecordStore(str(tmp_path / "s")), [record.spec for record in play(tiny)]
    store.write(fake(spec, versions={"pretrained": start(1.0).fingerprint}), [])
    check_start(store, {"resnet50": start(2.0)})
    check_start(store, {"resnet50": start(2.0), "digits-resnet": start(1.0)})
    with pytest.raises(RecordError, match="choose another --storage"):
        check_start(store, {"resnet50": start(1.0), "digits-resnet": start(2.0)})


def test_a_new_posterior_concerns_ptyl_alone(tiny: Benchmark, play: Any, fake: Any, tmp_path: Path) -> None:
    """Trials that did not start from SWAG's posterior go on whatever it is now; those that did are refused."""
    spec = play(tiny)[0].spec
    before, now = start(1.0, 2.0, 3.0, 4.0), start(1.0, 2.0, 3.0, 5.0)
    store = RecordStore(str(tmp_path / "s"))
    store.write(fake(spec, versions={"pretrained": start_fingerprint("l2-sp", before)}), [])
    check_start(store, {"digits-resnet": now})
    ptyl = replace(spec, prior="ptyl")
    store.write(fake(ptyl, versions={"pretrained": start_fingerprint("ptyl", before)}), [])
    check_start(store, {"digits-resnet": before})
    with pytest.raises(RecordError, match=f"here they are {now.fingerprint}"):
        check_start(store, {"digits-resnet": now})


def test_a_part_without_ptyl_is_not_kept_out_by_ptyl(tiny: Benchmark, play: Any, fake: Any, tmp_path: Path) -> None:
    """Where PTYL's files are not read, as no trial of this call needs them, its trials in the storage do no harm."""
    spec = replace(play(tiny)[0].spec, prior="ptyl", backbone="resnet50")
    whole = start(1.0, 2.0, 3.0, 4.0)
    store = RecordStore(str(tmp_path / "s"))
    store.write(fake(spec, versions={"pretrained": start_fingerprint("ptyl", whole)}), [])
    check_start(store, {"resnet50": start(1.0)})
