"""Between a `Race` and Ray Tune: one trial of Tune's is one attempt at a trial of ours."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from bench.attempts import Attempts
from bench.config import one_line
from bench.environment import hardware, versions
from bench.race import Race, Watcher
from bench.records import RecordError, RecordStore
from bench.stopping import Halted
from bench.trials import TrialRecord, TrialSpec

__all__ = ["Courier", "MethodSearcher", "Reasons"]


@dataclass
class _Attempt:
    """What is known of one of Tune's trials."""

    spec: TrialSpec
    number: int
    lost_seconds: float
    begun: bool = False
    result: dict[str, Any] | None = None
    reason: str = "its process ended without a word"


class MethodSearcher(Searcher):
    """Each suggestion is a method's trial, each result a method's record.

    A trial whose process died, or whose node went away, is suggested again, up to ``max_failures`` times: as a new
    trial of Tune's, whose own retries would keep neither the moments nor a trial that was lost before it began.

    Raises:
        Halted: from its callbacks, where neither the worker nor the driver can write a record.
    """

    def __init__(
        self,
        race: Race,
        watchers: Sequence[Watcher],
        store: RecordStore,
        attempts: Attempts,
        most: int,
        max_failures: int,
    ) -> None:
        super().__init__()
        self._race, self._watchers, self._store, self._attempts = race, watchers, store, attempts
        self._most, self._max_failures = most, max_failures
        self._out: dict[str, _Attempt] = {}
        self._failures: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its searcher, a benchmark continues from its records."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        spec = self._race.ask() if len(self._out) < self._most else None
        if spec is None:
            finished: Any = Searcher.FINISHED  # a word, whatever the signature says
            return finished if self._race.finished else None
        number, lost_seconds = self._attempts.next(spec.key)
        self._out[trial_id] = _Attempt(spec, number, lost_seconds)
        return {"spec": asdict(spec), "attempt": number, "lost_seconds": lost_seconds}

    def began(self, trial_id: str) -> None:
        """The trial really starts: a suggestion still waits for its slot."""
        attempt = self._out[trial_id]
        attempt.begun = True
        try:
            self._attempts.begin(attempt.spec.key)
        except OSError as error:
            raise self._halted(error) from error
        for watcher in self._watchers:
            watcher.started(attempt.spec)

    def delivered(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes what a worker sent out of Tune's result, which Tune keeps for as long as it runs."""
        if "record" in result:
            self._out[trial_id].result = {name: result.pop(name) for name in ("record", "series", "written")}

    def died(self, trial_id: str, reason: str) -> None:
        """Why a process died, in Ray's words."""
        if trial_id in self._out:
            self._out[trial_id].reason = reason

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        attempt = self._out.pop(trial_id)
        record = self._found(attempt) if error or attempt.result is None else self._received(attempt.result)
        if record is None:
            self._failures[attempt.spec.key] += 1
            if self._failures[attempt.spec.key] <= self._max_failures:
                self._race.retry(attempt.spec)
                for watcher in self._watchers:
                    watcher.lost(attempt.spec, attempt.reason)
                return
            record = _failed(attempt)
            self._write(record, [])
        self._race.tell(record)
        for watcher in self._watchers:
            watcher.finished(record)

    def abandon(self) -> None:
        """The run stops: what was running came to nothing."""
        for attempt in self._out.values():
            if attempt.begun:
                self._attempts.fail(attempt.spec.key)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a benchmark continues from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `save`."""

    def _received(self, result: dict[str, Any]) -> TrialRecord:
        record = TrialRecord.from_json(result["record"])
        if not result["written"]:  # the worker's storage is not this one, or did not take it
            self._write(record, result["series"])
        if record.status == "failed":
            self._end(record.key)
        return record

    def _found(self, attempt: _Attempt) -> TrialRecord | None:
        """The record that a process wrote before it died."""
        try:
            record = self._store.read(attempt.spec.key)
        except RecordError:
            record = None
        if record is not None and (record.succeeded or record.attempt == attempt.number):
            return record
        if attempt.begun:
            self._end(attempt.spec.key)
        return None

    def _end(self, key: str) -> None:
        try:
            self._attempts.fail(key)
        except OSError as error:
            raise self._halted(error) from error

    def _write(self, record: TrialRecord, series: list[dict[str, float]]) -> None:
        try:
            self._store.write(record, series)
        except Exception as error:  # a disk's OSError, an object store's own
            raise self._halted(error) from error

    def _halted(self, error: Exception) -> Halted:
        why = getattr(error, "strerror", None) or one_line(error)[:200]
        return Halted(
            f"{self._store.url} takes no more records ({why}): what it has is kept; make room, or see to it that it "
            "can be written, and the same command continues"
        )


class Courier(tune.Callback):
    """Tells the searcher what Tune tells callbacks alone: that a trial starts; its result, while it may be changed."""

    def __init__(self, searcher: MethodSearcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._searcher.began(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._searcher.delivered(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune keeps every trial to its end, with moving averages of each number it saw: 20 KB that nobody reads."""
        for name in ("metric_analysis", "metric_n_steps", "last_result"):
            with suppress(AttributeError):
                getattr(trial.run_metadata, name).clear()


class Reasons(FIFOScheduler):
    """First come, first served; and it tells the searcher why a trial died, as it is told first."""

    def __init__(self, searcher: MethodSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._searcher.died(trial.trial_id, _reason(trial))


def _reason(trial: Any) -> str:
    """Ray's words on a dead process, without the list of what it was."""
    try:
        words = (trial.get_error() or "").strip()
    except OSError:
        words = ""
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith("\t")]
    return " ".join(lines)[-600:] or "its process ended without a word"


def _failed(attempt: _Attempt) -> TrialRecord:
    """The record of a trial whose process died as often as it was allowed to."""
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
        lost_seconds=attempt.lost_seconds,
    )
