"""What `finetune` says of its model: the chosen trial, the learned strengths, the cost of a grid, and the card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.config.loading import load_benchmark
from bench.exceptions import RecordError
from bench.finetune.card import write_card
from bench.finetune.configuration import FinetuneOptions, make_configuration
from bench.finetune.outcome import choose_trial, summarize
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

STATE = {"scale_backbone": 0.002, "scale_head": 0.03, "weight_decay_backbone": 4e-4, "weight_decay_head": 3e-5}
CLASSES = ("cat|dog", "Füchse", "<b>")


@pytest.fixture
def benchmark() -> Benchmark:
    options = FinetuneOptions("/home/me/photos", "torchvision:resnet34", Path("model"), weights="/home/me/w.pt")
    return load_benchmark(make_configuration(options, gpu=False, on_cluster=False)).with_pools({"photos": 60})


@pytest.fixture
def records(benchmark: Benchmark, play: Any, fake: Any) -> list[TrialRecord]:
    """All trials, in which a run's training takes 80 s."""

    def judge(spec: TrialSpec) -> TrialRecord:
        seconds = {"train": 80 * (spec.until - spec.since), "total": 100.0}
        versions = {"python": "3.11", "torch": "2.8", "data": "abcdef"}
        record: TrialRecord = fake(spec, seconds=seconds, state=STATE | {"sigma": 0.01}, versions=versions)
        return record

    found: list[TrialRecord] = play(benchmark, judge)
    return found


def test_summary(benchmark: Benchmark, records: list[TrialRecord]) -> None:
    """Training was a run and a half; a grid of 24 and its best again is 25 runs."""
    made = summarize(benchmark, records, CLASSES)
    assert made.record.spec.until == 1
    assert (made.train_seconds, made.run_seconds) == (pytest.approx(120), pytest.approx(80))
    assert (made.grid_size, made.grid_seconds) == (24, pytest.approx(2000))
    assert made.learning_rates == 4
    learned = "lambda 0.002, tau 0.03: weight decay 0.0004 (backbone), 3e-05 (head); sigma 0.01"
    assert made.describe_learned() == learned


def test_measured_or_not(benchmark: Benchmark, records: list[TrialRecord]) -> None:
    """With a test set there are accuracy, NLL and calibration; without one a line says how to have one."""
    made = replace(summarize(benchmark, records, CLASSES), test_size=1200, calibration=0.0421)
    made.record.metrics.update(test_acc=0.8125, test_nll=0.5)
    assert made.describe_test() == "81.2% of 1,200 test examples (class-balanced), NLL 0.500, calibration error 0.042"
    del made.record.metrics["test_acc"]
    assert made.describe_test() == "not measured, as there is no test set: see --test-share"


def test_the_head_alone(benchmark: Benchmark, records: list[TrialRecord]) -> None:
    """There are no strengths of a backbone that is not trained."""
    made = summarize(benchmark, records, CLASSES)
    state = {name: value for name, value in made.record.state.items() if "backbone" not in name}
    made = replace(made, record=replace(made.record, spec=replace(made.record.spec, train="head"), state=state))
    assert made.describe_learned() == "tau 0.03: weight decay 3e-05 (head); sigma 0.01"
    card = write_card(benchmark, made)
    for text in ("| learned | tau 0.03, sigma 0.01 |", "| weight decay | 3e-05 (head) |"):
        assert text in card
    assert ", the head alone, seed " in card


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_no_model(benchmark: Benchmark, play: Any, fake: Any, status: str) -> None:
    """If no learning rate trains, lower ones are advised."""
    with pytest.raises(RecordError, match="no learning rate gave finite losses: try lower ones"):
        choose_trial(play(benchmark, lambda spec: fake(spec, status)))


def test_card(benchmark: Benchmark, records: list[TrialRecord]) -> None:
    """It has data, network, strengths, results, costs and versions, and no path of this machine."""
    made = replace(summarize(benchmark, records, CLASSES), test_size=1200, calibration=0.04)
    card = write_card(benchmark, made)
    assert "/home" not in card
    for text in (
        "| data | photos: 60 training and 1,200 test examples, hash abcdef |",
        r"| 3 classes | cat\|dog; Füchse; \<b\> |",
        "| network | torchvision:resnet34 |",
        "| initial weights | w.pt, hash unknown |",
        "| learned | lambda 0.002, tau 0.03, sigma 0.01 |",
        "| weight decay | 0.0004 (backbone), 3e-05 (head) |",
        "calibration error 0.040 |",
        "about 33 min 20 s: 24 + 1 runs of 1 min 20 s",
        "| versions | python 3.11, torch 2.8 |",
        'deelbo.load_model(".")',
    ):
        assert text in card
