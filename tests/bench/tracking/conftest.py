"""Fixtures of the tests of MLflow: an empty storage, a trial, MLflow's runs, and faults of its requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.storage.records import RecordStore
from bench.tracking.client import connect
from bench.trials.spec import TrialSpec

FindRuns = Callable[[], dict[str, Any]]


@pytest.fixture
def spec(tiny: Benchmark) -> TrialSpec:
    """One trial of the DE ELBo."""
    found = make_methods(tiny)[1].ask()
    assert found is not None
    return found


@pytest.fixture
def empty(tmp_path: Path, tiny: Benchmark, fill: Any) -> RecordStore:
    """A storage of the tiny benchmark without records."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "empty")), tiny, [])
    return store


@pytest.fixture
def find_runs(uri: str, tiny: Benchmark) -> FindRuns:
    """Every run in MLflow by its trial's key, the benchmark's as ''; fails where a trial has two."""

    def find() -> dict[str, Any]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(tiny.name)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        keys = [run.data.tags.get("deelbo.key", "") for run in found]
        assert len(set(keys)) == len(keys)
        return dict(zip(keys, found, strict=True))

    return find


@pytest.fixture
def points(uri: str) -> Callable[[str], dict[str, list[tuple[int, float]]]]:
    """The points of every metric of a run, as (step, value)."""

    def find(run: str) -> dict[str, list[tuple[int, float]]]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        names = client.get_run(run).data.metrics
        return {name: sorted((p.step, p.value) for p in client.get_metric_history(run, name)) for name in names}

    return find


class Requests:
    """All requests to MLflow of a test, and hooks that are called with a method's name and first argument.

    Attributes:
        methods: names of the methods that were called.
        before, after: called around each request; what they raise, the caller gets.
    """

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.before: Callable[[str, Any], None] = lambda method, argument: None
        self.after: Callable[[str, Any], None] = lambda method, argument: None

    def fail(self, error: BaseException, at: str | None = None) -> None:
        """Let every request fail, or only those by one method."""

        def refuse(method: str, argument: Any) -> None:
            if at in (None, method):
                raise error

        self.before = refuse

    def count(self, action: Callable[[], object]) -> list[str]:
        """The requests that an action makes."""
        self.methods.clear()
        action()
        return list(self.methods)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Watches and disturbs the requests to MLflow."""
    hooks = Requests()

    class Client:
        def __init__(self, uri: str) -> None:
            self.client = connect(uri)

        def __getattr__(self, method: str) -> Callable[..., Any]:
            def request(*arguments: Any, **named: Any) -> Any:
                hooks.methods.append(method)
                hooks.before(method, arguments[0])
                answer = getattr(self.client, method)(*arguments, **named)
                hooks.after(method, arguments[0])
                return answer

            return request

    monkeypatch.setattr("bench.tracking.runs.connect", Client)
    return hooks
