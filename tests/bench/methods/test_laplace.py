"""Laplace as a method of the benchmark: its trials, settings and priors."""

import json

import torch
from torch import nn

from bench.methods.laplace import Laplace
from deelbo.groups import Group
from deelbo.objectives.laplace import LaplaceMAP
from deelbo.priors import Isotropic
from deelbo.training.schedule import Schedule
from tests.helpers.method_trials import make


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
