"""Other methods on a grid that has been run: thousands of repetitions of each in the time of reading a table.

A replay drives the very methods of `bench.methods` by ask and tell, their trials answered by a `GridTable` instead of
by training, on a clock that is simulated. Repetition r is the method with ``seed: r``.
"""

from __future__ import annotations

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

__all__ = ["COLUMNS", "Step", "iterate_steps", "replay_method", "simulate"]


COST = "full"
COLUMNS = ["source", "dataset", "backbone", "prior", "n", "seed", "method", "repetition", "number", "hours", "test_acc"]
COLUMNS += ["cost", "wall_hours", "slots"]


@dataclass(frozen=True)
class Step:
    """What a method has after its first configurations.

    Attributes:
        number: how many; configurations that were given up count.
        seconds: of compute: all that these configurations took, and training the best of them on all N images.
        accuracy: the best one's test accuracy, 0 to 1; NaN where it was not trained again. Then ``seconds`` and
            ``wall_seconds`` are of tuning alone.
        wall_seconds: until the last of them is decided, and the best one trained again.
    """

    number: int
    seconds: float
    accuracy: float
    wall_seconds: float


def simulate(method: Method, table: GridTable, slots: int = 1) -> list[TrialRecord]:
    """All trials of a method in the table's cell, as they end on so many slots at once.

    A free slot takes what the method asks for at that moment, and holds it for the seconds that count as compute; setup
    and monitoring are no method's. Trials that end together are told in the order in which they began. Training again
    takes no slot: who stops after k configurations does it once, see `Step`.

    Raises:
        ValueError: the method asks for what is not in the table.
    """
    now, began = 0.0, 0
    running: list[tuple[float, int, TrialRecord]] = []
    ended: list[TrialRecord] = []
    while True:
        while len(running) < slots and (spec := method.ask()) is not None:
            began += 1
            record = table.record(spec, now)
            if spec.stage == "retrain":
                ended.append(record)
                method.tell(record)
            else:
                heapq.heappush(running, (record.finished, began, record))
        if not running:
            return ended
        now, _, record = heapq.heappop(running)
        ended.append(record)
        method.tell(record)


def iterate_steps(records: Iterable[TrialRecord]) -> Iterator[Step]:
    """What the method of these records has after 1, 2, ... configurations, in the order of their numbers.

    Of the first k, the best is the one with the lowest validation NLL of those that went furthest; one that diverged is
    behind all that did not, and of equals the first counts.
    """
    seconds, decided = dict[int, float](), dict[int, float]()
    last, again = dict[int, TrialRecord](), dict[int, TrialRecord]()
    for record in records:
        number = record.spec.number
        if number is None:
            raise ValueError(f"{record.spec.method} has no order of configurations: it has no anytime curve")
        if record.spec.stage == "retrain":
            again[number] = record
            continue
        seconds[number] = seconds.get(number, 0.0) + _cost(record)
        decided[number] = max(decided.get(number, 0.0), record.finished)
        if number not in last or record.spec.until > last[number].spec.until:
            last[number] = record
    spent = ready = 0.0
    best: tuple[float, float, int] | None = None
    for k, number in enumerate(sorted(last), start=1):
        spent, ready = spent + seconds[number], max(ready, decided[number])
        rank = _rank(last[number])
        best = rank if best is None else min(best, rank)
        chosen = again.get(best[2])
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
    """An entry in the table's cell, so often: a row for each repetition and number of configurations.

    Columns: `COLUMNS`. ``hours`` and ``wall_hours`` are those of `Step`; ``cost`` is "full": training and what the
    method needs besides, as in `bench.results.configurations.COSTS`.

    Raises:
        ValueError: the method asks for what is not in the table.
    """
    kind = method_named(settings.method)
    template = trial_template(benchmark, table.cell)
    rows = []
    for repetition in range(repetitions):
        method = kind(template, settings.model_copy(update={"seed": repetition}), name)
        for step in iterate_steps(simulate(method, table, slots)):
            rows.append((repetition, step.number, step.seconds / 3600, step.accuracy, step.wall_seconds / 3600))
    found = pd.DataFrame(rows, columns=["repetition", "number", "hours", "test_acc", "wall_hours"])
    place = {name: getattr(table.cell, name) for name in ("dataset", "backbone", "prior", "n", "seed")}
    return found.assign(source=source, method=name, cost=COST, slots=slots, **place)[COLUMNS]
