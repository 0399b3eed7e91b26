"""STN: what it tries, what it retrains, and its result from the command line to the report."""

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
from bench.exceptions import ConfigError
from bench.methods.hypergradient import Hypergradient
from bench.methods.stn import STN
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.method_trials import make, waiting
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]


@pytest.mark.parametrize("kind", [STN, Hypergradient])
def test_the_best_run_is_retrained_with_its_mean_strengths(kind: Any) -> None:
    """All learning rates are tuned by the method's own objective; the best is retrained by MAP."""
    method = make(kind)
    tuning = waiting(method)
    assert [spec.learning_rate for spec in tuning] == [0.1, 0.01, 0.001, 0.0001]
    assert {(spec.stage, spec.learner, spec.weight_decay) for spec in tuning} == {("tune", kind.name, None)}

    def record(spec: TrialSpec) -> TrialRecord:
        state = {"mean_weight_decay_backbone": 10 * spec.learning_rate, "mean_weight_decay_head": spec.learning_rate}
        state |= {"weight_decay_backbone": 0.5, "weight_decay_head": 0.5}
        metrics = {"val_nll": abs(spec.learning_rate - 0.01)}
        return TrialRecord(spec, "completed", metrics, state, {"train": 1.0}, 1.0, 2.0)

    for spec in reversed(tuning):
        assert method.ask() is None
        method.tell(record(spec))
    expected = replace(tuning[1], stage="retrain", learner=None, weight_decay=0.1, head_weight_decay=0.01)
    assert waiting(method) == [expected]
    assert expected.is_tested


def test_keys_differ_by_the_settings() -> None:
    """Each setting that determines the result is part of a trial's key; the key of earlier records stays."""
    changes: list[dict[str, Any]] = [{}, {"start": 1e-3}, {"every": 3}, {"rate": 0.1}, {"spread": 0.2}]
    keys = {waiting(make(STN, **change))[0].key for change in changes}
    assert len(keys) == len(changes)
    assert waiting(make(Hypergradient))[0].options == '{"every":10,"rate":null,"start":0.0001}'


@pytest.mark.parametrize("change", [{"spread": 0}, {"every": 0}, {"rate": -1.0}, {"start": 2.0}, {"spreads": 0.1}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"methods.stn.{next(iter(change))}"):
        parse_benchmark(CONTENT | {"methods": {"stn": change}}, "x")


@pytest.mark.slow
def test_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    """Tuning runs and the retraining are recorded, their work counted, and the method is in the tables."""
    content = CONTENT | {"methods": {"stn": {"learning_rates": [0.1, 0.01]}}, "resources": {"slots": 1}}
    (tmp_path / "stn.yaml").write_text(yaml.safe_dump(content | {"training": {"steps": 8, "batch_size": 40}}))
    for arguments in (["run", "stn.yaml", "--storage", "out"], ["report", "out"]):
        command = [sys.executable, "-m", "bench", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    records = list(RecordStore(str(tmp_path / "out")).records())
    assert sorted(record.spec.stage for record in records) == ["retrain", "tune", "tune"]
    for record in records:
        assert record.status == "completed", record.error
        # 8 steps; in tuning also 4 gradients of the 20 validation images, and their evaluation at the end
        work = 8 + 4 * 20 / 40 + 20 / 40 / 3 if record.spec.stage == "tune" else 8
        assert record.state["gradient_equivalents"] == pytest.approx(work)
    assert "STN, linear response" in next((tmp_path / "out").rglob("*.html")).read_text()
