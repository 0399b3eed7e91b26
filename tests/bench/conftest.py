"""Fixtures of the benchmark's tests: a tiny benchmark, fake records, a small pretrained network."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pandas as pd
import pytest
import torch

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.config.validation import _try_network
from bench.methods import REGISTRY
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo import plugins as entry_points
from deelbo.data.registry import DATASETS, _load_once
from deelbo.pretrained import embedded as pretraining
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.registry import NETWORKS
from tests.helpers.hostile import fuzz, garbled, mutated, tripwire  # noqa: F401 - fixtures
from tests.helpers.plugins import write_backbone, write_dataset, write_method
from tests.helpers.tiny import CONTENT

if TYPE_CHECKING:
    from tests.helpers.object_store import ObjectStore

FakeRecord = Callable[..., TrialRecord]
Publish = Callable[..., tuple[Path, Path]]
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # tests call nobody; read when mlflow is imported
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """An S3 server on loopback with an empty bucket."""
    pytest.importorskip("moto", reason="needs `pip install 'deelbo[test]'`: an S3 on loopback")
    from tests.helpers.object_store import ObjectStore  # seconds, which only these tests should wait

    server = ObjectStore().listen()
    server.make()
    yield server
    server.hang_up()


@pytest.fixture
def s3(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The same server, to which s3:// URLs lead during a test; failed requests are not repeated."""
    for name, value in (s3_server.environment | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of tests before, with other addresses and keys
    return s3_server


@pytest.fixture
def content() -> dict[str, Any]:
    """A small benchmark as its YAML file would be read."""
    return deepcopy(CONTENT)


@pytest.fixture
def tiny(content: dict[str, Any]) -> Benchmark:
    """The small benchmark, checked."""
    return parse_benchmark(content, "tiny.yaml")


@pytest.fixture(scope="session")
def fake() -> FakeRecord:
    """Make the record of a trial that nobody ran; its numbers depend on the spec only."""

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
    """Run a whole benchmark with fake records, and return them in the order of their trials."""

    def run(benchmark: Benchmark, judge: Judge = fake, known: list[TrialRecord] | None = None) -> list[TrialRecord]:
        race = TrialQueue(make_methods(benchmark), known or [], benchmark.order_seed)
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
    """Write a benchmark and its records to a storage, as a run does."""

    def put(store: RecordStore, benchmark: Benchmark, records: list[TrialRecord]) -> RecordStore:
        store.write_benchmark(benchmark.content())
        for record in records:
            store.write(record, SERIES)
        return store

    return put


@pytest.fixture
def storage(tmp_path: Path, tiny: Benchmark, play: Any, fill: Any) -> RecordStore:
    """A storage in which the tiny benchmark is finished, with fake records."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "storage")), tiny, play(tiny))
    return store


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Write a pair of files as the authors publish them: L2-SP, four configurations per cell, the best first."""

    def write(
        dataset: str = "CIFAR-10", cells: Any = ((100, 1001),), retrained: int = 4, **first: Any
    ) -> tuple[Path, Path]:
        """Write the files; ``retrained`` configurations per cell are retrained, and ``first`` changes the first row."""
        tuned, again = list[dict[str, Any]](), list[dict[str, Any]]()
        for n, seed in cells:
            for i, (rate, tau) in enumerate([(0.1, 0.01), (0.1, 0.001), (0.01, 0.01), (0.01, 0.001)]):
                name = f"l2-sp_lr_0={rate}_n={n}_random_state={seed}_tau={tau}"
                row = {"method": "l2-sp", "model_name": name, "n": n, "random_state": seed}
                tuned.append(row | {"runtime": 100.0 + i, "val_acc": 0.8, "val_nll": 0.5 + i})
                if i < retrained:
                    again.append(row | {"runtime": 50.0, "test_acc": 0.8 - i / 10, "test_nll": 0.5})
        tuned[0] |= first
        paths = tmp_path / f"tuned_{dataset}.csv", tmp_path / f"retrained_{dataset}.csv"
        metrics = ["test_acc", "test_nll"]
        pd.DataFrame(tuned).to_csv(paths[0], index=False)
        pd.DataFrame(again, columns=[*list(tuned[0])[:5], *metrics]).to_csv(paths[1], index=False)
        return paths

    return write


@pytest.fixture
def sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the lines of figures to their files instead of rendering them, which takes a second each."""

    def save(figure: Any, folder: Path, name: str) -> list[Path]:
        lines = [[line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes]
        paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
        for path in paths:
            path.write_text(json.dumps(lines))
        return paths

    monkeypatch.setattr("bench.report.build.save_figure", save)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with empty tables, to be copied, as making them takes seconds."""
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(database: Path, tmp_path: Path) -> str:
    """An empty MLflow database for one test."""
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the search path with the plug-ins of the guides: ``rows``, ``two-layers``, ``rule-of-thumb``."""
    folder = tmp_path / "plugins"
    for write in (write_dataset, write_backbone, write_method):
        write(folder)
    monkeypatch.syspath_prepend(str(folder))
    for registry, attribute in product((DATASETS, NETWORKS, REGISTRY), ("_loaded", "_failures")):
        monkeypatch.setattr(registry, attribute, {})

    def forget() -> None:
        for cached in (entry_points._entry_points, _load_once, _try_network):
            cached.cache_clear()
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]

    forget()
    yield folder
    forget()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the test session, with a briefly pretrained network."""
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
    """The briefly pretrained network."""
    return pretraining.load_pretrained()


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of random weights of ResNet-50 as torchvision's are: 100 MB, deleted after the session."""
    file = tmp_path_factory.mktemp("weights") / "resnet50.pt"
    torch.save(build_backbone("resnet50", 1000)[0].state_dict(), file)
    yield file
    file.unlink()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run with one torch thread, so that the processes of several tests do not compete."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
