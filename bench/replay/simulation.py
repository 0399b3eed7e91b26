"""Simulate methods on a finished grid: thousands of repetitions in the time of reading a table.

A replay asks and tells the same methods that `run` uses; a `GridTable` answers their trials instead of training, on a
simulated clock. Repetition r is the method with ``seed: r``.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from bench.config.benchmark import Benchmark, trial_template
from bench.methods import method_named
from bench.methods.base import Method, MethodSettings
from bench.replay.grid_table import PHASES, GridTable
from bench.trials.record import TrialRecord

COST = "full"
COLUMNS = ["source", "dataset", "backbone", "prior", "n", "seed", "method", "repetition", "number", "hours", "test_acc"]
COLUMNS += ["cost", "wall_hours", "slots"]


@dataclass(frozen=True)
class Step:
    """State of a method after its first ``number`` configurations, those stopped early included.

    The seconds include retraining the best of them, whose test accuracy (0 to 1) is NaN if it was not retrained.
    """

    number: int
    seconds: float
    accuracy: float
    wall_seconds: float


def simulate(method: Method, table: GridTable, slots: int = 1) -> list[TrialRecord]:
    """Simulate a method on so many slots, and return its trials in the order in which they end.

    A free slot runs the method's next trial for the seconds that count as compute, without setup and monitoring. Trials
    that end together are told in the order of their start. Retraining takes no slot: a user who stops after k
    configurations retrains once, see `Step`.
    """
    now, started = 0.0, 0
    running: list[tuple[float, int, TrialRecord]] = []
    records: list[TrialRecord] = []
    while True:
        while len(running) < slots and (spec := method.ask()) is not None:
            started += 1
            record = table.record(spec, now)
            if spec.stage == "retrain":
                records.append(record)
                method.tell(record)
            else:
                heapq.heappush(running, (record.finished, started, record))
        if not running:
            return records
        now, _, record = heapq.heappop(running)
        records.append(record)
        method.tell(record)


def iterate_steps(records: Iterable[TrialRecord]) -> Iterator[Step]:
    """Iterate over the states of a method after 1, 2, ... configurations, in the order of their numbers.

    The best of the first k has the lowest validation NLL of those that went furthest; diverged ones rank last, and ties
    go to the first.
    """
    seconds, finished = dict[int, float](), dict[int, float]()
    last, retrained = dict[int, TrialRecord](), dict[int, TrialRecord]()
    for record in records:
        number = record.spec.number
        if number is None:
            raise ValueError(f"{record.spec.method} has no order of configurations: it has no anytime curve")
        if record.spec.stage == "retrain":
            retrained[number] = record
            continue
        seconds[number] = seconds.get(number, 0.0) + _cost(record)
        finished[number] = max(finished.get(number, 0.0), record.finished)
        if number not in last or record.spec.until > last[number].spec.until:
            last[number] = record
    spent = ready = 0.0
    best: tuple[float, float, int] | None = None
    for k, number in enumerate(sorted(last), start=1):
        spent, ready = spent + seconds[number], max(ready, finished[number])
        rank = _rank(last[number])
        best = rank if best is None else min(best, rank)
        chosen = retrained.get(best[2])
        more = 0.0 if chosen is None else _cost(chosen)
        accuracy = math.nan if chosen is None else chosen.metrics.get("test_acc", math.nan)
        yield Step(k, spent + more, accuracy, ready + more)


def _cost(record: TrialRecord) -> float:
    return sum(record.seconds.get(phase, 0.0) for phase in PHASES)


def _rank(record: TrialRecord) -> tuple[float, float, int]:
    value = record.metrics.get("val_nll", math.inf)
    finite = record.status == "completed" and math.isfinite(value)
    return -record.spec.until, value if finite else math.inf, record.spec.number or 0


def replay_method(
    benchmark: Benchmark,
    table: GridTable,
    name: str,
    settings: MethodSettings,
    repetitions: int,
    slots: int = 1,
    source: str = "",
) -> pd.DataFrame:
    """Replay an entry in the table's cell: a row per repetition and number of configurations, columns `COLUMNS`."""
    kind = method_named(settings.method)
    template = trial_template(benchmark, table.cell)
    rows = []
    for repetition in range(repetitions):
        method = kind(template, settings.model_copy(update={"seed": repetition}), name)
        for step in iterate_steps(simulate(method, table, slots)):
            rows.append((repetition, step.number, step.seconds / 3600, step.accuracy, step.wall_seconds / 3600))
    table_rows = pd.DataFrame(rows, columns=["repetition", "number", "hours", "test_acc", "wall_hours"])
    place = {name: getattr(table.cell, name) for name in ("dataset", "backbone", "prior", "n", "seed")}
    return table_rows.assign(source=source, method=name, cost=COST, slots=slots, **place)[COLUMNS]
