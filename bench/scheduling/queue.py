"""All methods of a benchmark as one stream of trials: asks each, in a shuffled order, and tells each its records."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.methods.base import Method
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec

__all__ = ["FinishedCells", "TrialQueue", "split_finished"]


NOTHING = 0.002  # seconds: a method that looks into a list


class TrialQueue:
    """What is left to run, whatever ran before.

    Trials are shuffled by ``order_seed``, so that no method gets the machine's quiet hours: those that may start at
    once over the whole queue, those that a result makes possible such that what their method has left is spread over
    what is left of the queue. Records that exist are told to their methods at once and never asked for again; failed
    ones are tried again, unless ``keep_failed``.

    Attributes:
        total: trials in all, told ones included; the most that they may be, where a method decides on the way.
        at_most: whether results may make fewer of them.
        reused: the records that were there before.
        num_completed: how many have their record.
        failed: records of status "failed", told in this queue.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        records: Iterable[TrialRecord] = (),
        order_seed: int = 0,
        keep_failed: bool = False,
    ) -> None:
        self.total = sum(method.count() for method in methods)
        self.at_most = any(method.adaptive for method in methods)
        self.reused: list[TrialRecord] = []
        self.num_completed = 0
        self.failed: list[TrialRecord] = []
        records = list(records)
        self._existing = {record.key: record for record in records if record.succeeded or keep_failed}
        self._ready: list[TrialSpec] = []
        self._asked: dict[str, Method] = {}
        self._out, self._ended = Counter[Method](), Counter[Method]()
        self._handed_over: dict[Method, set[str]] = defaultdict(set)
        self._obsolete: list[str] = []
        self._choosing: dict[str, float] = {}
        known = _by_entry(records)
        self._shuffle = random.Random(order_seed)  # noqa: S311 - an order, not a secret
        for method in methods:
            method.load_history(known.get((method.name, method.cell), []))
            self._drain(method, at_once=True)
            self._give_up_parts(method)

    def ask(self) -> TrialSpec | None:
        """A trial to start now, or None."""
        return self._ready.pop() if self._ready else None

    def tell(self, record: TrialRecord) -> None:
        """What came of a trial that was asked for."""
        method = self._asked.pop(record.key)
        self.num_completed += 1
        if record.status == "failed":
            self.failed.append(record)
        self._out[method] -= 1
        self._told(method, record)
        self._drain(method)
        self._give_up_parts(method)

    def requeue(self, spec: TrialSpec) -> None:
        """A trial that was asked for came to nothing: it is the next to start."""
        self._ready.append(spec)

    @property
    def finished(self) -> bool:
        """Whether nothing is ready and nothing is out."""
        return not self._asked

    @property
    def num_remaining(self) -> int:
        """Trials without a record, the running ones included; none once nothing more will come."""
        return 0 if self.finished else self.total - self.num_completed

    def pop_unneeded_snapshots(self) -> list[str]:
        """Names of kept runs (`TrialSpec.kept_as`) that nobody will go on with; each is named once."""
        names, self._obsolete = self._obsolete, []
        return names

    def _give_up_parts(self, method: Method) -> None:
        if not self._out[method]:
            self._obsolete += self._handed_over.pop(method, ())

    def _told(self, method: Method, record: TrialRecord) -> None:
        before = method.count()
        self._ended[method] += 1
        if record.spec.until < 1:
            self._handed_over[method].add(record.spec.kept_as(record.spec.until))
        method.tell(record)
        for stopped in method.stopped_trials():
            name = stopped.kept_as(stopped.until)
            self._handed_over[method].discard(name)
            self._obsolete.append(name)
        self.total += method.count() - before
        spec = record.spec
        if spec.since > 0:
            name = spec.kept_as(spec.since)
            self._handed_over[method].discard(name)
            if record.succeeded:  # a failed one is tried again by the next run
                self._obsolete.append(name)

    def choosing_seconds(self, spec: TrialSpec) -> float:
        """How long its method took to find it; 0 where that is nothing."""
        return self._choosing.get(spec.key, 0.0)

    def _ask(self, method: Method) -> TrialSpec | None:
        since = time.perf_counter()
        spec = method.ask()
        if spec is not None and (took := time.perf_counter() - since) > NOTHING:
            self._choosing[spec.key] = took
        return spec

    def _drain(self, method: Method, at_once: bool = False) -> None:
        asked = []
        while (spec := self._ask(method)) is not None:
            if (record := self._existing.get(spec.key)) is not None:
                self.reused.append(record)
                self.num_completed += 1
                self._told(method, record)
                continue
            self._asked[spec.key] = method
            self._out[method] += 1
            asked.append(spec)
        one_by_one = len(asked) == 1 < method.count()
        for spec in asked:
            room = len(self._ready)
            if not at_once or one_by_one:
                left = method.count() - self._ended[method]
                room = min(room, 2 * room // max(left, 1))
            self._ready.insert(len(self._ready) - self._shuffle.randint(0, room), spec)


def _by_entry(records: Iterable[TrialRecord]) -> dict[tuple[str, Cell], list[TrialRecord]]:
    """The records of each entry under ``methods`` in each cell."""
    known: dict[tuple[str, Cell], list[TrialRecord]] = defaultdict(list)
    for record in records:
        known[record.spec.method, record.spec.cell].append(record)
    return known


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
    known = _by_entry(records)
    for method in methods:
        method.dry_run = True
        queue = TrialQueue([method], known.get((method.name, method.cell), []), keep_failed=True)
        if queue.finished:
            finished += queue.reused
        else:
            remaining[method.name, method.cell] = queue.num_remaining
            num_unfinished_records += len(queue.reused)
    return FinishedCells(finished, remaining, num_unfinished_records)
