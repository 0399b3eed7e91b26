"""Between a `TrialQueue` and Ray Tune: one trial of Tune's is one attempt at a trial of ours."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from ray.tune.search import Searcher

from bench.config.benchmark import Benchmark
from bench.exceptions import RecordError, RunAborted
from bench.execution.environment import hardware, versions
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.storage.attempts import AttemptLog
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import single_line

__all__ = ["QueueSearcher"]


T = TypeVar("T")
NEVER_BEGUN = 3
"""How often a trial that was lost before it began is tried again at least: it cost nothing yet."""


@dataclass
class _Attempt:
    """What is known of one of Tune's trials."""

    spec: TrialSpec
    number: int
    begun: bool = False
    started: float = 0.0
    result: dict[str, Any] | None = None
    reason: str = "its process ended without a word"


class QueueSearcher(Searcher):
    """Each suggestion is a method's trial, each result a method's record.

    A trial whose process died, or whose node went away, is suggested again, up to ``max_failures`` times: as a new
    trial of Tune's, whose own retries would keep neither the moments nor a trial that was lost before it began.

    Raises:
        Halted: from its callbacks, where neither the worker nor the driver can write a record, or where a node has
            other images than the trials before, or, where seconds are compared, another GPU.
    """

    def __init__(
        self,
        queue: TrialQueue,
        callbacks: Sequence[RunCallback],
        store: RecordStore,
        attempts: AttemptLog,
        most: int,
        benchmark: Benchmark,
    ) -> None:
        super().__init__()
        self._queue, self._callbacks, self._store, self._attempts = queue, callbacks, store, attempts
        self._most, self._max_failures, self._timed = most, benchmark.max_failures, benchmark.timed
        told = (record for record in queue.reused if "data" in record.versions)
        self._images = {record.spec.dataset: record.versions["data"] for record in told}
        self._gpus = {
            gpu for record in queue.reused if record.timed and (gpu := record.hardware.get("gpu")) is not None
        }
        self._out: dict[str, _Attempt] = {}
        self._failures: Counter[tuple[str, bool]] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its searcher, a benchmark continues from its records."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        spec = self._queue.ask() if len(self._out) < self._most else None
        if spec is None:
            finished: Any = Searcher.FINISHED  # a word, whatever the signature says
            return finished if self._queue.finished else None
        number, lost_seconds = self._or_halted(self._attempts.next, spec.key)
        self._out[trial_id] = _Attempt(spec, number)
        took = self._queue.choosing_seconds(spec)
        return {"spec": asdict(spec), "attempt": number, "lost_seconds": lost_seconds, "choosing_seconds": took}

    def began(self, trial_id: str) -> None:
        """The trial really starts: a suggestion still waits for its slot."""
        attempt = self._out[trial_id]
        attempt.begun = True
        attempt.started = time.time()
        self._or_halted(self._attempts.begin, attempt.spec.key)
        for callback in self._callbacks:
            callback.on_trial_start(attempt.spec)

    def delivered(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes what a worker sent out of Tune's result, which Tune keeps for as long as it runs."""
        if "record" in result:
            self._out[trial_id].result = {name: result.pop(name) for name in ("record", "series", "written")}

    def died(self, trial_id: str, reason: str) -> None:
        """Why a process died, in Ray's words."""
        if trial_id in self._out:
            self._out[trial_id].reason = reason

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        attempt = self._out.pop(trial_id, None)
        if attempt is None:
            return
        try:
            record = self._found(attempt) if error or attempt.result is None else self._received(attempt.result)
        except RunAborted:
            self._out[trial_id] = attempt  # it came to nothing, as what runs beside it
            raise
        if record is None:
            key, begun = attempt.spec.key, attempt.begun
            self._failures[key, begun] += 1
            if self._failures[key, begun] <= (self._max_failures if begun else max(self._max_failures, NEVER_BEGUN)):
                self._queue.requeue(attempt.spec)
                for callback in self._callbacks:
                    callback.on_trial_retry(attempt.spec, attempt.reason)
                return
            record = _failed(attempt, self._or_halted(self._attempts.next, key)[1], self._timed)
            self._write(record, [])
        self._queue.tell(record)
        self._drop(self._queue.pop_unneeded_snapshots())
        for callback in self._callbacks:
            callback.on_trial_end(record)

    def abandon(self) -> None:
        """The run stops: what was running came to nothing."""
        self._store.hurry()
        for attempt in self._out.values():
            if attempt.begun:
                self._attempts.fail(attempt.spec.key)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a benchmark continues from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `save`."""

    def _received(self, result: dict[str, Any]) -> TrialRecord:
        record = TrialRecord.from_json(result["record"])
        if (reason := self._foreign(record)) is not None:
            if result["written"]:
                self._or_halted(self._store.set_aside, f"records/{record.key}.json")
            raise RunAborted(f"node {record.hardware.get('node')} has {reason}, and the same command continues")
        if not result["written"]:  # the worker's storage is not this one, or did not take it
            self._write(record, result["series"])
        if record.status == "failed":
            self._end(record.key)
        return record

    def _foreign(self, record: TrialRecord) -> str | None:
        """What of a record cannot be compared with those before, and what to do about it."""
        images, dataset = record.versions.get("data"), record.spec.dataset
        if images is not None and images != (seen := self._images.setdefault(dataset, images)):
            return (
                f"other images of {dataset} than earlier trials saw ({images}, not {seen}): put the same folder on "
                "every node"
            )
        gpu = record.hardware.get("gpu")
        if self._timed and gpu is not None and gpu not in (known := self._gpus or {gpu}):
            return (
                f"a {gpu}, earlier trials ran on {', '.join(sorted(known))}, and seconds on both cannot be compared: "
                "take the nodes of one model out, pin resources.accelerator where the types differ, or set timed: false"
            )
        self._gpus |= {gpu} - {None}
        return None

    def _found(self, attempt: _Attempt) -> TrialRecord | None:
        """The record that a process wrote before it died."""
        try:
            record = self._or_halted(self._store.read, attempt.spec.key)
        except RecordError:
            record = None
        if record is not None and (record.succeeded or record.finished >= attempt.started > 0):
            return record
        if attempt.begun:
            self._end(attempt.spec.key)
        return None

    def _drop(self, names: list[str]) -> None:
        """Removes kept parts of runs. What cannot be removed stays: it takes room and does no harm."""
        with suppress(Exception):
            there = {f"rungs/{name}.pt" for name in names}.intersection(self._store.names("rungs")) if names else ()
            for name in there:
                self._store.remove(name)

    def _end(self, key: str) -> None:
        self._or_halted(self._attempts.fail, key)

    def _write(self, record: TrialRecord, series: list[dict[str, float]]) -> None:
        self._or_halted(self._store.write, record, series)

    def _or_halted(self, call: Callable[..., T], *arguments: Any) -> T:
        """What the storage says; where it cannot be used, or not any more, nothing else is asked of it."""
        try:
            return call(*arguments)
        except RecordError:  # damaged: what that means depends on what was asked
            raise
        except Exception as error:
            raise self._halted(error) from error

    def _halted(self, error: Exception) -> RunAborted:
        self._store.hurry()  # it was waited for
        why = getattr(error, "strerror", None) or single_line(error)[:200]
        return RunAborted(
            f"{self._store.url} takes no more records ({why}): what it has is kept; make room, or see to it that it "
            "can be written, and the same command continues"
        )


def _failed(attempt: _Attempt, lost_seconds: float, timed: bool) -> TrialRecord:
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
        lost_seconds=lost_seconds,
        timed=timed,
    )
