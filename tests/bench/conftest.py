"""What the tests of the benchmark share: a tiny benchmark, records that nobody ran, a small pretrained network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.config import Benchmark, parse_benchmark
from bench.methods import make_methods
from bench.race import Race
from bench.records import RecordStore
from bench.trials import TrialRecord, TrialSpec
from deelbo import pretraining

FakeRecord = Callable[..., TrialRecord]
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # tests call nobody; read when mlflow is imported
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")


@pytest.fixture
def content() -> dict[str, Any]:
    """A small benchmark as its YAML file would be read."""
    return {
        "name": "tiny",
        "dataset": "mnist-digits",
        "backbone": "digits-resnet",
        "priors": ["l2-sp"],
        "n": [100],
        "seeds": [1001],
        "methods": {
            "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "retrain": "best"},
            "de-elbo": {"learning_rates": [0.1, 0.01]},
            "elbo": {"learning_rates": [0.1, 0.01]},
        },
        "training": {"steps": 4, "batch_size": 50},
        "resources": {"slots": 2},
    }


@pytest.fixture
def tiny(content: dict[str, Any]) -> Benchmark:
    """The same, checked."""
    return parse_benchmark(content, "tiny.yaml")


@pytest.fixture(scope="session")
def fake() -> FakeRecord:
    """Makes the record of a trial that nobody ran; its numbers depend on the spec alone."""

    def make(spec: TrialSpec, status: str = "completed", **given: Any) -> TrialRecord:
        chance = int(hashlib.sha256(spec.key.encode()).hexdigest()[:8], 16) / 2**32
        number = float("nan") if status == "diverged" else 1 + chance
        metrics = {"train_nll": number}
        if spec.stage == "tune":
            metrics |= {"val_nll": number, "val_acc": 0.5 + 0.4 * chance}
        else:
            metrics |= {"test_nll": number, "test_acc": 0.5 + 0.4 * chance}
        if spec.stage == "run":
            metrics |= {"objective": number, "nll_under_q": number}
        values: dict[str, Any] = {
            "metrics": {} if status == "failed" else metrics,
            "state": {"sigma": 0.01, "scale_backbone": 0.5},
            "seconds": {"train": 10 + chance, "evaluate": 1.0, "select": 2.0, "test": 0.5, "total": 14.0},
            "started": 1000.0,
            "finished": 1014.0,
            "hardware": {"device": "cpu", "threads": 1},
            "versions": {"python": "3.11"},
            "error": "Traceback\nRuntimeError: out of luck" if status == "failed" else None,
        }
        return TrialRecord(spec=spec, status=status, **(values | given))

    return make


Judge = Callable[[TrialSpec], TrialRecord]


@pytest.fixture(scope="session")
def play(fake: FakeRecord) -> Callable[..., list[TrialRecord]]:
    """Runs a whole race with fake records; what was asked, as records, in order."""

    def run(benchmark: Benchmark, judge: Judge = fake, known: list[TrialRecord] | None = None) -> list[TrialRecord]:
        race = Race(make_methods(benchmark), known or [], benchmark.order_seed)
        records = []
        while (spec := race.ask()) is not None:
            records.append(judge(spec))
            race.tell(records[-1])
        assert race.finished
        return records

    return run


SERIES = [
    {"epoch": 1.0, "step": 2.0, "train_seconds": 0.1, "train_nll": 2.0, "sigma": 0.01},
    {"epoch": 2.0, "step": 4.0, "train_seconds": 0.2, "train_nll": 1.5, "sigma": 0.02},
]


@pytest.fixture
def fill() -> Callable[[RecordStore, Benchmark, list[TrialRecord]], RecordStore]:
    """Puts a benchmark and its records into a storage, as a run leaves them."""

    def put(store: RecordStore, benchmark: Benchmark, records: list[TrialRecord]) -> RecordStore:
        store.write_benchmark(benchmark.model_dump(mode="json", by_alias=True, exclude_none=True))
        for record in records:
            store.write(record, SERIES)
        return store

    return put


@pytest.fixture
def storage(tmp_path: Path, tiny: Benchmark, play: Any, fill: Any) -> RecordStore:
    """A storage in which the tiny benchmark is finished, with fake records."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "storage")), tiny, play(tiny))
    return store


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the test session's own, with a network in it that was pretrained as briefly as SWAG allows."""
    folder = tmp_path_factory.mktemp("deelbo-cache")
    quick = partial(pretraining.pretrain, pretraining.Recipe(epochs=1, swag_epochs=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEELBO_CACHE", str(folder))
        with pytest.MonkeyPatch.context() as briefly:
            briefly.setattr(pretraining, "pretrain", lambda _: quick())
            pretraining.load_pretrained()
        yield folder


@pytest.fixture(scope="session")
def pretrained(cache: Path) -> pretraining.Pretrained:
    """That network."""
    return pretraining.load_pretrained()
