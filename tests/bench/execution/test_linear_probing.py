"""`training.train: head`: trials that train the head alone, by every kind of objective."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench.config.loading import parse_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.execution.objectives import make_objective
from bench.execution.run_trial import TrialContext, make_model, run_trial
from bench.methods.de_elbo import DEELBo
from bench.methods.hypergradient import Hypergradient
from bench.methods.stn import STN
from bench.trials.record import TrialRecord
from deelbo.data import load_task
from deelbo.data.images import Geometry
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.pretrained.embedded import Pretrained
from deelbo.saved_model import SavedModel
from tests.helpers.method_trials import make, waiting
from tests.helpers.tiny import CONTENT, SPEC

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HEAD = replace(SPEC, train="head")
RUN = replace(HEAD, method="de-elbo", stage="run", weight_decay=None, head_weight_decay=None)
LAPLACE = {"every": 0.25, "burn_in": 0.25, "hyper_steps": 2, "hyper_rate": 0.1}
SPECS = {
    "map": replace(HEAD, stage="retrain"),
    "map-learned": replace(HEAD, stage="retrain", weight_decay=None, head_weight_decay=1e-3),
    "de-elbo": RUN,
    "de-elbo-layers": replace(RUN, groups="layer"),
    "laplace": replace(RUN, learner="laplace", options=json.dumps(LAPLACE)),
    "hypergradient": replace(
        RUN, stage="tune", learner="hypergradient", options='{"start": 1e-4, "every": 2, "rate": null}'
    ),
    "maid": replace(RUN, stage="tune", learner="maid", options='{"start": 0.01, "tolerance": 0.1}'),
    "maid-found": replace(RUN, stage="tune", learner="maid", options='{"found": 0.003}'),
    "stn": replace(
        RUN, stage="tune", learner="stn", options='{"start": 1e-4, "every": 2, "rate": null, "spread": 0.1}'
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_head_alone_changes(name: str, pretrained: Pretrained) -> None:
    """Weights and statistics of the backbone stay to the bit, the head's change, and D is the head's."""
    spec, models = SPECS[name], list[SavedModel]()
    start, head = make_model(spec, pretrained, 10, CPU)
    keep = models.append if spec.is_tested else None
    record, series = run_trial(spec, pretrained, TrialContext(CPU, keep=keep))
    assert record.status == "completed", record.error
    assert not [key for key in (*record.state, *series[0]) if "backbone" in key]
    assert record.state["dim_head"] == 32 * 10 + 10
    assert TrialRecord.from_json(record.to_json()) == record
    for model in models:
        trained, before = model.network.state_dict(), start.state_dict()
        changed = {key for key, tensor in trained.items() if not torch.equal(tensor, before[key])}
        assert changed == {f"{head}.weight", f"{head}.bias"}
    assert len(models) == spec.is_tested


def test_a_step_is_that_of_the_head_on_fixed_features(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation, SGD on features that were computed once, in evaluation mode, ends with the same head."""
    monkeypatch.setattr(Geometry, "training", lambda self, pixels, _: self.evaluation(pixels))
    spec, models = replace(SPECS["map"], batch_size=100, steps=3, momentum=0.0, clip_norm=1e9), list[SavedModel]()
    run_trial(spec, pretrained, TrialContext(CPU, keep=models.append))
    split = load_task("mnist-digits").split(spec.n, spec.seed, validation=False)
    model, name = make_model(spec, pretrained, 10, CPU)
    model.eval()
    features: list[torch.Tensor] = []
    head = model.get_submodule(name)
    head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    model(split.transform.evaluation(split.train.inputs))
    optimizer = torch.optim.SGD(head.parameters(), lr=spec.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in head.parameters())
        (F.cross_entropy(head(features[0]), split.train.labels) + spec.head_weight_decay / 2 * penalty).backward()
        optimizer.step()
        cosine.step()
    for ended, expected in zip(models[0].network.get_submodule(name).parameters(), head.parameters(), strict=True):
        assert torch.allclose(ended, expected, rtol=1e-4, atol=1e-6)


def test_kappa_is_that_of_the_head(pretrained: Pretrained) -> None:
    """D/N counts the weights of the head alone."""
    model, head = make_model(RUN, pretrained, 10, CPU)
    objective = make_objective(RUN, model, head, pretrained, 100)
    assert isinstance(objective, DataEmphasizedELBO)
    assert objective.kappa == 330 / 100


def test_map_needs_the_strength_of_what_is_trained(pretrained: Pretrained) -> None:
    for spec, words in ((HEAD, "for head, got"), (SPEC, "for backbone and head, got")):
        spec = replace(spec, weight_decay=None, head_weight_decay=None)
        model, head = make_model(spec, pretrained, 10, CPU)
        with pytest.raises(ValueError, match=words):
            make_objective(spec, model, head, pretrained, 100)


@pytest.mark.parametrize(
    ("kind", "given", "prefix"),
    [
        (Hypergradient, {}, "mean_weight_decay"),
        (STN, {}, "mean_weight_decay"),
        (DEELBo, {"retrain": True}, "weight_decay"),
    ],
)
def test_learned_strengths_are_trained_with(kind: Any, given: dict[str, Any], prefix: str) -> None:
    """A run that learned the head's strength alone is trained again with it, without an alpha."""
    method = make(kind, learning_rates=[0.1], **given)
    (spec,) = waiting(method)
    spec = replace(spec, train="head")
    state = {f"{prefix}_head": 3e-3}
    method.tell(TrialRecord(spec, "completed", {"val_nll": 1.0, "objective": 1.0}, state, {"train": 1.0}, 1.0, 2.0))
    (again,) = waiting(method)
    assert (again.stage, again.train, again.weight_decay, again.head_weight_decay) == ("retrain", "head", None, 3e-3)


ALL = {name: {} for name in ("map-gs", "random", "asha", "hypergradient", "stn", "laplace", "early-stopping", "elbo")}
ALL |= {
    "maid": {},
    "bo": {"tied": True},
    "de-elbo": {"groups": "layer"},
    "deelbo-halving": {},
    "deelbo-free": {},
    "de-elbo-best": {"batchnorm": "running", "closing": "running"},
}


def test_every_method_may_train_the_head() -> None:
    benchmark = parse_benchmark(CONTENT | {"methods": ALL, "training": {"train": "head"}}, "x")
    check(benchmark)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"priors": ["l2-sp", "ptyl"]}, ["priors = ptyl with training.train = head", "take ptyl out of priors"]),
        ({"methods": {"bo": {}}}, ["methods.bo: tied = false", "set tied to true"]),
        ({"methods": {"bo": {"grid": True, "untied": ["l2-sp"]}}}, ["methods.bo: untied = ['l2-sp']"]),
        ({"methods": {"map-gs": {"untied": ["l2-sp"]}}}, ["methods.map-gs: untied = ['l2-sp']", "leave untied out"]),
        ({"methods": {"de-elbo": {"batchnorm": "mean"}}}, ["methods.de-elbo: batchnorm = mean", "leave them out"]),
        ({"methods": {"deelbo-free": {"closing": "draw"}}}, ["methods.deelbo-free: batchnorm = running and closing"]),
        ({"methods": {"de-elbo-best": {}}}, ["methods.de-elbo-best: batchnorm = mean", "set both to running"]),
        ({"training": {"train": "backbone"}}, ["training.train = 'backbone'", "'all' or 'head'"]),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(CONTENT | {"training": {"train": "head"}} | change, "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)
