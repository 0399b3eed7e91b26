"""HOAG as a method of the benchmark: its trials, their objective, and what is refused before anything starts."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bench.config.loading import parse_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.execution.run_trial import TrialContext, run_trial
from bench.methods.hoag import HOAG
from bench.trials.record import TrialRecord
from deelbo.groups import Group
from deelbo.objectives.hoag import HOAGMAP
from deelbo.pretrained.embedded import Pretrained
from deelbo.priors import Isotropic
from tests.helpers.method_trials import make, waiting
from tests.helpers.tiny import CONTENT


def test_a_trial_has_the_settings_and_their_objective() -> None:
    """A tuning run a learning rate, with the settings as options, from which the objective is made."""
    method = make(HOAG, learning_rates=[0.1, 0.01], rounds=4, start=1e-3)
    specs = waiting(method)
    assert [(spec.stage, spec.learning_rate, spec.learner) for spec in specs] == [
        ("tune", 0.1, "hoag"),
        ("tune", 0.01, "hoag"),
    ]
    assert method.settings.max_trials("l2-sp") == method.count() == 3
    options = {"start": 1e-3, "rounds": 4, "iterations": 10, "images": 250}
    assert json.loads(specs[0].options) == options
    groups = [Group("backbone", (nn.Parameter(torch.ones(6)),), Isotropic(torch.zeros(6)))]
    objective = HOAG.objective(replace(specs[0], steps=40), groups, 80)
    assert isinstance(objective, HOAGMAP)
    assert objective.weight_decay() == {"backbone": pytest.approx(1e-3)}
    assert {name: getattr(objective, name) for name in ("rounds", "iterations", "images")} == {
        name: options[name] for name in ("rounds", "iterations", "images")
    }
    assert objective.update_steps == {10, 20, 30, 40}
    changes: list[dict[str, Any]] = [{}, {"start": 1e-3}, {"rounds": 3}, {"iterations": 3}, {"images": 3}]
    assert len({waiting(make(HOAG, **change))[0].key for change in changes}) == len(changes)


def test_the_mean_strengths_are_retrained() -> None:
    """The run with the lowest validation NLL is retrained by MAP with the geometric mean of its strengths."""
    method = make(HOAG, learning_rates=[0.1, 0.01])
    for spec in waiting(method):
        state = {"mean_weight_decay_backbone": 3 * spec.learning_rate, "mean_weight_decay_head": spec.learning_rate}
        state |= {"weight_decay_backbone": 0.5, "weight_decay_head": 0.5}
        method.tell(TrialRecord(spec, "completed", {"val_nll": spec.learning_rate}, state, {"train": 1.0}, 1.0, 2.0))
    (spec,) = waiting(method)
    assert (spec.stage, spec.learner, spec.learning_rate) == ("retrain", None, 0.01)
    assert (spec.weight_decay, spec.head_weight_decay) == (0.03, 0.01)


@pytest.mark.parametrize(
    ("settings", "training", "words"),
    [
        ({"rounds": 1}, {}, r"methods\.hoag: rounds = 1, expected at least 2, .* set rounds to 20"),
        (
            {},
            {"steps": 1},
            r"methods\.hoag: training\.steps = 1 has one round, expected at least 2: set training\.steps",
        ),
        ({"rounds": 0}, {}, r"methods\.hoag\.rounds"),
        ({"iterations": 0}, {}, r"methods\.hoag\.iterations"),
        ({"start": 2.0}, {}, r"methods\.hoag\.start"),
    ],
)
def test_one_round_is_refused_before_anything_starts(
    settings: dict[str, Any], training: dict[str, int], words: str
) -> None:
    content = CONTENT | {"methods": {"hoag": settings}, "training": CONTENT["training"] | training}
    with pytest.raises(ConfigError, match=words) as refused:
        check(parse_benchmark(content, "x"))
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp", "ptyl"])
def test_a_trial_runs_with_every_prior(prior: str, pretrained: Pretrained) -> None:
    """A tuning trial of two rounds learns finite strengths in each group, and its work is that of its products."""
    spec = replace(waiting(make(HOAG, prior, rounds=2, iterations=2))[0], steps=4, batch_size=40)
    record, _ = run_trial(spec, pretrained, TrialContext(torch.device("cpu")))
    assert record.status == "completed", record.error
    for name in ("backbone", "head"):
        assert record.state[f"mean_weight_decay_{name}"] != pytest.approx(1e-4, rel=1e-3)
    assert math.isfinite(record.metrics["val_nll"])
    # 4 steps; in each round a gradient of 20 images and three products by 80 images; at the end 20 images evaluated
    assert record.state["gradient_equivalents"] == pytest.approx(4 + 2 * (20 + 3 * 2 * 80) / 40 + 20 / 40 / 3)
