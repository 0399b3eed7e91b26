"""A finished grid as a table: what any trial on it came to, at any share of its run, without training anything.

What a run comes to depends on its settings and its cell, and not on which method asked for it; so a grid of which every
configuration was tuned and trained again answers whatever another method asks for on that grid. Tabular benchmarks do
the same (Klein and Hutter 2019, "Tabular Benchmarks for Joint Architecture and Hyperparameter Optimization").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from statistics import median
from typing import NamedTuple

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError
from bench.methods.base import MethodSettings
from bench.methods.grid_search import Grid, MAPGridSearch
from bench.results.configurations import COSTS
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec
from deelbo.training.schedule import stop_epoch

__all__ = ["PHASES", "Answer", "GridTable", "Series", "describe_cell", "load_grid_tables"]


Series = Callable[[str], list[dict[str, float]]]
"""A trial's rows over the epochs, by its key."""
Point = tuple[float, float | None, float | None, float | None]
STRENGTHS = ("weight_decay", "head_weight_decay", "prior_scale")
MOST_NAMED = 8
PHASES = tuple(name.removesuffix("_seconds") for name in COSTS["full"])
"""Of the clock, those that count as compute."""


class Answer(NamedTuple):
    """What a trial came to.

    Attributes:
        status: "completed" or "diverged".
        metrics, seconds: as in a record; seconds are those that count as compute.
        cost: their sum.
    """

    status: str
    metrics: dict[str, float]
    seconds: dict[str, float]
    cost: float


