"""Makespan of each method on G slots: greedy list scheduling of the recorded seconds."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.results.configurations import COSTS, iterate_configurations
from bench.results.frame import sort_rows

COLUMNS = ["dataset", "prior", "method", "n", "split_seed", "cost", "cells", "one_slot_seconds", "makespan_seconds"]
COLUMNS += ["slots", "backbone", "source"]


@dataclass(frozen=True)
class Jobs:
    """Seconds of a method's runs in a cell: ``first`` start at any time, ``then`` (0: none) after all of them.

    ``order`` has the place of each of ``first`` in the queue of all cells, lowest first; default: cell after cell.
    """

    first: tuple[float, ...]
    then: float = 0.0
    order: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all runs."""
        return sum(self.first) + self.then


def compute_makespan(cells: Sequence[Jobs], slots: int) -> float:
    """Compute the seconds from first start to last end, each free slot taking the next job that may start.

    List scheduling takes at most (2 - 1/slots) times as long as the best schedule (Graham 1969, "Bounds on
    Multiprocessing Timing Anomalies").
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    queue = [
        (place, seconds, i)
        for i, jobs in enumerate(cells)
        for place, seconds in zip(jobs.order or [0.0] * len(jobs.first), jobs.first, strict=True)
    ]
    waiting = deque((seconds, cell) for _, seconds, cell in sorted(queue, key=lambda job: job[0]))
    remaining = [len(jobs.first) for jobs in cells]
    waiting.extend((jobs.then, i) for i, jobs in enumerate(cells) if jobs.then and not jobs.first)
    running: list[tuple[float, int]] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            seconds, cell = waiting.popleft()
            heapq.heappush(running, (now + seconds, cell))
        now, cell = heapq.heappop(running)
        remaining[cell] -= 1
        if remaining[cell] == 0 and cells[cell].then:
            waiting.append((cells[cell].then, cell))
    return now


def compute_makespans(frame: pd.DataFrame, slots: int) -> pd.DataFrame:
    """Compute the makespan of each method in each cell, and of all its cells together: what_if.csv.

    Runs queue in the order in which they started, or where that was not recorded, as in published files, in the order
    of the file. Only the best configuration's retraining counts, as in table 2; cells without it are left out.
    """
    rows, together = [], dict[tuple[str, str, str], list[Jobs]]()
    for cost in COSTS:
        for cell, tried in iterate_configurations(frame, cost):
            if not np.isfinite(tried.retraining_seconds[0]):
                continue
            order = np.argsort(tried.selection_rows)
            started = frame.loc[tried.selection_rows[order], "started"].fillna(0)
            jobs = Jobs(tuple(tried.tuning_seconds[order]), float(tried.retraining_seconds[0]), tuple(started))
            together.setdefault((cell["source"], cell["method"], cost), []).append(jobs)
            rows.append(cell | {"split_seed": cell["seed"], "cost": cost} | _row([jobs], slots))
    backbones = frame.groupby("source")["backbone"].unique()
    for (source, method, cost), cells in together.items():
        all_cells = {"dataset": "all", "prior": "all", "backbone": " ".join(backbones[source]), "source": source}
        rows.append(all_cells | {"method": method, "cost": cost} | _row(cells, slots))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "split_seed": "Int64"})
    return sort_rows(table, "split_seed", "cost")


def _row(cells: Sequence[Jobs], slots: int) -> dict[str, object]:
    return {
        "cells": len(cells),
        "one_slot_seconds": sum(jobs.seconds for jobs in cells),
        "makespan_seconds": compute_makespan(cells, slots),
        "slots": slots,
    }
