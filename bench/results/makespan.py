"""How long each method would have taken on G processors: greedy list scheduling of the recorded seconds."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.results.configurations import COSTS, configurations
from bench.results.frame import sort_rows

__all__ = ["Jobs", "makespan", "what_if"]


COLUMNS = ["dataset", "prior", "method", "n", "split_seed", "cost", "cells", "one_slot_seconds", "makespan_seconds"]
COLUMNS += ["slots", "backbone", "source"]


@dataclass(frozen=True)
class Jobs:
    """What a method ran in a cell, in seconds: ``first`` in any order, and ``then``, if any, after all those.

    ``order``: where each of ``first`` stands in the queue of all cells, least first; cell after cell if not given.
    """

    first: tuple[float, ...]
    then: float = 0.0
    order: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(self.first) + self.then


def makespan(cells: Sequence[Jobs], slots: int) -> float:
    """Seconds from the first start to the last end, each free slot taking the next job that may start.

    List scheduling is never worse than (2 - 1/slots) times the best schedule (Graham 1969, "Bounds on Multiprocessing
    Timing Anomalies").

    Raises:
        ValueError: ``slots`` is less than 1.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    queue = [
        (place, seconds, i)
        for i, jobs in enumerate(cells)
        for place, seconds in zip(jobs.order or [0.0] * len(jobs.first), jobs.first, strict=True)
    ]
    waiting = deque((seconds, cell) for _, seconds, cell in sorted(queue, key=lambda job: job[0]))
    left = [len(jobs.first) for jobs in cells]
    waiting.extend((jobs.then, i) for i, jobs in enumerate(cells) if jobs.then and not jobs.first)
    running: list[tuple[float, int]] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            seconds, cell = waiting.popleft()
            heapq.heappush(running, (now + seconds, cell))
        now, cell = heapq.heappop(running)
        left[cell] -= 1
        if left[cell] == 0 and cells[cell].then:
            waiting.append((cells[cell].then, cell))
    return now


def what_if(frame: pd.DataFrame, slots: int) -> pd.DataFrame:
    """The makespan of each method in each cell, and of all its cells together (dataset and prior "all"; n missing).

    Columns: dataset, prior, method, n, split_seed, cost ("train" or "full", as in `bench.results.curves`), cells,
    one_slot_seconds, makespan_seconds, slots, backbone, source. The runs queue in the order in which they were started,
    or where that was not kept, as in published files, stand in the file, cell after cell; of retraining runs that of
    the best counts, as in table 2. Cells whose best was never trained again are left out.

    Args:
        frame: as `RecordStore.frame` gives it.
        slots: how many trials run at once.
    """
    rows, together = [], dict[tuple[str, str, str], list[Jobs]]()
    for cost in COSTS:
        for cell, found in configurations(frame, cost):
            if not np.isfinite(found.retraining[0]):
                continue
            rows_in_order = np.argsort(found.judged)
            started = frame.loc[found.judged[rows_in_order], "started"].fillna(0)
            jobs = Jobs(tuple(found.tuning[rows_in_order]), float(found.retraining[0]), tuple(started))
            together.setdefault((str(cell["source"]), str(cell["method"]), cost), []).append(jobs)
            rows.append(cell | {"split_seed": cell["seed"], "cost": cost} | _row([jobs], slots))
    backbones = frame.groupby("source")["backbone"].unique()
    for (source, method, cost), cells in together.items():
        everything = {"dataset": "all", "prior": "all", "backbone": " ".join(backbones[source]), "source": source}
        rows.append(everything | {"method": method, "cost": cost} | _row(cells, slots))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "split_seed": "Int64"})
    return sort_rows(table, "split_seed", "cost")


def _row(cells: Sequence[Jobs], slots: int) -> dict[str, object]:
    return {
        "cells": len(cells),
        "one_slot_seconds": sum(jobs.seconds for jobs in cells),
        "makespan_seconds": makespan(cells, slots),
        "slots": slots,
    }
