"""`sync --models`: kept models in MLflow, loaded without a pickle."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.execution.run_trial import TrialContext, run_trial
from bench.storage.models import write_model
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from deelbo.pretrained.embedded import Pretrained
from deelbo.saved_model import model_files
from tests.helpers.tiny import CONTENT

FRESH = """
import json, sys
import mlflow, torch
from torch.nn import functional as F
from deelbo.data import load_task
torch.set_num_threads(1)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(sys.argv[2])
test, nll, hits = load_task("mnist-digits").test, 0.0, 0.0
with torch.no_grad():
    for inputs, labels in zip(test.inputs.split(500), test.labels.split(500)):
        logits = model(inputs)
        nll += float(F.cross_entropy(logits, labels, reduction="sum").double())
        hits += float((logits.argmax(1) == labels).double().sum())
assert "bench" not in sys.modules
print(json.dumps([nll / len(test), hits / len(test)]))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, pretrained: Pretrained) -> Path:
    """A finished storage of one trial of the DE ELBo with its model; its folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    methods = {"de-elbo": {"learning_rates": [0.1]}}
    benchmark: Benchmark = parse_benchmark(deepcopy(CONTENT) | {"methods": methods, "keep": "chosen"}, "x")
    store = RecordStore(str(tmp_path_factory.mktemp("kept") / "storage"))
    (method,) = make_methods(benchmark)
    spec = method.ask()
    assert spec is not None

    def keep(model: Any) -> None:
        write_model(store, spec.key, model_files(model))

    record, series = run_trial(spec, pretrained, TrialContext(torch.device("cpu"), keep=keep))
    torch.set_num_threads(threads)
    assert record.status == "completed", record.error
    store.write_benchmark(benchmark.content())
    store.write(record, series)
    return Path(store.url)


def only_record(folder: Path) -> TrialRecord:
    (record,) = RecordStore(str(folder)).records()
    return record


def logged(uri: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    return list(MlflowClient(uri).search_logged_models(["1"]))


@pytest.mark.slow
def test_a_logged_model_gives_the_record_to_the_bit_in_another_process(
    kept: Path, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow may unpickle nothing. A second call logs nothing; another record of the trial replaces its model."""
    record = only_record(kept)
    for _ in range(2):
        assert main(["sync", str(kept), "--models", "--tracking-uri", uri]) == 0
        assert "1 models of tiny are in MLflow" in capsys.readouterr().out
        (model,) = logged(uri)
    assert (str(model.status), model.tags["deelbo.key"]) == ("READY", record.key)
    world = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", FRESH, uri, f"models:/{model.model_id}"]
    done = subprocess.run(command, env=world, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    nll, accuracy = json.loads(done.stdout.splitlines()[-1])
    assert nll == record.metrics["test_nll"]
    assert accuracy == pytest.approx(record.metrics["test_acc"], abs=1e-12)  # all classes have 100 images

    store = RecordStore(str(kept))
    try:
        store.write(replace(record, finished=record.finished + 1), store.series(record.key))
        assert main(["sync", str(kept), "--models", "--tracking-uri", uri]) == 0
    finally:
        store.write(record, store.series(record.key))
    (other,) = logged(uri)
    assert other.model_id != model.model_id


def test_models_of_the_storages_own_database_are_beside_it(kept: Path, database: Path) -> None:
    """No file of them names the storage's place, so that it can be moved."""
    import mlflow.pytorch

    (kept / "mlflow.db").write_bytes(database.read_bytes())
    assert main(["sync", str(kept), "--models"]) == 0
    (model,) = logged(f"sqlite:///{kept}/mlflow.db")
    assert model.artifact_location.startswith("mlflow-artifacts:/tiny/models/")
    folder = kept / "mlartifacts" / model.artifact_location.removeprefix("mlflow-artifacts:/")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pth", ".pkl") or str(kept).encode() in path.read_bytes()]
    loaded = mlflow.pytorch.load_model(str(folder))
    assert loaded(torch.zeros(3, 1, 16, 16, dtype=torch.uint8)).shape == (3, 10)


def test_a_model_that_cannot_be_exported_is_named(
    kept: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the others are logged; it is never pickled instead."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a graph break\nin two lines")

    monkeypatch.setattr("torch.export.export", fail)
    assert main(["sync", str(kept), "--models", "--tracking-uri", uri]) == 1
    captured = capsys.readouterr()
    assert "0 models of tiny are in MLflow" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith(f"not in MLflow: {only_record(kept).spec.describe()}: its network cannot be exported as a")
    assert "a graph break in two lines" in line
    assert logged(uri) == []


def test_a_storage_without_models_has_none_to_log(
    storage: RecordStore, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", storage.url, "--models", "--tracking-uri", uri]) == 0
    assert "0 models of tiny are in MLflow" in capsys.readouterr().out
