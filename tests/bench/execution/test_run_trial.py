"""Real trials: digits, a small network, four steps."""

import math
from dataclasses import replace

import pytest
import torch

from bench.execution.objectives import make_objective
from bench.execution.run_trial import TrialContext, make_model, run_trial
from bench.trials.spec import TrialSpec
from deelbo.data import load_task
from deelbo.objectives.elbo import ELBO, DataEmphasizedELBO
from deelbo.objectives.map import MAP
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.checkpoint import Checkpoint
from deelbo.training.clock import PHASES
from tests.helpers.tiny import SPEC

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PTYL = replace(SPEC, prior="ptyl", weight_decay=None, prior_scale=10.0)
DE_ELBO = replace(SPEC, method="de-elbo", stage="run", weight_decay=None, head_weight_decay=None)
ELBO_RUN = replace(DE_ELBO, method="elbo", kappa=1.0)

MAP_SPECS = [
    replace(spec, stage=stage) for spec in (SPEC, replace(SPEC, prior="l2-zero"), PTYL) for stage in ("tune", "retrain")
]
ELBO_SPECS = [replace(spec, prior=prior) for spec in (DE_ELBO, ELBO_RUN) for prior in ("l2-zero", "l2-sp", "ptyl")]


def name(spec: TrialSpec) -> str:
    return f"{spec.method}-{spec.prior}-{spec.stage}"


@pytest.mark.parametrize("spec", MAP_SPECS + ELBO_SPECS, ids=name)
def test_every_kind_of_trial_runs(spec: TrialSpec, pretrained: Pretrained) -> None:
    """A trial of every stage, prior and method completes, and measures only what its stage may see."""
    record, series = run_trial(spec, pretrained, TrialContext(CPU, concurrency=3, attempt=2))
    assert record.status == "completed", record.error
    expected = {"train_nll"}
    expected |= {"val_nll", "val_acc"} if spec.stage == "tune" else {"test_nll", "test_acc", "test_ece", "test_brier"}
    expected |= {"objective", "nll_under_q"} if spec.stage == "run" else set()
    assert set(record.metrics) == expected
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert (record.spec, record.concurrency, record.attempt, record.error) == (spec, 3, 2, None)
    assert [row["step"] for row in series] == [2, 4]
    learned = {"scale_backbone", "scale_head", "sigma"} <= set(record.state)
    assert learned is (spec.stage == "run")


@pytest.mark.parametrize("spec", [SPEC, DE_ELBO], ids=name)
def test_seconds_by_phase_make_up_the_total(spec: TrialSpec, pretrained: Pretrained) -> None:
    """The seconds of all phases add up to the total."""
    load_task("mnist-digits")
    record, _ = run_trial(spec, pretrained, TrialContext(CPU))
    assert set(record.seconds) == {*PHASES, "total"}
    phases = {phase: record.seconds[phase] for phase in PHASES}
    total = record.seconds["total"]
    assert sum(phases.values()) == pytest.approx(total, rel=0.1, abs=0.05)
    assert sum(phases.values()) <= total
    assert record.finished - record.started == pytest.approx(total, rel=0.1, abs=0.05)
    assert phases["train"] > 0
    assert (phases["select"] > 0) is (spec.stage == "run")
    assert (phases["test"] > 0) is (spec.stage == "run")


@pytest.mark.parametrize("spec", [SPEC, PTYL, DE_ELBO], ids=name)
def test_a_trial_repeats_to_the_bit(spec: TrialSpec, pretrained: Pretrained) -> None:
    """The same spec gives the same numbers to the bit, whatever other random numbers are drawn."""
    first, first_series = run_trial(spec, pretrained, TrialContext(CPU))
    torch.manual_seed(99)
    torch.rand(7)
    second, second_series = run_trial(spec, pretrained, TrialContext(CPU))
    assert first.metrics == second.metrics
    assert first.state == second.state
    timeless = [[{**row, "train_seconds": 0} for row in series] for series in (first_series, second_series)]
    assert timeless[0] == timeless[1]


