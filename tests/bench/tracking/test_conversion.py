"""A trial's numbers in MLflow: few columns, with the method's names, that compare across methods."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError
from bench.tracking.conversion import Content, dataset_inputs, record_mark, run_content, run_name, run_params
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
STATE = {
    "regularizer": 0.5,
    "weight_decay_backbone": 0.02,
    "weight_decay_head": 0.001,
    "dim_backbone": 18296,
    "log_det_backbone": 0.0,
    "trace_precision_backbone": 18296.0,
}
LEARNED = STATE | {"scale_backbone": 0.002, "scale_head": 0.1, "sigma": 0.04, "kappa": 186.26}


def rows(state: dict[str, float], **changing: list[float]) -> list[dict[str, float]]:
    """A series of two rows, as a trial keeps it."""
    made = [
        {"epoch": 5 * i, "step": 10 * i, "train_seconds": 0.1 * i, "learning_rate": 0.1 / i, "train_nll": 2 / i}
        for i in (1, 2)
    ]
    return [row | state | {name: values[i] for name, values in changing.items()} for i, row in enumerate(made)]


def lines(content: Content) -> dict[str, list[tuple[int, float]]]:
    """Points by metric, as (step, value)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, value, _, step in content.metrics:
        found.setdefault(name, []).append((step, value))
    return found


@pytest.fixture
def specs(tiny: Benchmark) -> tuple[TrialSpec, TrialSpec]:
    """One of the grid search, one of the DE ELBo."""
    grid, learned, *_ = (method.ask() for method in make_methods(tiny))
    assert grid is not None
    assert learned is not None
    return grid, learned


def test_strengths_compare_in_one_column(specs: Any, fake: Fake) -> None:
    """Alpha and beta are metrics by one name, given to MAP or learned; lambda, tau and sigma are the learned ones."""
    grid, learned = (
        lines(run_content(fake(spec, state=state), rows(state)))
        for spec, state in zip(specs, (STATE, LEARNED), strict=True)
    )
    for content in (grid, learned):
        assert (content["alpha"][-1], content["beta"][-1]) == ((20, 0.02), (20, 0.001))
    assert (learned["lambda"][-1], learned["tau"][-1], learned["sigma"][-1]) == ((20, 0.002), (20, 0.1), (20, 0.04))
    assert not {"lambda", "tau", "sigma", "kappa"} & set(grid)


def test_what_stays_is_a_line_of_two_points(specs: Any, fake: Fake) -> None:
    """Of a series what changes is there row by row, what stays as it is by both its ends."""
    record = fake(specs[1], state=LEARNED)
    found = lines(run_content(record, rows(LEARNED, sigma=[0.03, 0.04])))
    assert found["sigma"] == [(10, 0.03), (20, 0.04)]
    three = [*rows(LEARNED)[:1], *rows(LEARNED)]
    three[1] = three[1] | {"step": 15}
    found = lines(run_content(record, three))
    assert found["alpha"] == [(10, 0.02), (20, 0.02)]
    assert [step for step, _ in found["train_seconds"]] == [10, 15, 20]


def test_no_chart_of_a_constant(specs: Any, fake: Fake) -> None:
    """A constant of the architecture is a tag; the cosine is nowhere, its start a bar; the clock's phases are apart."""
    content = run_content(fake(specs[1], state=LEARNED), rows(LEARNED))
    found = lines(content)
    assert not [name for name in found if name.startswith(("dim_", "log_det_", "trace_"))]
    assert (content.tags["dim_backbone"], content.tags["log_det_backbone"]) == ("18296", "0")
    assert found["learning_rate"] == [(0, specs[1].learning_rate)]
    aside = {name for name in found if name.startswith("system/")}
    assert aside == {f"system/seconds_{phase}" for phase in ("evaluate", "select", "test")}
    assert {step for name in aside for step, _ in found[name]} == {0}
    assert len(set(found) - aside) < 20


def test_training_seconds_end_with_the_clock(specs: Any, fake: Fake) -> None:
    """The column of training seconds is the clock's own number, not that of the last look, and grows with the steps."""
    found = lines(run_content(fake(specs[0], seconds={"train": 0.25, "total": 1.0}), rows(STATE)))
    assert found["train_seconds"] == [(10, 0.1), (20, 0.25)]


def test_a_last_row_that_is_not_finite(specs: Any, fake: Fake) -> None:
    """A diverged trial's last loss is a tag, its rows before are a line; a final number takes a lost row's place."""
    series = rows(STATE, train_nll=[2.0, math.inf], regularizer=[0.4, math.nan])
    content = run_content(fake(specs[0], "diverged", metrics={"train_nll": math.inf}, state=STATE), series)
    found = lines(content)
    assert found["train_nll"] == [(10, 2.0)]
    assert content.tags["train_nll"] == "inf"
    assert found["regularizer"] == [(10, 0.4), (20, 0.5)]


