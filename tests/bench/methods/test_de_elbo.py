"""The options of the DE ELBo's methods: what reaches a trial, and that those of the published form change no key."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from bench.execution.objectives import make_objective
from bench.methods.de_elbo import DEELBo, DEELBoBest
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
from bench.results.configurations import iterate_configurations
from bench.results.frame import to_frame
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo import MAP
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.embedded import Pretrained
from tests.helpers.method_trials import make, waiting

OFF = {"batchnorm": "running", "closing": "running", "noise_until": 1.0, "start_alpha": None}
ON = {"batchnorm": "mean", "closing": "draw", "noise_until": 0.85, "start_alpha": 0.01}


@pytest.mark.parametrize("method", [DEELBo, DEELBoHalving, DEELBoLRFree])
def test_options_off_are_the_published_form(method: Any) -> None:
    """Given their defaults the trials keep their keys; each option alone gives them others."""
    plain = [spec.key for spec in waiting(make(method, "l2-sp"))]
    assert [spec.key for spec in waiting(make(method, "l2-sp", **OFF))] == plain
    for name, value in ON.items():
        assert {spec.key for spec in waiting(make(method, "l2-sp", **{name: value}))}.isdisjoint(plain), name


def test_options_reach_the_trial() -> None:
    spec = waiting(make(DEELBo, "l2-sp", kappa="3 D/N", **ON))[0]
    assert (spec.final_batchnorm, spec.closing_batchnorm, spec.noise_until) == ("mean", "draw", 0.85)
    model, head = build_backbone("digits-resnet", 10)
    objective = make_objective(spec, model, head, Pretrained(model.state_dict()), 100)
    assert objective.weight_decay()["backbone"] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    "option",
    [{"batchnorm": "frozen"}, {"closing": "mean"}, {"noise_until": 1.1}, {"start_alpha": 0}, {"noise_until": "x"}],
)
def test_impossible_options(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DEELBo.Settings(**option)


def learned(spec: TrialSpec, alpha: float = 0.02, **change: Any) -> TrialRecord:
    """Return the record of a run whose objective is lowest at the second learning rate."""
    state = {"weight_decay_backbone": alpha, "weight_decay_head": 0.3}
    objective = abs(spec.learning_rate - 0.01)
    record = TrialRecord(spec, "completed", {"objective": objective, "test_acc": 0.5}, state, {"train": 2.0}, 1.0, 2.0)
    return replace(record, **change)


@pytest.mark.parametrize("prior", ["l2-sp", "ptyl"])
def test_the_best_runs_strengths_are_given_to_map(prior: str) -> None:
    """Once all runs are known MAP is trained with the best one's strengths: its gradient is that of alpha and beta."""
    method = make(DEELBo, prior, retrain=True, kappa="3 D/N", noise_until=0.85)
    runs = waiting(method)
    assert method.stages() == {"run": 4, "retrain": 1}
    for spec in runs:
        assert method.ask() is None
        method.tell(learned(spec))
    (spec,) = waiting(method)
    assert (spec.stage, spec.learning_rate, spec.head_weight_decay, spec.noise_until) == ("retrain", 0.01, 0.3, 1.0)
    if prior == "ptyl":
        assert 1 / (100 * spec.prior_scale) == pytest.approx(0.02)
        return
    assert (spec.weight_decay, spec.prior_scale) == (0.02, None)
    model, head = build_backbone("digits-resnet", 10)
    objective = make_objective(spec, model, head, Pretrained(model.state_dict()), 100)
    assert type(objective) is MAP
    assert objective.weight_decay() == {"backbone": 0.02, "head": 0.3}


@pytest.mark.parametrize("change", [{"status": "failed"}, {"state": {}}, {"alpha": 0.0}, {"alpha": float("inf")}])
def test_nothing_is_retrained_without_strengths(change: dict[str, Any]) -> None:
    method = make(DEELBo, retrain=True, learning_rates=[0.01])
    (spec,) = waiting(method)
    method.tell(learned(spec, **change))
    assert waiting(method) == []


def test_the_retrained_run_is_what_is_tested() -> None:
    """The result of the method is the retraining's accuracy, and its cost counts; without it there is none."""
    method = make(DEELBo, retrain=True)
    records = [learned(spec) for spec in waiting(method)]
    for record in records:
        method.tell(record)
    (spec,) = waiting(method)
    retrained = TrialRecord(spec, "completed", {"test_acc": 0.75}, {}, {"train": 5.0}, 1.0, 2.0)
    ((_, tried),) = iterate_configurations(to_frame([*records, retrained]))
    assert (tried.accuracy[0], tried.total_seconds, len(tried)) == (0.75, 4 * 2.0 + 5.0, 4)
    ((_, tried),) = iterate_configurations(to_frame(records))
    assert not tried.has_test_accuracy.any()


def test_layers_are_not_retrained() -> None:
    assert "leave out one" in DEELBo.Settings(groups="layer", retrain=True).find_problem("l2-sp")


def test_the_best_is_the_method_with_other_defaults() -> None:
    """Given the same options, both ask for the same training; each option can be set back."""
    options = {"kappa": "10 D/N", "batchnorm": "mean", "closing": "draw", "noise_until": 0.85, "start_alpha": 0.01}
    best, same = waiting(make(DEELBoBest)), waiting(make(DEELBo, **options))
    assert [replace(spec, method="de-elbo") for spec in best] == same
    published = {"kappa": "D/N", "batchnorm": "running", "closing": "running", "noise_until": 1, "start_alpha": None}
    back, plain = waiting(make(DEELBoBest, **published)), waiting(make(DEELBo))
    assert [replace(spec, method="de-elbo") for spec in back] == plain
