"""Cost of trials: their images, counted at the network, and the throughputs that turn them into hours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.cli.main import main
from bench.config.benchmark import make_methods
from bench.config.loading import load_benchmark
from bench.config.sections import Training
from bench.exceptions import ConfigError
from bench.execution import run_trial as executing
from bench.scheduling.cost import Throughput, Work, count_work
from bench.trials.spec import TrialSpec
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
STAGES = {"tune": "map-gs", "retrain": "map-gs", "run": "de-elbo"}


def a_trial(stage: str, n: int, training: dict[str, Any]) -> TrialSpec:
    """A trial of that stage on the digits."""
    overrides = [f"training.{name}={value}" for name, value in training.items()]
    benchmark = load_benchmark("quickstart", [f"n=[{n}]", "seeds=[1]", *overrides])
    (method,) = [method for method in make_methods(benchmark) if method.name == STAGES[stage]]
    return replace(next(iter(method.initial_trials())), stage=stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("n", "training"),
    [
        (100, {"steps": 7, "batch_size": 30, "series_points": 2, "posterior_passes": 3, "predictive_draws": 2}),
        (100, {"steps": 4, "batch_size": 200, "series_points": 20, "posterior_passes": 1}),
        (300, {"steps": 3, "batch_size": 50, "series_points": 20, "posterior_passes": 1}),
        (100, {"steps": 7, "batch_size": 30, "series_points": 2, "posterior_passes": 3, "train": "head"}),
    ],
    ids=["epochs of several steps", "a step an epoch", "less than an epoch", "the head alone"],
)
def test_work_is_what_a_trial_does(
    stage: str, n: int, training: dict[str, Any], pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images counted beforehand are those that a real trial sends through its network, warm-up apart."""
    seen = {True: 0, False: 0}
    make = executing.make_model

    def counting(*arguments: Any) -> tuple[nn.Module, str]:
        model, head = make(*arguments)

        def count(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            seen[module.training] += len(inputs[0])

        model.register_forward_hook(count)
        return model, head

    def warm_up(run: TrainingRun) -> None:
        warm_up_of_run(run)
        seen.update({True: 0, False: 0})

    warm_up_of_run = TrainingRun.warm_up
    monkeypatch.setattr(TrainingRun, "warm_up", warm_up)
    monkeypatch.setattr(executing, "make_model", counting)
    spec = a_trial(stage, n, training)
    record, _ = executing.run_trial(spec, pretrained, executing.TrialContext(CPU))
    assert record.status == "completed", record.error
    expected = count_work(stage, n, 1000, Training(**training))
    assert (seen[True], seen[False]) == (expected.trained, expected.evaluated)


def test_work_of_the_paper_by_hand() -> None:
    """The work of CIFAR-10 at N = 1000 is the protocol's, computed by hand."""
    training = Training()
    steps = {800: 6000 // 6 * 6, 1000: 6000 // 7 * 7}
    assert count_work("tune", 1000, 10_000, training) == Work(steps[800] * 128, 20 * 200)
    assert count_work("retrain", 1000, 10_000, training) == Work(steps[1000] * 128, 10_000)
    assert count_work("run", 1000, 10_000, training) == Work(steps[1000] * 128, 10_000 + 10 * 1000)


def test_hours_of_work() -> None:
    """At one image a second 3,600 images are an hour; three that are only looked at cost what one trained on does."""
    assert Work(3600, 0).hours(1.0) == pytest.approx(1.0)
    assert Work(0, 3 * 3600).hours(1.0) == pytest.approx(1.0)
    assert Work(1800, 5400).hours(2.0) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what `speed --out` writes for the digits network with L2-SP's prior."""
    file = tmp_path_factory.mktemp("speed") / "of" / "digits.json"
    call = ["speed", "--rounds", "1", "--steps", "1", "--batch", "4", "--priors", "l2-sp", "--out", str(file)]
    assert main(call) == 0
    return file


def cpu_of(file: Path) -> str:
    return str(json.loads(file.read_text())["environment"]["cpu"])


def test_a_measured_rate_is_that_of_method_and_prior(measured: Path) -> None:
    """Measured throughputs hold for their kind of method and prior; another backbone has the published one or none."""
    rates, found = Throughput(measured=[measured]), json.loads(measured.read_text())["images_a_second"]
    assert rates.of("digits-resnet", False, "l2-sp") == found["map l2-sp"] > 0
    assert rates.of("digits-resnet", True, "l2-sp") == found["de-elbo l2-sp"] > 0
    assert rates.of("digits-resnet", False, "ptyl") is None
    assert rates.of("resnet50", False, "l2-sp") == 320.0
    assert rates.of("vit_b_16", False, "l2-sp") is None
    there = Training(batch_size=4)
    assert rates.describe("digits-resnet", there, 16).endswith(f"measured on {cpu_of(measured)}")


def test_a_rate_of_another_setting_says_so(measured: Path) -> None:
    """If the throughput was measured at another size, batch or precision than is trained with, both are named."""
    words = Throughput(measured=[measured]).describe("digits-resnet", Training(precision="bf16"), 224)
    assert words.endswith("with size 16 (here 224), batch 4 (here 128), precision float32 (here bf16)")


def test_a_given_rate_is_that_of_all(measured: Path) -> None:
    """A rate that is given counts before measured and published ones, whatever the backbone."""
    rates = Throughput(12.5, [measured])
    assert {rates.of(name, False, "l2-sp") for name in ("digits-resnet", "resnet50", "vit_b_16")} == {12.5}
    assert rates.describe("resnet50", Training(), 224) == "12.5 images a second, as given"


def test_each_backbone_has_a_file(measured: Path, tmp_path: Path) -> None:
    """Several files are of several backbones, each with its own rates."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(measured.read_text()) | {"backbone": "vit_b_16", "images_a_second": RATES}))
    rates = Throughput(measured=[measured, other])
    assert rates.of("vit_b_16", False, "l2-zero") == 7.0
    assert rates.of("digits-resnet", False, "l2-zero") is None
    assert rates.of("digits-resnet", False, "l2-sp") not in (None, 7.0)


@pytest.mark.parametrize("rate", [0.0, -3.0, float("nan"), float("inf")])
def test_a_rate_is_positive(rate: float) -> None:
    """A rate that is not a positive number is refused by its option's name."""
    with pytest.raises(ConfigError, match="--images-per-second must be a positive number"):
        Throughput(rate)


RATES = {"map l2-zero": 7.0}
WHOLE = {"backbone": "resnet50", "environment": {"cpu": "abacus"}, "images_a_second": RATES}
DAMAGED = {
    "missing": None,
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "a number": "3",
    "no keys": "{}",
    "not text": b"\xff\xfe\x00",
    "no backbone": json.dumps({name: value for name, value in WHOLE.items() if name != "backbone"}),
    "no environment": json.dumps({name: value for name, value in WHOLE.items() if name != "environment"}),
    "nothing of the environment": json.dumps(WHOLE | {"environment": None}),
    "no machine": json.dumps(WHOLE | {"environment": {}}),
    "no rates": json.dumps(WHOLE | {"images_a_second": {}}),
    "rates in a list": json.dumps(WHOLE | {"images_a_second": [7.0]}),
    "a rate of nothing": json.dumps(WHOLE | {"images_a_second": {"map l2-sp": None}}),
    "a rate in words": json.dumps(WHOLE | {"images_a_second": {"map l2-sp": "fast\nvery"}}),
    "a rate of zero": json.dumps(WHOLE | {"images_a_second": RATES | {"map l2-sp": 0}}),
    "a rate that is none": json.dumps(WHOLE | {"images_a_second": {"map l2-sp": float("nan")}}),
}


@pytest.mark.parametrize("held", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_measurement(held: str | bytes | None, tmp_path: Path) -> None:
    """A file that `speed` did not write, or that is damaged or missing, is named in one line."""
    file = tmp_path / "speed.json"
    if held is not None:
        file.write_bytes(held if isinstance(held, bytes) else held.encode())
    with pytest.raises(ConfigError) as caught:
        Throughput(measured=[file])
    assert str(caught.value).startswith(f"{file}: not a result of `deelbo-bench speed` (")
    assert len(str(caught.value).splitlines()) == 1
