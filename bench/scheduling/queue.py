"""All methods of a benchmark as one queue of trials: asks each method, in shuffled order, and tells it its records."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.methods.base import Method
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec

MIN_CHOOSING_SECONDS = 0.002
"""A method that takes less to choose a trial has looked it up in a list; that is not counted as its cost."""


class TrialQueue:
    """The trials that are left to run.

    Trials are shuffled by ``order_seed``, so that no method gets the quiet hours of the machine: those that can start
    at once over the whole queue, and those that a result makes possible so that what is left of their method is spread
    over what is left of the queue. Methods are told of existing records at once, and these trials are not run again;
    failed ones are, unless ``keep_failed``.

    Attributes:
        total: number of trials, completed ones included; the largest possible one if results decide.
        at_most: True if results may make it smaller.
        reused: records that existed.
        num_completed: number of trials that have their record.
        failed: records of status "failed" that this queue was told of.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        records: Iterable[TrialRecord] = (),
        order_seed: int = 0,
        keep_failed: bool = False,
    ) -> None:
        self.total = sum(method.count() for method in methods)
        self._planned = self.total, sum(sum(method.run_equivalents().values()) for method in methods)
        self._runs_done = 0.0
        self.at_most = any(method.adaptive for method in methods)
        self.reused: list[TrialRecord] = []
        self.num_completed = 0
        self.failed: list[TrialRecord] = []
        records = list(records)
        self._existing = {record.key: record for record in records if record.succeeded or keep_failed}
        self._ready: list[TrialSpec] = []
        self._methods: dict[str, Method] = {}  # of each trial that is ready or runs, by key
        self._num_open, self._num_ended = Counter[Method](), Counter[Method]()
        self._snapshots: dict[Method, set[str]] = defaultdict(set)
        self._unneeded_snapshots: list[str] = []
        self._choosing_seconds: dict[str, float] = {}
        history = _group_by_method(records)
        self._random = random.Random(order_seed)  # noqa: S311 - an order, not a secret
        for method in methods:
            method.load_history(history.get((method.name, method.cell), []))
            self._collect_trials(method, at_once=True)
            self._drop_snapshots_if_idle(method)

    def ask(self) -> TrialSpec | None:
        """Return a trial to start now, or None."""
        return self._ready.pop() if self._ready else None

    def tell(self, record: TrialRecord) -> None:
        """Take the record of a trial that `ask` returned."""
        method = self._methods.pop(record.key)
        self.num_completed += 1
        if record.status == "failed":
            self.failed.append(record)
        self._num_open[method] -= 1
        self._tell_method(method, record)
        self._collect_trials(method)
        self._drop_snapshots_if_idle(method)

    def requeue(self, spec: TrialSpec) -> None:
        """Make a trial that was lost the next one to start."""
        self._ready.append(spec)

    @property
    def finished(self) -> bool:
        """True if no trial is ready and none runs."""
        return not self._methods

    @property
    def num_remaining(self) -> int:
        """Number of trials without a record, running ones included; 0 once the queue is finished."""
        return 0 if self.finished else self.total - self.num_completed

    @property
    def mean_remaining_share(self) -> float:
        """Share of a whole run that a remaining trial trains, on average, as planned before any result."""
        trials, runs = self._planned
        return max(runs - self._runs_done, 0.0) / max(trials - self.num_completed, 1)

    def choosing_seconds(self, spec: TrialSpec) -> float:
        """Return the seconds that its method took to choose a trial; 0 if it looked it up."""
        return self._choosing_seconds.get(spec.key, 0.0)

    def pop_unneeded_snapshots(self) -> list[str]:
        """Return the names (`TrialSpec.snapshot_key`) of snapshots that no trial will resume, each once."""
        names, self._unneeded_snapshots = self._unneeded_snapshots, []
        return names

    def _drop_snapshots_if_idle(self, method: Method) -> None:
        if not self._num_open[method]:
            self._unneeded_snapshots += self._snapshots.pop(method, ())

    def _tell_method(self, method: Method, record: TrialRecord) -> None:
        """Tell a method of a record, and find the snapshots that became unneeded."""
        spec, count_before = record.spec, method.count()
        self._runs_done += spec.until - spec.since
        self._num_ended[method] += 1
        if spec.until < 1:
            self._snapshots[method].add(spec.snapshot_key(spec.until))
        method.tell(record)
        unneeded = [stopped.snapshot_key(stopped.until) for stopped in method.stopped_trials()]
        self.total += method.count() - count_before
        if spec.since > 0:
            self._snapshots[method].discard(spec.snapshot_key(spec.since))
            if record.succeeded:  # the next run retries a failed one, from its snapshot
                unneeded.append(spec.snapshot_key(spec.since))
        self._snapshots[method].difference_update(unneeded)
        self._unneeded_snapshots += unneeded

    def _ask_method(self, method: Method) -> TrialSpec | None:
        start = time.perf_counter()
        spec = method.ask()
        if spec is not None and (seconds := time.perf_counter() - start) > MIN_CHOOSING_SECONDS:
            self._choosing_seconds[spec.key] = seconds
        return spec

    def _collect_trials(self, method: Method, at_once: bool = False) -> None:
        """Ask a method for its trials; tell it of those that have a record, and queue the others.

        ``at_once``: none of them depends on a result, so they are spread over the whole queue.
        """
        new = []
        while (spec := self._ask_method(method)) is not None:
            if (record := self._existing.get(spec.key)) is not None:
                self.reused.append(record)
                self.num_completed += 1
                self._tell_method(method, record)
                continue
            self._methods[spec.key] = method
            self._num_open[method] += 1
            new.append(spec)
        is_sequential = len(new) == 1 < method.count()
        for spec in new:
            reach = len(self._ready)
            if not at_once or is_sequential:
                remaining = method.count() - self._num_ended[method]
                reach = min(reach, 2 * reach // max(remaining, 1))
            self._ready.insert(len(self._ready) - self._random.randint(0, reach), spec)


def _group_by_method(records: Iterable[TrialRecord]) -> dict[tuple[str, Cell], list[TrialRecord]]:
    """Group records by configured method and cell."""
    groups: dict[tuple[str, Cell], list[TrialRecord]] = defaultdict(list)
    for record in records:
        groups[record.spec.method, record.spec.cell].append(record)
    return groups


class FinishedCells(NamedTuple):
    """Records of finished cells, and the work that remains in the others.

    Attributes:
        records: records of each cell that its method has finished, failed ones included.
        remaining: number of trials left in each unfinished (method, cell).
        num_unfinished_records: number of records that the unfinished cells have so far.
    """

    records: list[TrialRecord]
    remaining: dict[tuple[str, Cell], int]
    num_unfinished_records: int


def split_finished(methods: Iterable[Method], records: Sequence[TrialRecord]) -> FinishedCells:
    """Separate the records of finished cells from what is left to run."""
    finished: list[TrialRecord] = []
    remaining: dict[tuple[str, Cell], int] = {}
    num_unfinished_records = 0
    known = _group_by_method(records)
    for method in methods:
        method.dry_run = True
        queue = TrialQueue([method], known.get((method.name, method.cell), []), keep_failed=True)
        if queue.finished:
            finished += queue.reused
        else:
            remaining[method.name, method.cell] = queue.num_remaining
            num_unfinished_records += len(queue.reused)
    return FinishedCells(finished, remaining, num_unfinished_records)
