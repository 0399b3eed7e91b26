"""MAID: what it tries, what it retrains, what it refuses, and its result from the command line to the report."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench.config.loading import parse_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.methods.maid import MAID
from bench.results.configurations import iterate_configurations
from bench.results.frame import to_frame
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.method_trials import make, waiting
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]
HEAD = {"training": {"train": "head", "steps": 8, "batch_size": 40}, "resources": {"slots": 1}}


def tuned(spec: TrialSpec, **change: Any) -> TrialRecord:
    """Return a record in which the strength is 0.003; the validation NLL is lowest at the learning rate 0.01."""
    spec = replace(spec, train="head")
    metrics, state = {"val_nll": abs(spec.learning_rate - 0.01)}, {"weight_decay_head": 3e-3}
    return replace(TrialRecord(spec, "completed", metrics, state, {"train": 1.0}, 1.0, 2.0), **change)


def test_the_strength_is_found_once() -> None:
    """The first run finds it, the other learning rates are trained with it, and the best run is retrained."""
    method = make(MAID)
    (first,) = waiting(method)
    assert (first.stage, first.learning_rate, first.learner, first.number) == ("tune", 0.1, "maid", 0)
    assert first.options == '{"start":0.01,"tolerance":0.1}'
    method.tell(tuned(first))
    others = waiting(method)
    assert [(spec.learning_rate, spec.number) for spec in others] == [(0.01, 1), (0.001, 2), (0.0001, 3)]
    assert {spec.options for spec in others} == {'{"found":0.003}'}
    for spec in others:
        assert method.ask() is None
        method.tell(tuned(spec))
    expected = tuned(others[0]).spec
    expected = replace(expected, stage="retrain", learner=None, weight_decay=None, head_weight_decay=3e-3)
    assert waiting(method) == [expected]


def test_the_result_is_the_retraining() -> None:
    """All learning rates are one set, not a search in order; the retraining is the best's, and all seconds count."""
    method, records = make(MAID), list[TrialRecord]()
    while trials := waiting(method):
        for spec in trials:
            change = {} if spec.stage == "tune" else {"metrics": {"test_acc": 0.75}}
            records.append(tuned(spec, **change))
            method.tell(records[-1])
    ((_, tried),) = iterate_configurations(to_frame(records))
    assert not tried.is_sequential
    assert (len(tried), tried.accuracy[0], tried.total_seconds) == (4, 0.75, 5.0)


@pytest.mark.parametrize(("status", "count"), [("diverged", 3), ("failed", 0)])
def test_the_first_run_may_diverge_but_not_fail(status: str, count: int) -> None:
    """The strength does not depend on the learning rate, at which the first run may diverge."""
    method = make(MAID)
    (first,) = waiting(method)
    method.tell(tuned(first, status=status))
    assert len(waiting(method)) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "methods.maid: training.train = all, expected head, as its bounds hold for a convex problem"),
        ({"training": {"train": "head"}, "priors": ["ptyl"]}, "priors = ptyl with training.train = head"),
        ({"methods": {"maid": {"start": 0}}}, "methods.maid.start = 0"),
        ({"methods": {"maid": {"tolerance": 0}}}, "methods.maid.tolerance = 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    """A network whose backbone is trained, and impossible settings, are refused before anything starts."""
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(CONTENT | {"methods": {"maid": {}}} | change, "x"))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    """The strength is found in the first run and trained with in all others, beside the other methods of a probe."""
    methods = {"maid": {"learning_rates": [0.1, 0.01]}, "map-gs": CONTENT["methods"]["map-gs"]}
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(CONTENT | HEAD | {"methods": methods}))
    for arguments in (["run", "probe.yaml", "--storage", "out"], ["report", "out"]):
        command = [sys.executable, "-m", "bench", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    records = [r for r in RecordStore(str(tmp_path / "out")).records() if r.spec.method == "maid"]
    assert sorted(record.spec.stage for record in records) == ["retrain", "tune", "tune"]
    assert all(record.status == "completed" for record in records)
    (first,) = (record for record in records if record.spec.number == 0 and record.spec.stage == "tune")
    assert first.state["certified_steps"] >= 1
    assert first.state["certified_least"] > 0
    assert first.seconds["adapt"] > 0
    assert {record.state["weight_decay_head"] for record in records} == {first.state["weight_decay_head"]}
    work = {record.key: record.state["gradient_equivalents"] for record in records}
    assert work.pop(first.key) > 100
    assert max(work.values()) < 10
    assert "MAID" in next((tmp_path / "out").rglob("*.html")).read_text()
