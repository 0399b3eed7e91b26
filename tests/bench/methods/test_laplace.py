"""Laplace as a method of the benchmark: its trials, settings and priors."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.execution.run_trial import TrialContext, run_trial
from bench.methods.laplace import Laplace
from deelbo.groups import Group
from deelbo.objectives.gram import GramLaplaceMAP
from deelbo.objectives.laplace import LaplaceMAP
from deelbo.pretrained.embedded import Pretrained
from deelbo.priors import Isotropic
from deelbo.training.schedule import Schedule
from tests.helpers.method_trials import make, waiting


def test_the_method_is_one_run_a_learning_rate() -> None:
    """Its trials are runs on all images that have its settings as options, from which the objective is made."""
    method = make(Laplace, name="laplace-often", learning_rates=[0.1, 0.01], every=0.2, hyper_steps=3)
    specs = [method.ask(), method.ask()]
    assert method.ask() is None
    assert [(spec.stage, spec.learning_rate, spec.learner) for spec in specs if spec] == [
        ("run", 0.1, "laplace"),
        ("run", 0.01, "laplace"),
    ]
    assert {spec.method for spec in specs if spec} == {"laplace-often"}
    assert method.settings.max_trials("l2-sp") == method.count() == 2
    (spec, _) = specs
    assert spec is not None
    assert spec.options == '{"burn_in":0.5,"every":0.2,"hyper_rate":0.1,"hyper_steps":3}'
    weights = nn.Parameter(torch.randn(6))
    groups = [Group("backbone", (weights,), Isotropic(torch.zeros(6)))]
    objective = Laplace.objective(spec, groups, 100)
    assert isinstance(objective, LaplaceMAP)
    assert {name: getattr(objective, name) for name in json.loads(spec.options)} == json.loads(spec.options)
    assert max(objective.update_steps) < Schedule(0.1, spec.steps, spec.batch_size).total_steps(100)


def test_ptyl_is_refused_before_anything_runs() -> None:
    """PTYL, whose precision is not diagonal, is refused."""
    settings = Laplace.Settings()
    assert settings.find_problem("l2-zero") is settings.find_problem("l2-sp") is None
    assert "ptyl" in str(settings.find_problem("ptyl")).lower()


def test_the_gram_matrix_is_a_variant() -> None:
    """With ``curvature: gram`` trials have that objective, need no package, and other keys; the diagonal's stay."""
    method = make(Laplace, name="laplace-gram", curvature="gram", hyper_steps=4)
    (spec, *others) = waiting(method)
    assert len(others) == 3
    assert (spec.stage, spec.learner) == ("run", "laplace")
    assert spec.options == '{"burn_in":0.5,"curvature":"gram","every":0.1,"hyper_steps":4}'
    assert method.settings.packages == ()
    assert make(Laplace).settings.packages == ("laplace", "curvlinops")
    groups = [Group("backbone", (nn.Parameter(torch.randn(6)),), Isotropic(torch.zeros(6)))]
    objective = Laplace.objective(spec, groups, 100)
    assert isinstance(objective, GramLaplaceMAP)
    assert objective.hyper_steps == 4
    diagonal = Laplace.objective(waiting(make(Laplace))[0], groups, 100)
    assert not isinstance(diagonal, GramLaplaceMAP)


def test_adams_rate_is_refused_with_the_gram_matrix() -> None:
    settings = Laplace.Settings(curvature="gram", hyper_rate=0.1)
    assert "hyper_rate is Adam's" in str(settings.find_problem("l2-sp"))
    assert Laplace.Settings(curvature="gram").find_problem("l2-sp") is None
    assert "ptyl" in str(Laplace.Settings(curvature="gram").find_problem("ptyl")).lower()


@pytest.mark.usefixtures("one_thread")
def test_a_trial_by_the_gram_matrix(pretrained: Pretrained) -> None:
    """A trial learns both strengths and ends with its marginal likelihood; each look is as many gradients as images."""
    spec = replace(waiting(make(Laplace, curvature="gram", every=0.25))[0], steps=8, batch_size=50)
    record, _ = run_trial(spec, pretrained, TrialContext(torch.device("cpu")))
    assert record.status == "completed", record.error
    for name in ("backbone", "head"):
        assert record.state[f"weight_decay_{name}"] != pytest.approx(1 / 100, rel=0.01)
    assert math.isfinite(record.metrics["objective"])
    assert record.state["gradient_equivalents"] == pytest.approx(8 + 3 * 100 / 50)