class GridTable:
    """A cell's finished grid.

    Args:
        grid: the grid search that ran in the cell.
        tuned: the tuning runs, one for each configuration; each completed or diverged.
        retrained: the same configurations on all N images.
        series: of the tuning runs; asked for only where a trial stops before its end.
        handover: seconds that a part of a run takes to keep its state, or to take up that of the part before; a grid
            has no parts, so they are measured elsewhere. None: nowhere, and they count as nothing.

    Attributes:
        grid: the grid search.
        cell: where.
        handover: as given.
        timed: whether its seconds are a measurement.
    """

    def __init__(
        self,
        grid: MAPGridSearch,
        tuned: Sequence[TrialRecord],
        retrained: Sequence[TrialRecord],
        series: Series,
        handover: float | None = None,
    ) -> None:
        self.grid, self.cell, self.handover = grid, grid.cell, handover
        self.timed = all(record.timed for record in [*tuned, *retrained])
        self._tuned = {_point(record.spec): record for record in tuned}
        self._retrained = {_point(record.spec): record for record in retrained}
        self._read = series
        self._rows: dict[Point, list[dict[str, float]]] = {}
        self._answers: dict[tuple[Point, str, float, float], Answer] = {}

    def check(self, name: str, settings: MethodSettings) -> None:
        """Whether the table can answer all that an entry with these settings may ask for, whatever its seed.

        Raises:
            RecordError: a configuration that is not in the grid, or a rung at whose epoch some run has no row; in one
                line that names it and the cell.
        """
        if not isinstance(settings, Grid):
            raise RecordError(f"{name} has no lists of learning rates and strengths: it cannot be replayed")
        for point in settings.points(self.cell.prior):
            if (point.get("learning_rate", math.nan), *map(point.get, STRENGTHS)) not in self._tuned:
                shown = ", ".join(f"{field} {value:g}" for field, value in point.items())
                raise RecordError(
                    f"{describe_cell(self.cell)}: {name} may try {shown}, which is not in the grid of {len(self)} "
                    "configurations: replay the grid's own learning rates and strengths"
                )
        for share in getattr(settings, "rungs", ()):
            for asked in self._tuned:
                self._row(asked, share)

    def __len__(self) -> int:
        return len(self._tuned)

    def answer(self, spec: TrialSpec) -> Answer:
        """What that trial came to.

        A trial that stops at a share of its run is answered from the series of the run that went on: its validation NLL
        and accuracy at the epoch of the stop, its seconds those of training from where it began, and of one pass over
        the validation images, as the run's own last look took. A part of a run also takes ``handover`` seconds.
        Retraining is answered by the retrained run.

        Raises:
            ValueError: a trial of another kind, or of settings that are not in the grid.
            RecordError: the series do not have the epoch of the stop.
        """
        point = _point(spec)
        asked = point, spec.stage, spec.since, spec.until
        if (found := self._answers.get(asked)) is None:
            if spec.stage == "run" or spec.learner is not None or spec.optimizer != "sgd":
                raise ValueError(
                    f"{spec.method} trains in a way of its own, which no grid holds: it cannot be replayed"
                )
            if point not in self._tuned:
                raise ValueError(
                    f"{spec.describe()} is not in the grid of {len(self)} configurations: replay the grid's own "
                    "learning rates and strengths"
                )
            found = self._answers[asked] = self._retraining(point) if spec.stage == "retrain" else self._tuning(*asked)
        return found

    def record(self, spec: TrialSpec, started: float) -> TrialRecord:
        """The same as a record of a trial that began ``started`` seconds after the first and ends when its compute is
        spent. Raises what `answer` does."""
        status, metrics, seconds, cost = self.answer(spec)
        return TrialRecord(spec, status, metrics, {}, seconds, started, started + cost, timed=self.timed)

    def _retraining(self, point: Point) -> Answer:
        record = self._retrained[point]
        return _answer(record.status, record.metrics, {name: record.seconds.get(name, 0.0) for name in PHASES})

    def _tuning(self, point: Point, stage: str, since: float, until: float) -> Answer:
        record = self._tuned[point]
        if (since, until) == (0, 1):
            return _answer(record.status, record.metrics, {name: record.seconds.get(name, 0.0) for name in PHASES})
        before = self._row(point, since)["train_seconds"] if since > 0 else 0.0
        handed = {"checkpoint": self.handover or 0.0}
        if until == 1:
            seconds = {name: record.seconds.get(name, 0.0) for name in PHASES} | handed
            return _answer(record.status, record.metrics, seconds | {"train": max(seconds["train"] - before, 0.0)})
        row = self._row(point, until)
        metrics = {name: row.get(name, math.nan) for name in ("train_nll", "val_nll", "val_acc")}
        completed = all(map(math.isfinite, metrics.values()))
        seconds = dict.fromkeys(PHASES, 0.0) | handed | {"train": max(row["train_seconds"] - before, 0.0)}
        if row["epoch"] >= stop_epoch(until, self._epochs):  # it came as far as its last look
            seconds["evaluate"] = record.seconds.get("evaluate", 0.0) or self._a_pass
        return _answer("completed" if completed else "diverged", metrics, seconds)

    def _row(self, point: Point, share: float) -> dict[str, float]:
        """The row at the epoch at which a share of the run is trained; the last one of a run that diverged before."""
        rows, stop = self._series(point), stop_epoch(share, self._epochs)
        for row in rows:
            if row["epoch"] == stop:
                return row
        if rows[-1]["epoch"] < stop and self._tuned[point].status == "diverged":
            return rows[-1]
        epochs = [f"{row['epoch']:g}" for row in rows]
        shown = ", ".join(epochs if len(epochs) <= MOST_NAMED else [*epochs[: MOST_NAMED - 1], "...", epochs[-1]])
        raise RecordError(
            f"{describe_cell(self.cell)}: a stop at {share:g} of the run is after epoch {stop} of {self._epochs}, and "
            f"the grid's series have epochs {shown}: choose shares that fall on them, or run a grid with more "
            "training.series_points"
        )

    def _series(self, point: Point) -> list[dict[str, float]]:
        if point not in self._rows:
            rows = self._read(self._tuned[point].key)
            if not rows or any("epoch" not in row or "train_seconds" not in row for row in rows):
                raise RecordError(
                    f"{describe_cell(self.cell)}: the grid's run {self._tuned[point].key} has no series of epochs, "
                    "which a method that stops runs early needs: run the grid again, or replay other methods"
                )
            self._rows[point] = rows
        return self._rows[point]

    @cached_property
    def _epochs(self) -> int:
        """Of a whole run: those of the longest, since a run that diverged ended early."""
        return int(max(self._series(point)[-1]["epoch"] for point in self._tuned))

    @cached_property
    def _a_pass(self) -> float:
        """Mean seconds of one pass over the validation images, for runs that diverged before theirs was timed."""
        passes = [record.seconds.get("evaluate", 0.0) for record in self._tuned.values()]
        timed = [seconds for seconds in passes if seconds > 0]
        return sum(timed) / len(timed) if timed else 0.0


