"""A finished grid as a table that answers trials, at any fraction of their run, without training.

The result of a run depends on its settings and its cell, not on the method that proposed it. Tabular benchmarks do the
same (Klein and Hutter 2019, "Tabular Benchmarks for Joint Architecture and Hyperparameter Optimization").
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from statistics import median
from typing import Literal, NamedTuple

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError
from bench.methods.base import MethodSettings
from bench.methods.grid_search import Grid, MAPGridSearch
from bench.results.configurations import COSTS
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec
from deelbo.training.schedule import stop_epoch

Series = Callable[[str], list[dict[str, float]]]
"""Function from the key of a trial to its rows over the epochs."""
Point = tuple[float, float | None, float | None, float | None]
STRENGTHS = ("weight_decay", "head_weight_decay", "prior_scale")
MAX_EPOCHS_NAMED = 8
PHASES = tuple(name.removesuffix("_seconds") for name in COSTS["full"])
"""Phases of the clock that count as compute."""


class Answer(NamedTuple):
    """Result of a trial as in its record; ``seconds`` of the phases that count as compute, ``cost`` their sum."""

    status: Literal["completed", "diverged", "failed"]
    metrics: dict[str, float]
    seconds: dict[str, float]
    cost: float


class GridTable:
    """The finished grid of a cell: a completed or diverged tuning run and a retrained run of each configuration.

    ``series`` are needed only for trials that stop before their end. ``checkpoint_seconds``, which a segment of a run
    takes to save or load its checkpoint, are measured elsewhere, as a grid has no segments; None counts as 0.
    """

    def __init__(
        self,
        grid: MAPGridSearch,
        tuned: Sequence[TrialRecord],
        retrained: Sequence[TrialRecord],
        series: Series,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self.grid, self.cell, self.checkpoint_seconds = grid, grid.cell, checkpoint_seconds
        self.timed = all(record.timed for record in [*tuned, *retrained])
        self._tuned = {_point(record.spec): record for record in tuned}
        self._retrained = {_point(record.spec): record for record in retrained}
        self._read = series
        self._rows: dict[Point, list[dict[str, float]]] = {}
        self._answers: dict[tuple[Point, str, float, float], Answer] = {}

    def check(self, name: str, settings: MethodSettings) -> None:
        """Check that the table can answer all trials that a method with these settings may propose."""
        if not isinstance(settings, Grid):
            raise RecordError(f"{name} has no lists of learning rates and strengths: it cannot be replayed")
        for point in settings.points(self.cell.prior):
            if (point.get("learning_rate", math.nan), *map(point.get, STRENGTHS)) not in self._tuned:
                shown = ", ".join(f"{field} {value:g}" for field, value in point.items())
                raise RecordError(
                    f"{describe_cell(self.cell)}: {name} may try {shown}, which is not in the grid of {len(self)} "
                    "configurations: replay the grid's own learning rates and strengths"
                )
        for fraction in getattr(settings, "rungs", ()):
            for tuned in self._tuned:
                self._row(tuned, fraction)

    def __len__(self) -> int:
        return len(self._tuned)

    def answer(self, spec: TrialSpec) -> Answer:
        """Look up the result of a trial.

        A trial that stops early gets the validation NLL and accuracy of the whole run at the epoch of the stop, the
        seconds of training from its start, and those of the whole run's pass over the validation images. Segments also
        take ``checkpoint_seconds``.
        """
        point = _point(spec)
        key = point, spec.stage, spec.since, spec.until
        if (found := self._answers.get(key)) is None:
            if spec.stage == "run" or spec.learner is not None or spec.optimizer != "sgd":
                raise ValueError(f"{spec.method} does not train as a grid does: it cannot be replayed")
            if point not in self._tuned:
                raise ValueError(
                    f"{spec.describe()} is not in the grid of {len(self)} configurations: replay the grid's own "
                    "learning rates and strengths"
                )
            found = self._answers[key] = (
                self._retraining(point) if spec.stage == "retrain" else self._tuning(point, spec.since, spec.until)
            )
        return found

    def record(self, spec: TrialSpec, started: float) -> TrialRecord:
        """Return `answer` as a record of a trial that starts ``started`` seconds after the first one."""
        status, metrics, seconds, cost = self.answer(spec)
        return TrialRecord(spec, status, metrics, {}, seconds, started, started + cost, timed=self.timed)

    def _retraining(self, point: Point) -> Answer:
        record = self._retrained[point]
        return _answer(record.status, record.metrics, {name: record.seconds.get(name, 0.0) for name in PHASES})

    def _tuning(self, point: Point, since: float, until: float) -> Answer:
        record = self._tuned[point]
        if (since, until) == (0, 1):
            return _answer(record.status, record.metrics, {name: record.seconds.get(name, 0.0) for name in PHASES})
        before = self._row(point, since)["train_seconds"] if since > 0 else 0.0
        checkpoint = {"checkpoint": self.checkpoint_seconds or 0.0}
        if until == 1:
            seconds = {name: record.seconds.get(name, 0.0) for name in PHASES} | checkpoint
            return _answer(record.status, record.metrics, seconds | {"train": max(seconds["train"] - before, 0.0)})
        row = self._row(point, until)
        metrics = {name: row.get(name, math.nan) for name in ("train_nll", "val_nll", "val_acc")}
        completed = all(map(math.isfinite, metrics.values()))
        seconds = dict.fromkeys(PHASES, 0.0) | checkpoint | {"train": max(row["train_seconds"] - before, 0.0)}
        if row["epoch"] >= stop_epoch(until, self._epochs):  # it did not diverge before
            seconds["evaluate"] = record.seconds.get("evaluate", 0.0) or self._validation_seconds
        return _answer("completed" if completed else "diverged", metrics, seconds)

    def _row(self, point: Point, fraction: float) -> dict[str, float]:
        """Row at the epoch of a fraction of the run; the last row of a run that diverged before."""
        rows, stop = self._series(point), stop_epoch(fraction, self._epochs)
        for row in rows:
            if row["epoch"] == stop:
                return row
        if rows[-1]["epoch"] < stop and self._tuned[point].status == "diverged":
            return rows[-1]
        epochs = [f"{row['epoch']:g}" for row in rows]
        shown = ", ".join(
            epochs if len(epochs) <= MAX_EPOCHS_NAMED else [*epochs[: MAX_EPOCHS_NAMED - 1], "...", epochs[-1]]
        )
        raise RecordError(
            f"{describe_cell(self.cell)}: a stop at {fraction:g} of the run is after epoch {stop} of {self._epochs}, "
            f"and the grid's series have epochs {shown}: choose shares that fall on them, or run a grid with more "
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
        """Epochs of a whole run: those of the longest, as diverged runs end early."""
        return int(max(self._series(point)[-1]["epoch"] for point in self._tuned))

    @cached_property
    def _validation_seconds(self) -> float:
        """Mean seconds of a pass over the validation images, for runs that diverged before theirs was timed."""
        passes = [record.seconds.get("evaluate", 0.0) for record in self._tuned.values()]
        timed = [seconds for seconds in passes if seconds > 0]
        return sum(timed) / len(timed) if timed else 0.0


def load_grid_tables(store: RecordStore, benchmark: Benchmark) -> tuple[list[GridTable], list[str]]:
    """Load the table of each cell's largest finished grid, and describe why other cells have none.

    Raises:
        RecordError: no cell has a finished grid.
    """
    records = {record.key: record for record in store.records([]) if record.succeeded}
    checkpoint_medians = _checkpoint_medians(records.values())
    tables: dict[Cell, GridTable] = {}
    left_out: dict[Cell, str] = {}
    for method in make_methods(benchmark):
        if not isinstance(method, MAPGridSearch):
            continue
        specs = list(method.grid)
        tuned = [records[spec.key] for spec in specs if spec.key in records]
        retrained = [records[key] for spec in specs if (key := method.retraining(spec).key) in records]
        name = f"{method.name} {describe_cell(method.cell)}"
        if len(tuned) < len(specs):
            problem = f"{len(tuned)} of {len(specs)} configurations are tuned"
        elif not any(record.status == "completed" for record in tuned):
            problem = "every tuning run diverged"
        elif len(retrained) < len(specs):
            problem = f"{len(retrained)} of {len(specs)} configurations are retrained on all images (retrain: all)"
        else:
            if method.cell not in tables or len(specs) > len(tables[method.cell]):
                checkpoint_seconds = checkpoint_medians.get(method.cell.backbone)
                tables[method.cell] = GridTable(method, tuned, retrained, store.series, checkpoint_seconds)
            continue
        left_out[method.cell] = f"{name}: {problem}"
    lines = [line for cell, line in left_out.items() if cell not in tables]
    if not tables:
        why = f" ({lines[0]}{f'; and {len(lines) - 1} more' if len(lines) > 1 else ''})" if lines else ""
        raise RecordError(
            f"{store.url} has no finished grid to replay{why}: run map-gs with retrain: all in a cell at least"
        )
    return list(tables.values()), lines


def _checkpoint_medians(records: Iterable[TrialRecord]) -> dict[str, float]:
    """Median seconds of saving and loading checkpoints by backbone, over segments of tuning runs."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        spec = record.spec
        segment = spec.stage == "tune" and (spec.since, spec.until) != (0, 1)
        if segment and (took := record.seconds.get("checkpoint", 0.0)) > 0:
            found[spec.backbone].append(took)
    return {backbone: median(seconds) for backbone, seconds in found.items()}


def describe_cell(cell: Cell) -> str:
    """Describe a cell in messages."""
    return f"{cell.dataset} {cell.backbone} {cell.prior} N = {cell.n} seed {cell.seed}"


def _point(spec: TrialSpec) -> Point:
    return spec.learning_rate, spec.weight_decay, spec.head_weight_decay, spec.prior_scale


def _answer(
    status: Literal["completed", "diverged", "failed"], metrics: dict[str, float], seconds: dict[str, float]
) -> Answer:
    return Answer(status, metrics, seconds, sum(seconds.values()))
