"""Ray Tune's searcher: suggests the trials of a `TrialQueue`, and retries those whose process died."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from ray.tune.search import Searcher

from bench.config.benchmark import Benchmark
from bench.config.plugins import plugin_modules
from bench.exceptions import RecordError, RunAborted
from bench.execution.environment import hardware, versions
from bench.ray_backend.code_check import code_problem
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.storage.attempts import AttemptLog
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.code import running_code
from bench.utils.text import single_line

T = TypeVar("T")
WORKER_RESULT = ("record", "series", "written", "code", "model_problem", "hostname")  # the last is Tune's
UNKNOWN_REASON = "its process ended without an error message"
MIN_RETRIES_BEFORE_START = 3
"""Retries of a trial that was lost before it started, even if max_failures is less: it has cost nothing yet."""


@dataclass
class _Attempt:
    """One of Tune's trials: an attempt at a trial of the benchmark.

    Attributes:
        started: when it got its slot, in seconds since 1970; None if it has none yet.
        result: the worker's host, code, record and series, and whether the worker wrote them.
    """

    spec: TrialSpec
    number: int
    started: float | None = None
    result: dict[str, Any] | None = None
    reason: str = UNKNOWN_REASON


class QueueSearcher(Searcher):
    """A Tune searcher whose suggestions are the trials of a queue, and whose results are their records.

    A trial whose process or node was lost is suggested again, up to ``max_failures`` times, as a new trial of Tune's:
    Tune's own retries would neither note when attempts began nor retry a trial that was lost before it started.

    Args:
        queue: trials to run.
        callbacks: told of every start and end.
        store: storage of the records.
        attempts: at trials of this storage.
        max_trials: number of trials that Tune may hold at once, running or waiting for a slot.
        benchmark: whose trials they are.

    Raises:
        RunAborted: from its callbacks, if neither the worker nor the driver can write a record, or a node has other
            images than earlier trials or, in a timed benchmark, another GPU.
    """

    def __init__(
        self,
        queue: TrialQueue,
        callbacks: Sequence[RunCallback],
        store: RecordStore,
        attempts: AttemptLog,
        max_trials: int,
        benchmark: Benchmark,
    ) -> None:
        super().__init__()
        self._queue, self._callbacks, self._store, self._attempts = queue, callbacks, store, attempts
        self._max_trials, self._max_failures, self._timed = max_trials, benchmark.max_failures, benchmark.timed
        self._code = running_code(plugin_modules(benchmark))
        self._images: dict[str, str] = {}
        self._gpus: set[str] = set()
        for record in queue.reused:
            if "data" in record.versions:
                self._images[record.spec.dataset] = record.versions["data"]
            if record.timed and "gpu" in record.hardware:
                self._gpus.add(record.hardware["gpu"])
        self._out: dict[str, _Attempt] = {}
        self._failures: Counter[tuple[str, bool]] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves its searcher, but a benchmark is resumed from its records."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        spec = self._queue.ask() if len(self._out) < self._max_trials else None
        if spec is None:
            finished: Any = Searcher.FINISHED  # a string, although the signature says otherwise
            return finished if self._queue.finished else None
        number, lost_seconds = self._or_abort(self._attempts.next, spec.key)
        self._out[trial_id] = _Attempt(spec, number)
        seconds = self._queue.choosing_seconds(spec)
        return {"spec": asdict(spec), "attempt": number, "lost_seconds": lost_seconds, "choosing_seconds": seconds}

    def start_trial(self, trial_id: str) -> None:
        """Note that a trial has a slot; a suggestion still waits for one."""
        attempt = self._out[trial_id]
        attempt.started = time.time()
        self._or_abort(self._attempts.begin, attempt.spec.key)
        for callback in self._callbacks:
            callback.on_trial_start(attempt.spec)

    def take_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remove a worker's record from Tune's result, which Tune keeps in memory to its end."""
        if "record" in result:
            self._out[trial_id].result = {name: result.pop(name, None) for name in WORKER_RESULT}

    def note_error(self, trial_id: str, reason: str) -> None:
        """Note why the process of a trial died."""
        if trial_id in self._out:
            self._out[trial_id].reason = reason

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        attempt = self._out.pop(trial_id, None)
        if attempt is None:
            return
        try:
            if error or attempt.result is None:
                record = self._recover_record(attempt) or self._retry_or_fail(attempt)
            else:
                record = self._accept(attempt.result)
        except RunAborted:
            self._out[trial_id] = attempt  # `abandon` notes that this attempt failed
            raise
        if record is None:
            return
        self._queue.tell(record)
        self._remove_snapshots(self._queue.pop_unneeded_snapshots())
        problem = (attempt.result or {}).get("model_problem")
        for callback in self._callbacks:
            callback.on_trial_end(record)
            if problem is not None:
                callback.on_model_lost(record.spec, problem)

    def abandon(self) -> None:
        """Note that all running attempts failed, as the run stops."""
        self._store.stop_waiting()
        for attempt in self._out.values():
            if attempt.started is not None:
                self._attempts.fail(attempt.spec.key)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a benchmark is resumed from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    def _accept(self, result: dict[str, Any]) -> TrialRecord:
        """Check a worker's code and record, and write the record if the worker could not."""
        problem = code_problem(str(result["hostname"]), result["code"] or {}, self._code)
        if problem is not None and result["record"] is None:
            raise RunAborted(problem)
        record = TrialRecord.from_json(result["record"])
        problem = problem or self._incompatibility(record)
        if problem is not None:
            if result["written"]:
                self._or_abort(self._store.quarantine, f"records/{record.key}.json")
            raise RunAborted(f"{problem}; then the same command continues")
        if not result["written"]:
            self._or_abort(self._store.write, record, result["series"])
        if record.status == "failed":
            self._or_abort(self._attempts.fail, record.key)
        return record

    def _incompatibility(self, record: TrialRecord) -> str | None:
        """Describe what of a record cannot be compared with earlier ones, and what to do about it."""
        images, dataset, node = record.versions.get("data"), record.spec.dataset, record.hardware.get("node")
        if images is not None and images != (known := self._images.setdefault(dataset, images)):
            return (
                f"node {node} has other data of {dataset} than earlier trials saw ({images}, not {known}): put "
                "the same folder on every node"
            )
        gpu = record.hardware.get("gpu")
        if self._timed and gpu is not None and gpu not in (gpus := self._gpus or {gpu}):
            return (
                f"node {node} has a {gpu}, earlier trials ran on {', '.join(sorted(gpus))}, and seconds on both "
                "cannot be compared: use nodes of one model only, pin resources.accelerator if the types differ, or "
                "set timed: false"
            )
        if gpu is not None:
            self._gpus.add(gpu)
        return None

    def _recover_record(self, attempt: _Attempt) -> TrialRecord | None:
        """Read the record that a process wrote before it died; note a failed attempt if there is none."""
        try:
            record = self._or_abort(self._store.read, attempt.spec.key)
        except RecordError:
            record = None
        started = attempt.started
        if record is not None and (record.succeeded or (started is not None and record.finished >= started)):
            return record
        if started is not None:
            self._or_abort(self._attempts.fail, attempt.spec.key)
        return None

    def _retry_or_fail(self, attempt: _Attempt) -> TrialRecord | None:
        """Queue a lost trial again, or return the record of its failure if it was lost too often."""
        spec, started = attempt.spec, attempt.started is not None
        self._failures[spec.key, started] += 1
        max_failures = self._max_failures if started else max(self._max_failures, MIN_RETRIES_BEFORE_START)
        if self._failures[spec.key, started] <= max_failures:
            self._queue.requeue(spec)
            for callback in self._callbacks:
                callback.on_trial_retry(spec, attempt.reason)
            return None
        _, lost_seconds = self._or_abort(self._attempts.next, spec.key)
        record = _failure_record(attempt, lost_seconds, self._timed)
        self._or_abort(self._store.write, record, [])
        return record

    def _remove_snapshots(self, names: list[str]) -> None:
        """Remove snapshots that no trial resumes; one that cannot be removed takes space and does no harm."""
        with suppress(Exception):
            for name in {f"rungs/{name}.pt" for name in names}.intersection(
                self._store.names("rungs") if names else ()
            ):
                self._store.remove(name)

    def _or_abort(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the storage, and abort the run if it cannot be used."""
        try:
            return call(*arguments)
        except RecordError:  # a damaged file: the caller knows what that means
            raise
        except Exception as error:
            self._store.stop_waiting()  # it has been waited for
            reason = getattr(error, "strerror", None) or single_line(error)[:200]
            raise RunAborted(
                f"{self._store.url} takes no more records ({reason}): its records are kept; free space or make it "
                "writable, and the same command continues"
            ) from error


def _failure_record(attempt: _Attempt, lost_seconds: float, timed: bool) -> TrialRecord:
    """Make the record of a trial whose process died as often as it was allowed to."""
    now = time.time()
    return TrialRecord(
        spec=attempt.spec,
        status="failed",
        metrics={},
        state={},
        seconds={},
        started=now,
        finished=now,
        attempt=attempt.number,
        hardware=hardware(torch.device("cpu")),
        versions=versions(),
        error=f"the trial's process died as often as max_failures allows; the last time: {attempt.reason}",
        lost_seconds=lost_seconds,
        timed=timed,
    )