def load_grid_tables(store: RecordStore, benchmark: Benchmark) -> tuple[list[GridTable], list[str]]:
    """The table of each cell whose grid is finished, and a line for each cell that has none, saying why.

    Where several entries of a benchmark are grid searches, a cell's table is the largest that is finished. Its
    ``handover`` is the median of what parts of tuning runs took that were really trained here, with the same backbone:
    what is kept is as large as the backbone, and larger where a posterior is learned.

    Raises:
        RecordError: no cell has one.
    """
    records = {record.key: record for record in store.records([]) if record.succeeded}
    handovers = _handovers(records.values())
    tables: dict[Cell, GridTable] = {}
    left_out: dict[Cell, str] = {}
    for method in make_methods(benchmark):
        if not isinstance(method, MAPGridSearch):
            continue
        specs = list(method.grid)
        tuned = [records[spec.key] for spec in specs if spec.key in records]
        again = [records[key] for spec in specs if (key := method.retraining(spec).key) in records]
        name = f"{method.name} {describe_cell(method.cell)}"
        if len(tuned) < len(specs):
            problem = f"{len(tuned)} of {len(specs)} configurations are tuned"
        elif not any(record.status == "completed" for record in tuned):
            problem = "every tuning run diverged"
        elif len(again) < len(specs):
            problem = f"{len(again)} of {len(specs)} configurations are trained again on all images (retrain: all)"
        else:
            if method.cell not in tables or len(specs) > len(tables[method.cell]):
                handover = handovers.get(method.cell.backbone)
                tables[method.cell] = GridTable(method, tuned, again, store.series, handover)
            continue
        left_out[method.cell] = f"{name}: {problem}"
    lines = [line for cell, line in left_out.items() if cell not in tables]
    if not tables:
        why = f" ({lines[0]}{f'; and {len(lines) - 1} more' if len(lines) > 1 else ''})" if lines else ""
        raise RecordError(
            f"{store.url} has no finished grid to replay{why}: run map-gs with retrain: all in a cell at least"
        )
    return list(tables.values()), lines


def _handovers(records: Iterable[TrialRecord]) -> dict[str, float]:
    """Median seconds of handing over, by backbone; without those of which there is no part of a tuning run."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        spec = record.spec
        part = spec.stage == "tune" and (spec.since, spec.until) != (0, 1)
        if part and (took := record.seconds.get("checkpoint", 0.0)) > 0:
            found[spec.backbone].append(took)
    return {backbone: median(seconds) for backbone, seconds in found.items()}


def describe_cell(cell: Cell) -> str:
    """A cell, for people."""
    return f"{cell.dataset} {cell.backbone} {cell.prior} N = {cell.n} seed {cell.seed}"


def _point(spec: TrialSpec) -> Point:
    return spec.learning_rate, spec.weight_decay, spec.head_weight_decay, spec.prior_scale


def _answer(status: str, metrics: dict[str, float], seconds: dict[str, float]) -> Answer:
    return Answer(status, metrics, seconds, sum(seconds.values()))
