"""The options of the DE ELBo's methods: what reaches a trial, and that those of the published form change no key."""

from typing import Any

import pytest
from pydantic import ValidationError

from bench.execution.objectives import make_objective
from bench.methods.de_elbo import DEELBo
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
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