class Killed(BaseException):
    """An exception that no trial can catch."""


@pytest.mark.parametrize("spec", [SPEC, DE_ELBO], ids=name)
def test_a_trial_resumed_from_a_checkpoint(spec: TrialSpec, pretrained: Pretrained) -> None:
    """A resumed trial has the numbers of an undisturbed one to the bit, and its record says what was lost."""
    kept: list[bytes] = []

    def die(data: bytes) -> None:
        kept.append(data)
        if len(kept) == 2:
            raise Killed

    spec = replace(spec, steps=6, series_points=3)
    once, once_series = run_trial(
        spec, pretrained, TrialContext(CPU, checkpoint=Checkpoint(0, kept.append, lambda: None))
    )
    kept.clear()
    with pytest.raises(Killed):
        run_trial(spec, pretrained, TrialContext(CPU, checkpoint=Checkpoint(0, die, lambda: None)))
    checkpoint = Checkpoint(0, kept.append, lambda: kept[-1])
    again, series = run_trial(
        spec, pretrained, TrialContext(CPU, attempt=2, timed=False, lost_seconds=3.5, checkpoint=checkpoint)
    )
    assert (again.status, again.error, again.metrics) == (once.status, None, once.metrics)
    assert [{**row, "train_seconds": 0} for row in series] == [{**row, "train_seconds": 0} for row in once_series]
    before = {"resumed_at_step": 2 if spec.stage == "tune" else 4, "resumed_seconds": checkpoint.resumed_seconds}
    assert again.state == once.state | before
    assert "resumed_at_step" not in once.state
    assert (once.timed, once.lost_seconds, again.timed, again.lost_seconds) == (
        True,
        0,
        False,
        max(3.5 - checkpoint.resumed_seconds, 0),
    )
    phases = sum(again.seconds[phase] for phase in PHASES)
    assert again.finished - again.started < phases <= again.seconds["total"]
    assert type(again).from_json(again.to_json()) == again


