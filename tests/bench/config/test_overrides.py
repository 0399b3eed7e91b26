"""``--set KEY=VALUE`` changes one key of a configuration before it is checked."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.config.loading import load_benchmark
from bench.exceptions import ConfigError


@pytest.fixture
def file(content: dict[str, Any], tmp_path: Path) -> str:
    """The tiny benchmark as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["training.steps=7"], "training.steps", 7),
        (["name=other"], "name", "other"),
        (["n=[50, 100]"], "datasets", {"mnist-digits": (50, 100)}),
        (["methods.map-gs.weight_decays=[1e-4, 0]"], "methods.map-gs.weight_decays", (0.0001, 0)),
        (["methods.de-elbo.kappa=1e2"], "methods.de-elbo.kappa", 100.0),
        (["methods.de-elbo.kappa=D/N"], "methods.de-elbo.kappa", "D/N"),
        (["training.channels_last=true"], "training.channels_last", True),
        (["training.image_size=null"], "training.image_size", None),
        (["methods.elbo=null"], "methods.elbo.learning_rates", (0.1, 0.01, 0.001, 0.0001)),
        (["resources={slots: 3, cpus_per_trial: 2}"], "resources.cpus_per_trial", 2),
        (["data=/there/is=one"], "data", "/there/is=one"),
        (["data=~/a b"], "data", "~/a b"),
        (["training.steps=7", "training.steps=9"], "training.steps", 9),
        (["training={}", "training.batch_size=9"], "training.batch_size", 9),
        (["order_seed=3"], "order_seed", 3),
    ],
)
def test_a_key_is_set(file: str, overrides: list[str], path: str, value: Any) -> None:
    """A key at any depth, present or not, gets the value, which is read as YAML; the last override wins."""
    found: Any = load_benchmark(file, overrides)
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_keys_on_the_way_are_made(content: dict[str, Any], tmp_path: Path) -> None:
    """A missing key, and missing or empty parents of a key, are created before the checks."""
    del content["training"], content["methods"]["elbo"], content["seeds"]
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(content | {"resources": None}))
    with pytest.raises(ConfigError, match="key seeds is missing"):
        load_benchmark(str(path))
    overrides = ["training.sigma=1e-3", "resources.slots=3", "methods.elbo.learning_rates=[0.5]", "seeds=[1, 2]"]
    benchmark = load_benchmark(str(path), overrides)
    assert (benchmark.training.sigma, benchmark.resources.slots, benchmark.seeds) == (0.001, 3, (1, 2))
    assert benchmark.methods["elbo"].learning_rates == (0.5,)


def test_a_preset_is_changed_for_one_call() -> None:
    """Overrides of a preset do not change the preset."""
    before = load_benchmark("poster")
    changed = load_benchmark("poster", ["backbones.resnet50.ptyl=mine.pt", "datasets.Oxford-IIIT_Pet=[370]"])
    assert changed.backbones["resnet50"].ptyl == "mine.pt"
    assert changed.backbones["resnet50"].weights == "IMAGENET1K_V1"
    assert changed.datasets == {"CIFAR-10": (100, 1000, 10000, 50000), "Oxford-IIIT_Pet": (370,)}
    assert load_benchmark("poster") == before != changed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps", ["--set takes KEY=VALUE", "'training.steps'"]),
        ("", ["--set takes KEY=VALUE"]),
        ("=3", ["--set takes KEY=VALUE", "'=3'"]),
        ("training..steps=3", ["--set takes KEY=VALUE"]),
        (".steps=3", ["--set takes KEY=VALUE"]),
        ("training.steps.=3", ["--set takes KEY=VALUE"]),
        ("training.steps=[1", ["--set training.steps=[1: not a YAML value"]),
        ("training.steps=a: b: c", ["--set training.steps=a: b: c: not a YAML value"]),
        ("data=!!python/object:os.system x", ["not a YAML value"]),
        ("name.first=x", ["--set name.first=x: name has no keys in it"]),
        ("seeds.0=7", ["--set seeds.0=7: seeds has no keys in it", "set it as a whole"]),
        ("methods.elbo.learning_rates.0=7", ["methods.elbo.learning_rates has no keys in it"]),
        ("training.epochs=3", ["unknown key training.epochs", "steps"]),
        ("metods.elbo.kappa=3", ["unknown key metods"]),
        ("training.steps=many", ["training.steps = 'many'", "integer"]),
        ("training.steps=", ["training.steps = None"]),
        ("seeds=1001", ["seeds = 1001", "must be a list"]),
        ("datasets.CIFAR-10=[100]", ["dataset and datasets are both given"]),
    ],
)
def test_a_bad_override_is_one_line(file: str, override: str, words: list[str]) -> None:
    """An override without KEY=VALUE, not YAML, in a list, of an unknown key or a wrong type is refused in one line."""
    with pytest.raises(ConfigError) as caught:
        load_benchmark(file, [override])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


@pytest.mark.parametrize("override", ["name=x", "training.steps=3"])
@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", ""])
def test_a_file_without_keys_takes_none(override: str, text: str, tmp_path: Path) -> None:
    """A file without keys is refused in one line also with an override."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_benchmark(str(path), [override])
    assert len(str(caught.value).splitlines()) == 1
