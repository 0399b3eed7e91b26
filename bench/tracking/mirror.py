"""Make MLflow show what the records say: one run for the benchmark, and one below it for each trial.

`MLflowMirror.reconcile` compares the runs in MLflow with a target and sends the difference. It may be repeated at any
time, also after it failed half-way. `bench.tracking.sync` calls it for all records of a storage, and
`bench.tracking.tracker` every few seconds while trials run.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from bench.config.benchmark import Benchmark
from bench.exceptions import RecordError
from bench.storage.records import RecordStore
from bench.tracking.client import is_gone, is_refusal
from bench.tracking.conversion import dataset_inputs, final_status, milliseconds, round_digits, run_content, run_params
from bench.tracking.gpu_metrics import monitor_gpus
from bench.tracking.runs import MARK, MLflowRuns
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url, single_line

NUM_THREADS = 4
MAX_FAILURES = 2 * NUM_THREADS  # one after the other: the server does not answer


@dataclass(frozen=True)
class Target:
    """The state that MLflow should show; times are in seconds since 1970.

    Attributes:
        marks: of the records (`record_mark`), by their trials' keys.
        running: specification and start of the trials that run, by key.
        status: of the benchmark's run.
        costs: seconds that each method needed, by the key of the trial that it chose; None leaves choices as they are.
        metrics: of the benchmark's run.
        finished: the last trial's end.
        report: the report's folder.
    """

    marks: Mapping[str, str]
    running: Mapping[str, tuple[TrialSpec, float]] = field(default_factory=dict)
    status: str = "RUNNING"
    costs: Mapping[str, float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    finished: float = 0.0
    report: Path | None = None


class MLflowMirror:
    """One benchmark's runs in MLflow.

    Args:
        uri: of the tracking server or database.
        store: of the benchmark's records.
        since: when the benchmark began; now where None.

    Attributes:
        runs: as they are in MLflow; None until they are read.
        error: why the last pass, or already the one under way, did not send everything.
        refused: why MLflow does not take a trial ("": the benchmark), by key and mark; it is not sent again.
        progress_time: when a trial was last sent, or a pass made more requests than any before.
        deadline, trials_deadline: when the last request, and the last one for a trial, may begin (`time.monotonic`).
        interrupted: while set, no request begins.
    """

    def __init__(self, uri: str, benchmark: Benchmark, store: RecordStore, since: float | None = None) -> None:
        self.uri, self.benchmark, self.store, self._since = uri, benchmark, store, since
        self.runs: MLflowRuns | None = None
        self.error: Exception | None = None
        self._pass_error: Exception | None = None
        self.refused: dict[tuple[str, str], str] = {}
        self.deadline = self.trials_deadline = self._limit = math.inf
        self.interrupted = threading.Event()
        self._target = Target({})
        self._num_failures = 0  # one after the other
        self._failures = Counter[str]()  # by key, of requests that may have had an effect all the same
        self._status, self._is_published = "", False
        self._num_threads = 1 if uri.startswith("sqlite") else NUM_THREADS  # a file has one writer at a time
        self.reset_progress()

    def reset_progress(self) -> None:
        """Count every request as progress, until a pass ends."""
        self._num_requests = self._max_requests = 0
        self.progress_time = time.monotonic()

    def num_missing(self, target: Target) -> int:
        """Count the records that are not in MLflow."""
        runs = {} if self.runs is None else self.runs.trials
        return sum(key not in runs or not runs[key].is_current(mark) for key, mark in target.marks.items())

    def reconcile(self, target: Target) -> Exception | None:
        """Send the difference between MLflow and the target.

        Returns:
            why there is more to send than what MLflow refuses; None if there is not.
        """
        self._target, self._pass_error, self._limit = target, None, self.deadline
        self._num_requests = self._num_failures = 0
        if self.runs is None:
            self._attempt(None, "", self._connect)
        if (runs := self.runs) is None:
            return self._pass_error
        if self._status != target.status:
            self._attempt(runs, "", partial(self._update_benchmark, runs))
        self._limit = min(self.deadline, self.trials_deadline)
        keys = [key for key in {*target.marks, *target.running, *runs.trials} if self._next_action(runs, key)]
        if keys:
            first, *others = sorted(keys, key=self._failures.__getitem__)
            self._update_trial(runs, first)  # alone, as servers fail if two requests at once make one dataset
            with ThreadPool(min(self._num_threads, len(keys))) as pool:  # its threads end with the interpreter
                pool.map(partial(self._update_trial, runs), others, chunksize=1)
        self._limit = self.deadline
        if target.status == "RUNNING":
            monitor_gpus(self.uri, runs.parent)
        else:
            self._attempt(runs, "", partial(self._finish, runs))
        self.error = self._pass_error
        return self._pass_error

    def _attempt(self, runs: MLflowRuns | None, key: str, action: Callable[[], object]) -> bool:
        """Call an action for a trial, or for the benchmark if the key is empty; return whether to go on."""
        if runs is not self.runs or self._num_failures >= MAX_FAILURES:
            return False
        try:
            action()
        except InterruptedError as error:
            self._pass_error = self._pass_error or error
        except Exception as error:
            if runs is not None and is_refusal(error) and not is_gone(error):
                self.refused[key, self._target.marks.get(key, "")] = single_line(redact_url(str(error)))
                return False
            self.error = self._pass_error = error
            self._failures[key] += 1
            self._num_failures += 1
            if is_gone(error):  # more may be gone: the next pass reads everything again
                self.runs, self._status, self._is_published = None, "", False
        else:
            self._num_failures = 0
            return True
        return False

    def _before_request(self) -> None:
        if self.interrupted.is_set() or time.monotonic() > self._limit:
            raise InterruptedError("the run was stopped")
        self._num_requests += 1
        if self._num_requests > self._max_requests:
            self._max_requests, self.progress_time = self._num_requests, time.monotonic()

    def _connect(self) -> None:
        runs = MLflowRuns(self.uri, self.benchmark, self.store, self._before_request, self._since)
        runs.describe()  # sending thousands of trials takes minutes, in which people look
        runs.load()
        self._failures.clear()
        self.runs = runs

    def _update_benchmark(self, runs: MLflowRuns) -> None:
        target = self._target
        if target.status == "RUNNING":
            runs.call("update_run", runs.parent, target.status)
        else:
            when = milliseconds(target.finished)
            metrics = [(name, value, when, 0) for name, value in target.metrics.items() if math.isfinite(value)]
            runs.log(runs.parent, metrics)
            runs.call("set_terminated", runs.parent, target.status, when or None)
        self._status = target.status

    def _update_trial(self, runs: MLflowRuns, key: str) -> None:
        while (action := self._next_action(runs, key)) is not None:
            if not self._attempt(runs, key, action):
                return
        self.progress_time = time.monotonic()

    def _next_action(self, runs: MLflowRuns, key: str) -> Callable[[], object] | None:
        """Return what is to be done next for a trial's run to be as it should; None if it is."""
        target, run, mark = self._target, runs.trials.get(key), self._target.marks.get(key)
        if (key, mark or "") in self.refused:
            return None
        if key in self._failures:
            return partial(self._reload, runs, key)
        if run is not None and run.parent != runs.parent:
            return partial(runs.move, run)
        if mark is not None:
            if run is None or not run.is_current(mark):
                return partial(self._send_record, runs, key, mark)
            costs = {key: run.cost} if target.costs is None else target.costs
            cost = costs.get(key)
            cost = None if cost is None else round_digits(cost)
            return None if cost == run.cost else partial(runs.choose, run, cost, target.finished)
        if key in target.running:
            if run is None:
                return partial(runs.create, *target.running[key])
            if run.status in ("KILLED", "FAILED"):  # FINISHED: an earlier result, until there is a new one
                return partial(runs.set_status, run, "RUNNING")
            return None if run.has_params else partial(runs.log_params, run, target.running[key][0])
        return partial(runs.set_status, run, "KILLED") if run is not None and run.status == "RUNNING" else None

    def _reload(self, runs: MLflowRuns, key: str) -> None:
        runs.reload(key)
        self._failures.pop(key, None)

    def _send_record(self, runs: MLflowRuns, key: str, mark: str) -> None:
        """Send all of a record; without its series, where that is damaged, and then raise RecordError."""
        if (record := self.store.read(key)) is None:
            raise RecordError(f"the record of {key} is no longer in the storage")
        damage, status = None, final_status(mark)
        try:
            content = run_content(record, self.store.series(key))
        except RecordError as error:
            content, damage, mark = run_content(record, []), error, ""
        run, tags = runs.trials.get(key), content.tags | ({MARK: mark} if mark else {})
        if run is not None and run.is_stale(mark):
            runs.call("delete_run", run.run_id)
            del runs.trials[key]
            run = None
        if run is None:
            run, tags = runs.create(record.spec, record.started, tags), {}
        if inputs := dataset_inputs(record):
            runs.call("log_inputs", run.run_id, inputs)
        runs.log(run.run_id, content.metrics, run_params(record.spec), tags)
        runs.set_status(run, status, record.finished)
        run.mark, run.has_params = mark, True
        if damage is not None:
            raise damage

    def _finish(self, runs: MLflowRuns) -> None:
        """Leave no trial's run RUNNING or twice, as servers also do what nobody waits for any more, and log files."""
        runs.load("attributes.status = 'RUNNING'")
        for run in list(runs.trials.values()):
            if run.status == "RUNNING":
                runs.set_status(run, "KILLED")
        if not self._is_published:
            runs.log_text(json.dumps(self.benchmark.content(), indent=1), "benchmark.json")
            if (report := self._target.report) is not None:
                runs.log_report(sorted(file for file in report.iterdir() if file.is_file()))
            runs.describe(report)
            self._is_published = True
