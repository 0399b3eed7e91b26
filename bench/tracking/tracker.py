"""Keep MLflow up to date while a benchmark runs, from a thread that nobody waits for."""

import threading
import time
from dataclasses import replace
from pathlib import Path

from bench.results.configurations import selected_trials
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.tracking.conversion import record_mark
from bench.tracking.mirror import MLflowMirror, Target
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url, single_line

MAX_PAUSE_SECONDS, MAX_LAST_PAUSE_SECONDS = 10.0, 1.0
TRIALS_SHARE = 0.6  # of the seconds of a killed run, for trials; the rest is for closing their runs
MAX_PROBLEM_CHARS = 200


class MLflowTracker(RunCallback):
    """Reconcile MLflow every few seconds with the records and with the trials that run; what fails is sent again.

    Args:
        mirror: of the benchmark's runs.
        interval_seconds: between two passes; longer while they fail.
        grace_seconds: without progress, after which `stop` gives up.
        kill_seconds: that `stop` takes at most if the run was killed.
    """

    def __init__(
        self,
        mirror: MLflowMirror,
        interval_seconds: float = 3.0,
        grace_seconds: float = 30.0,
        kill_seconds: float = 5.0,
    ) -> None:
        self._mirror, self._interval_seconds = mirror, interval_seconds
        self._grace_seconds, self._kill_seconds = grace_seconds, kill_seconds
        self._lock = threading.Lock()  # of the next four
        self._marks: dict[str, str] = {}
        self._running: dict[str, tuple[TrialSpec, float]] = {}
        self._finished = 0.0
        self._end: Target | None = None
        self._wake = threading.Event()
        self._is_complete = self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)

    @property
    def num_missing(self) -> int:
        """Number of records that are not in MLflow yet."""
        return self._mirror.num_missing(self._target())

    @property
    def problem(self) -> str | None:
        """Why something is not in MLflow, in one line."""
        refused, error = self._mirror.refused, self._mirror.error
        if refused:
            text = f"{len(refused)} refused, the first: {next(iter(refused.values()))}"
        elif error is not None:
            text = redact_url(str(error))  # MLflow's client names its address
        elif self._is_stopped and not self._is_complete:
            text = "the answer took too long"
        else:
            return None
        if self._is_stopped and (count := self.num_missing):
            text = f"{count} trial{'s' * (count != 1)} not sent in time: {text}"
        return single_line(text, MAX_PROBLEM_CHARS)

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        for record in queue.reused:  # an interrupted call may not have sent them
            self.on_trial_end(record)
        self._thread.start()

    def on_trial_start(self, spec: TrialSpec) -> None:
        with self._lock:
            self._running[spec.key] = spec, time.time()

    def on_trial_end(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.pop(record.key, None)
            self._marks[record.key] = record_mark(record)
            self._finished = max(self._finished, record.finished)

    def stop(self, status: str, metrics: dict[str, float], report: Path | None = None) -> bool:
        """Send what is missing, as long as there is progress, and close the benchmark's run.

        Args:
            status: of the benchmark's run; KILLED limits the time.
            metrics: of the benchmark's run.
            report: its folder.

        Returns:
            whether MLflow has everything.
        """
        mirror, killed, now = self._mirror, status == "KILLED", time.monotonic()
        with self._lock:
            self._end = Target(dict(self._marks), {}, status, None, metrics, self._finished, report)
        mirror.reset_progress()
        if killed:
            mirror.trials_deadline = now + TRIALS_SHARE * self._kill_seconds
            mirror.deadline = now + self._kill_seconds
            mirror.interrupted.set()
        self._wake.set()
        try:
            while self._thread.is_alive():
                end = mirror.deadline if killed else mirror.progress_time + self._grace_seconds
                if time.monotonic() > end:
                    break
                self._thread.join(0.05)
        except KeyboardInterrupt:
            if not killed:
                return self.stop("KILLED", metrics)
        self._is_stopped = True
        mirror.deadline = mirror.trials_deadline = 0.0
        mirror.interrupted.set()
        return self._is_complete and not mirror.refused

    def _target(self) -> Target:
        with self._lock:
            return self._end or Target(dict(self._marks), dict(self._running))

    def _work(self) -> None:
        num_failures, costs = 0, None
        while not self._is_stopped:
            self._mirror.interrupted.clear()
            self._wake.clear()
            target = self._target()
            try:
                if target.status not in ("RUNNING", "KILLED"):
                    costs = costs or selected_trials(self._mirror.benchmark, list(self._mirror.store.records([])))
                error = self._mirror.reconcile(replace(target, costs=costs))
            except Exception as caught:  # the storage is away
                error = self._mirror.error = caught
            if target.status != "RUNNING" and (error is None or time.monotonic() > self._mirror.trials_deadline):
                self._is_complete = error is None
                return
            num_failures = 0 if error is None else min(num_failures + 1, 10)
            pause = min(self._interval_seconds * 2**num_failures, max(self._interval_seconds, MAX_PAUSE_SECONDS))
            self._wake.wait(pause if target.status == "RUNNING" else min(pause, MAX_LAST_PAUSE_SECONDS))