def test_a_damaged_series_is_named(specs: Any, fake: Fake) -> None:
    """A series without its columns is refused by the trial's key."""
    record = fake(specs[0])
    with pytest.raises(RecordError, match=f"the series of {record.key} is damaged"):
        run_content(record, [{"step": 1.0}])


def test_names_begin_with_what_differs(specs: Any) -> None:
    """A run's name says method and settings first, then the cell, so that a legend that cuts it still tells it."""
    assert run_name(specs[1]) == "de-elbo run lr 0.1 l2-sp n=100 seed=1001 mnist-digits digits-resnet"
    assert run_name(specs[0]).startswith("map-gs tune lr 0.1 wd 0.01 l2-sp n=100")
    stretch = replace(specs[1], since=0.125, until=0.25)
    assert run_name(stretch).startswith("de-elbo run lr 0.1 12.5% to 25% l2-sp n=100")


def test_settings_of_a_method_are_parameters(specs: Any) -> None:
    """Each setting of a method is a parameter of its own; a text that is no mapping stays as it is."""
    own = json.dumps({"sampler": "gp", "startup": 10, "axes": {"alpha": [0.1, 1.0]}, "rate": None})
    params = run_params(replace(specs[0], options=own))
    found = {name: value for name, value in params.items() if name.startswith("options")}
    axes = '{"alpha": [0.1, 1.0]}'
    expected = {"sampler": "gp", "startup": "10", "axes": axes, "rate": "null"}
    assert found == {f"options.{name}": value for name, value in expected.items()}
    for text in ("[1]", "{", "NaN"):
        assert run_params(replace(specs[0], options=text))["options"] == text
    assert not [name for name in run_params(specs[0]) if name.startswith("options")]


def test_a_comparison_shows_in_what_entries_differ(specs: Any) -> None:
    """Every trial names its groups and optimizer, and those of a DE ELBo their share of D/N."""
    layers = replace(specs[1], method="layers", groups="layer", kappa_share=3.0)
    told = [
        {name: run_params(spec).get(name) for name in ("groups", "optimizer", "kappa_share")}
        for spec in (specs[1], layers, specs[0])
    ]
    assert told[0] == {"groups": "backbone+head", "optimizer": "sgd", "kappa_share": "1.0"}
    assert told[1] == {"groups": "layer", "optimizer": "sgd", "kappa_share": "3.0"}
    assert told[2] == {"groups": "backbone+head", "optimizer": "sgd", "kappa_share": None}


def test_what_a_stretch_and_a_hypergradient_leave(specs: Any, fake: Fake) -> None:
    """Mean strengths stand beside alpha and beta; a handover's step and the device's peak memory under system/."""
    state = STATE | {"mean_weight_decay_backbone": 0.03, "mean_weight_decay_head": 0.004, "handed_over_at_step": 20.0}
    state |= {"peak_device_gib": 1.5}
    found = lines(run_content(fake(specs[0], state=state), rows(STATE)))
    assert (found["alpha"][-1], found["alpha_mean"], found["beta_mean"]) == ((20, 0.02), [(20, 0.03)], [(20, 0.004)])
    assert (found["system/handed_over_at_step"], found["system/peak_device_gib"]) == ([(0, 20.0)], [(0, 1.5)])
    assert not [name for name in found if name.startswith(("mean_", "handed"))]


def test_a_mark_is_of_a_record(specs: Any, fake: Fake) -> None:
    """Another result of the same trial has another mark."""
    record = fake(specs[0])
    others = [replace(record, finished=2000.0), replace(record, attempt=2), replace(record, status="failed")]
    assert len({record_mark(one) for one in (record, *others)}) == 4


def test_a_dataset_is_named_by_its_content(specs: Any, fake: Fake) -> None:
    """The input is the dataset by name and hash, with N, split and validation share, if the record names its data."""
    assert dataset_inputs(fake(specs[0])) == []
    for spec, share in zip(specs, ("1/5", "0"), strict=True):
        (found,) = dataset_inputs(fake(spec, versions={"data": "f1a9"}))
        assert (found.dataset.name, found.dataset.digest) == ("mnist-digits", "f1a9")
        tags = {tag.key: tag.value for tag in found.tags}
        assert tags == {"mlflow.data.context": "training", "n": "100", "seed": "1001", "validation": share}
