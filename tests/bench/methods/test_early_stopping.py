"""Early stopping: what it tries, what it retrains, and its result from the command line to the report."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import bench
from bench.config.loading import parse_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.methods.early_stopping import EarlyStopping
from bench.results.configurations import iterate_configurations
from bench.results.edges import find_edges
from bench.results.frame import to_frame
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo.training.schedule import stop_epoch
from tests.helpers.method_trials import make, waiting
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]
NAN = float("nan")


def tuned(spec: TrialSpec, **change: Any) -> TrialRecord:
    """Return a record: the validation NLL is lowest at the second learning rate, after a third of the epochs."""
    nll, share = abs(spec.learning_rate - 0.01), 1 / 3 if spec.learning_rate == 0.01 else 0.75
    state = {"best_epoch": 60 * share, "best_share": share}
    return replace(TrialRecord(spec, "completed", {"val_nll": nll}, state, {"train": 2.0}, 1.0, 2.0), **change)


@pytest.mark.parametrize("lr_scheduler", ["cosine", "constant"])
def test_the_best_run_is_retrained_until_its_best_epoch(lr_scheduler: str) -> None:
    """Without strengths, at each learning rate; then once more, without validation, until the same share of the run."""
    method = make(EarlyStopping, lr_scheduler=lr_scheduler)
    tuning = waiting(method)
    assert [spec.learning_rate for spec in tuning] == [0.1, 0.01, 0.001, 0.0001]
    assert {(spec.weight_decay, spec.head_weight_decay, spec.prior_scale) for spec in tuning} == {(0.0, 0.0, None)}
    fields = {(spec.stage, spec.validation_epoch, spec.lr_scheduler) for spec in tuning}
    assert fields == {("tune", "best", lr_scheduler)}
    for spec in tuning:
        assert method.ask() is None
        method.tell(tuned(spec))
    expected = replace(tuning[1], stage="retrain", validation_epoch="last", stop_after=1 / 3)
    assert waiting(method) == [expected]
    assert expected.is_tested
    assert expected.describe().endswith(" early-stopping retrain lr 0.01 wd 0 stops after 33.3333%")


def test_the_result_is_the_retraining() -> None:
    """Its accuracy is the method's, its cost counts, and the strengths, which nobody chose, are no end of a grid."""
    method = make(EarlyStopping)
    records = [tuned(spec) for spec in waiting(method)]
    for record in records:
        method.tell(record)
    (spec,) = waiting(method)
    records.append(TrialRecord(spec, "completed", {"test_acc": 0.75}, {}, {"train": 1.0}, 1.0, 2.0))
    ((_, tried),) = iterate_configurations(to_frame(records))
    assert not tried.is_sequential
    assert (len(tried), tried.accuracy[0], tried.total_seconds) == (4, 0.75, 4 * 2.0 + 1.0)
    assert find_edges(to_frame(records)) == []


@pytest.mark.parametrize("change", [{"status": "failed", "state": {}}, {"status": "diverged", "state": {}}])
def test_nothing_is_retrained_without_an_epoch(change: dict[str, Any]) -> None:
    method = make(EarlyStopping)
    for spec in waiting(method):
        method.tell(tuned(spec, metrics={"val_nll": NAN}, **change))
    assert waiting(method) == []


def test_ptyl_is_refused() -> None:
    benchmark = parse_benchmark(CONTENT | {"priors": ["l2-sp", "ptyl"], "methods": {"early-stopping": {}}}, "x")
    with pytest.raises(ConfigError, match=r"^methods.early-stopping: .* name it for l2-zero and l2-sp alone"):
        check(benchmark)


@pytest.mark.slow
def test_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    """Each run stops at the epoch of the lowest NLL in the series of the best tuning run, and is in the tables."""
    rates = {"learning_rates": [0.1, 0.01]}
    methods = {"early-stopping": rates, "constant": rates | {"method": "early-stopping", "lr_scheduler": "constant"}}
    training = {"steps": 40, "batch_size": 50, "series_points": 8}
    content = CONTENT | {"methods": methods, "training": training, "resources": {"slots": 1}}
    (tmp_path / "early.yaml").write_text(yaml.safe_dump(content))
    for arguments in (["run", "early.yaml", "--storage", "out"], ["report", "out"]):
        command = [sys.executable, "-m", "bench", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    store = RecordStore(str(tmp_path / "out"))
    records = list(store.records())
    assert len(records) == 6
    for name in methods:
        mine = [record for record in records if record.spec.method == name]
        best = min((record for record in mine if record.spec.stage == "tune"), key=lambda r: r.metrics["val_nll"])
        series = store.series(best.key)
        row = min(series, key=lambda row: row["val_nll"])
        assert (best.metrics["val_nll"], best.state["best_epoch"]) == (row["val_nll"], row["epoch"])
        (retrained,) = (record for record in mine if record.spec.stage == "retrain")
        assert retrained.status == "completed"
        assert retrained.spec.learning_rate == best.spec.learning_rate
        assert retrained.spec.stop_after == row["epoch"] / 40
        last = store.series(retrained.key)[-1]
        assert last["epoch"] == stop_epoch(row["epoch"] / 40, 20)  # two steps each on all of N = 100
        assert {"test_acc", "test_nll"} < set(retrained.metrics)
        assert name == "early-stopping" or {row["learning_rate"] for row in series} == {best.spec.learning_rate}
    ranking = pd.read_csv(next((tmp_path / "out").rglob("ranking.csv")))
    assert set(ranking["method"]) == set(methods)
