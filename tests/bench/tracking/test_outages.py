"""An MLflow server that is killed, hangs, forgets or refuses delays no trial, and has everything in the end."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.tracking.mirror import MLflowMirror
from bench.tracking.sync import sync
from bench.tracking.tracker import MLflowTracker
from bench.trials.record import TrialRecord
from tests.faults.processes import until
from tests.faults.servers import Server
from tests.helpers.http_server import serving

Fake = Callable[..., TrialRecord]
SERIES = [{"epoch": 1.0, "step": 2.0, "train_seconds": 0.1, "train_nll": 2.0, "sigma": 0.01}]
START = 120.0


@pytest.fixture(scope="module")
def server(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "mlflow.db", database) as made:
        yield made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that hangs is given up after a second, as a user may set it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def view(uri: str, benchmark: Benchmark, store: RecordStore) -> dict[str, Any]:
    """Return all that can be seen of a storage's runs, by the trial's key, the benchmark's as ''."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(benchmark.name)
    assert experiment is not None
    words = f"tags.`deelbo.storage` = '{store.url}'"
    found = client.search_runs([experiment.experiment_id], words, max_results=1000)
    keys = [run.data.tags.get("deelbo.key", "") for run in found]
    assert len(set(keys)) == len(keys)
    parent = found[keys.index("")].info.run_id
    seen: dict[str, Any] = {}
    for key, run in zip(keys, found, strict=True):
        history = {
            name: sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        own = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        assert run.data.tags.get("mlflow.parentRunId", parent) == parent
        seen[key] = (run.info.status, run.info.end_time, run.data.params, own, history)
    return seen


class Follower:
    """A run of fake records that a tracker follows; measures the slowest callback."""

    def __init__(self, benchmark: Benchmark, store: RecordStore, tracker: MLflowTracker, fake: Fake) -> None:
        self.queue, self.store, self.tracker, self.fake = TrialQueue(make_methods(benchmark)), store, tracker, fake
        self.slowest = 0.0
        self.timed(tracker.on_run_start, self.queue, 2)

    def timed(self, call: Callable[..., None], *arguments: Any) -> None:
        since = time.perf_counter()
        call(*arguments)
        self.slowest = max(self.slowest, time.perf_counter() - since)

    def run(self, trials: int | None = None) -> None:
        """Run so many trials, or all that are left."""
        while trials != 0 and (spec := self.queue.ask()) is not None:
            self.timed(self.tracker.on_trial_start, spec)
            record = self.fake(spec)
            self.store.write(record, SERIES)
            self.queue.tell(record)
            self.timed(self.tracker.on_trial_end, record)
            trials = None if trials is None else trials - 1

    def sent(self) -> None:
        """Wait until MLflow has all records."""
        until(lambda: not self.tracker.num_missing, "MLflow has all records", START)


@pytest.fixture
def follow(empty: RecordStore, tiny: Benchmark, fake: Fake) -> Callable[..., Follower]:
    def begin(uri: str, **seconds: float) -> Follower:
        options = {"interval_seconds": 0.1, "grace_seconds": START} | seconds
        return Follower(tiny, empty, MLflowTracker(MLflowMirror(uri, tiny, empty), **options), fake)

    return begin


@pytest.fixture
def complete(empty: RecordStore, tiny: Benchmark, uri: str) -> Callable[[str], None]:
    """Asserts that MLflow holds just what `sync` makes of the records in an MLflow of its own."""

    def check(found: str) -> None:
        assert sync(empty, tiny, uri) == 9
        assert view(found, tiny, empty) == view(uri, tiny, empty)

    return check


@pytest.mark.slow
def test_a_server_that_is_killed(server: Server, follow: Any, complete: Any) -> None:
    """Killed in the middle of a run and started again, a server ends with everything once; no call waits."""
    follower = follow(server.uri)
    follower.run(3)
    follower.sent()
    follower.run(1)
    server.kill()
    follower.run()
    server.start(wait=False)
    assert follower.tracker.stop("FINISHED", {}) is True
    assert follower.tracker.problem is None
    assert follower.slowest < 0.05
    complete(server.uri)


@pytest.mark.slow
def test_a_server_that_hangs(server: Server, follow: Any, complete: Any) -> None:
    """While a server hangs no call waits and a killed run ends in time; after it woke everything is there once."""
    follower = follow(server.uri)
    follower.run(2)
    follower.sent()
    server.signal(signal.SIGSTOP)
    try:
        follower.run()
        other = follow(server.uri, kill_seconds=1.5)
        since = time.perf_counter()
        assert other.tracker.stop("KILLED", {}) is False
        assert time.perf_counter() - since < 2
        assert other.tracker.problem
        assert len(other.tracker.problem.splitlines()) == 1
    finally:
        server.signal(signal.SIGCONT)
    assert follower.tracker.stop("FINISHED", {}) is True
    assert follower.slowest < 0.05
    complete(server.uri)


@pytest.mark.slow
def test_a_server_that_forgets(server: Server, follow: Any, complete: Any) -> None:
    """A server that comes back with an empty database gets all that was sent before, too."""
    follower = follow(server.uri)
    follower.run(3)
    follower.sent()
    server.kill()
    server.forget()
    server.start(wait=False)
    follower.run()
    assert follower.tracker.stop("FINISHED", {}) is True
    complete(server.uri)


@pytest.mark.slow
@pytest.mark.parametrize("code", [403, 429, 503])
def test_a_server_that_refuses_for_a_while(
    code: int, server: Server, follow: Any, complete: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After refusals all is sent, however long the server's Retry-After is."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    follower = follow(server.uri, interval_seconds=0.02)
    follower.run(2)
    follower.sent()
    server.kill()
    with serving(lambda *_: (code, "<html>not now</html>"), server.port, Retry_After="3600") as (_, refused):
        follower.run()
        until(lambda: len(refused) >= 4, "four requests are refused")
        assert follower.tracker.problem
    server.start(wait=False)
    assert follower.tracker.stop("FINISHED", {}) is True
    complete(server.uri)


def test_a_server_that_is_gone_for_good(follow: Any, empty: RecordStore, tiny: Benchmark, uri: str) -> None:
    """Without a server no call waits, and the end comes in time; `sync` to another MLflow sends everything."""
    follower = follow("http://127.0.0.1:9", grace_seconds=0.3)
    follower.run()
    since = time.perf_counter()
    assert follower.tracker.stop("FINISHED", {}) is False
    assert time.perf_counter() - since < 3
    assert "Connection refused" in (follower.tracker.problem or "")
    assert follower.slowest < 0.05
    assert sync(empty, tiny, uri) == 9
    assert {status for status, *_ in view(uri, tiny, empty).values()} == {"FINISHED"}


def test_a_database_that_cannot_be_written(
    follow: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only database is tried again, and the end says what it is."""
    monkeypatch.chdir(tmp_path)  # MLflow takes the URI for a path as well, and makes its folder
    path = uri.removeprefix("sqlite:///")
    follower = follow(f"sqlite:///file:{path}?mode=ro&uri=true", grace_seconds=0.5)
    follower.run(2)
    assert follower.tracker.stop("FINISHED", {}) is False
    assert "readonly" in (follower.tracker.problem or "")