def test_a_failed_trial_says_where_it_resumed(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a trial that failed after it was resumed has the step of its checkpoint."""
    kept: list[bytes] = []
    run_trial(DE_ELBO, pretrained, TrialContext(CPU, checkpoint=Checkpoint(0, kept.append, lambda: None)))
    monkeypatch.setattr("deelbo.training.run.TrainingRun.nll_under_posterior", lambda _: 1 / 0)
    checkpoint = Checkpoint(0, kept.append, lambda: kept[0])
    record, _ = run_trial(DE_ELBO, pretrained, TrialContext(CPU, timed=False, lost_seconds=1.0, checkpoint=checkpoint))
    assert record.status == "failed"
    assert record.state == {"resumed_at_step": 2, "resumed_seconds": checkpoint.resumed_seconds}
    assert (record.timed, record.lost_seconds) == (False, 1.0 - checkpoint.resumed_seconds)


def test_a_trial_leaves_the_pretrained_network_alone(pretrained: Pretrained) -> None:
    """A trial does not change the pretrained weights."""
    before = pretrained.fingerprint
    run_trial(DE_ELBO, pretrained, TrialContext(CPU))
    assert pretrained.fingerprint == before


def test_the_seed_matters(pretrained: Pretrained) -> None:
    """Another seed gives other numbers."""
    first, _ = run_trial(SPEC, pretrained, TrialContext(CPU))
    second, _ = run_trial(replace(SPEC, seed=2001), pretrained, TrialContext(CPU))
    assert first.metrics["val_nll"] != second.metrics["val_nll"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"dataset": "atlantis"}, "atlantis"), ({"head": "nose"}, "nose"), ({"n": 101}, "101"), ({"n": 5000}, "5000")],
)
def test_an_error_becomes_a_record(change: dict[str, object], words: str, pretrained: Pretrained) -> None:
    """An error becomes a record of status failed with the traceback."""
    record, series = run_trial(replace(SPEC, **change), pretrained, TrialContext(CPU))  # type: ignore[arg-type]
    assert (record.status, record.metrics, series) == ("failed", {}, [])
    assert record.error is not None
    assert "Traceback" in record.error
    assert words in record.error.splitlines()[-1]
    assert record.seconds["total"] > 0


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, stage="retrain"), DE_ELBO], ids=name)
def test_a_run_that_explodes_is_a_result(spec: TrialSpec, pretrained: Pretrained) -> None:
    """A loss that becomes infinite or NaN gives a record of status diverged, with its seconds."""
    record, _ = run_trial(replace(spec, learning_rate=1e30, clip_norm=1e9, steps=20), pretrained, TrialContext(CPU))
    assert (record.status, record.error) == ("diverged", None)
    assert not all(math.isfinite(value) for value in record.metrics.values())
    assert record.seconds["train"] > 0
    assert type(record).from_json(record.to_json()).status == "diverged"


def objective_of(spec: TrialSpec, pretrained: Pretrained, num_examples: int) -> MAP | ELBO:
    model, head = make_model(spec, pretrained, 10, CPU)
    made = make_objective(spec, model, head, pretrained, num_examples)
    assert isinstance(made, MAP | ELBO)
    return made


@pytest.mark.parametrize(("stage", "train"), [("tune", 80), ("retrain", 100)])
def test_ptyl_turns_lambda_into_alpha(
    stage: str, train: int, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTYL's alpha is 1 / (N lambda), N being the number of images trained on: 80 of 100 in tuning."""
    seen: list[tuple[int, dict[str, float]]] = []

    def spy(groups: object, num_examples: int, strengths: dict[str, float]) -> MAP:
        seen.append((num_examples, strengths))
        return MAP(groups, num_examples, strengths)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.execution.objectives.MAP", spy)
    record, _ = run_trial(replace(PTYL, stage=stage), pretrained, TrialContext(CPU))
    assert record.status == "completed", record.error
    assert seen == [(train, {"backbone": pytest.approx(1 / (train * 10.0)), "head": 0.01})]


def test_map_of_a_network_that_is_frozen_but_for_its_head(pretrained: Pretrained) -> None:
    """There is no backbone to regularize."""
    model, head = make_model(SPEC, pretrained, 10, CPU)
    model.requires_grad_(False).get_submodule(head).requires_grad_()
    assert make_objective(SPEC, model, head, pretrained, 80).weight_decay() == {"head": 0.01}


def test_kappa_is_d_over_n_unless_given(pretrained: Pretrained) -> None:
    """The default kappa is D/N for the DE ELBo, 1 for the ELBo, or the given number."""
    de_elbo = objective_of(DE_ELBO, pretrained, 100)
    assert isinstance(de_elbo, DataEmphasizedELBO)
    assert de_elbo.kappa == pytest.approx(de_elbo.dim / 100)
    assert objective_of(ELBO_RUN, pretrained, 100).kappa == 1.0  # type: ignore[union-attr]
    assert objective_of(replace(DE_ELBO, kappa=12.0), pretrained, 100).kappa == 12.0  # type: ignore[union-attr]


def test_each_prior_starts_where_it_is_centered(pretrained: Pretrained) -> None:
    """L2-zero and L2-SP start at the pretrained weights, PTYL at SWAG's mean; the head depends on the seed."""
    for spec, weights in ((SPEC, pretrained.weights), (PTYL, pretrained.swag_weights)):
        model, head = make_model(spec, pretrained, 10, CPU)
        assert head == "fc"
        for key, value in model.state_dict().items():
            if not key.startswith("fc."):
                assert torch.equal(value, weights[key]), key
        again, _ = make_model(replace(spec, seed=2001), pretrained, 10, CPU)
        assert not torch.equal(model.get_submodule("fc").weight, again.get_submodule("fc").weight)  # type: ignore[arg-type]
