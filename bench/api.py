"""A benchmark from Python, as from the command line: run it, or open its storage, and get tables and figures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError, ReportError
from bench.scheduling.queue import split_finished
from bench.session.run import RunOptions
from bench.session.run import run as run_session
from bench.storage.records import RecordStore, open_benchmark
from bench.trials.record import TrialRecord
from bench.utils.urls import TRACKING_URI_VARIABLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Result:
    """The trials in a storage, as tables and a figure, which are made when they are asked for and then stay the same.

    Attributes:
        storage: folder or URL of the records.
        failures: one line for each trial that failed in this call; the next call tries them again.
    """

    def __init__(self, store: RecordStore, benchmark: Benchmark, failures: Sequence[str] = ()) -> None:
        self.storage, self.failures = store.url, list(failures)
        self._store, self._benchmark = store, benchmark

    def __repr__(self) -> str:
        return f"<deelbo benchmark {self._benchmark.name}: {len(self._trials)} trials in {self.storage}>"

    @cached_property
    def records(self) -> pd.DataFrame:
        """All trials, one row each; docs/records.md describes the columns."""
        from bench.results.frame import to_frame

        return to_frame(self._trials)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The subsampling curves of the cells that a method has finished: report/curves.csv."""
        from bench.results.curves import compute_curves

        return compute_curves(self._finished)

    def chosen(self) -> pd.DataFrame:
        """Return what each method chose in each finished cell: strengths set or learned, test accuracy, seconds."""
        from bench.results.chosen import compute_chosen

        return compute_chosen(self._finished)

    def table3(self) -> pd.DataFrame:
        """Return the test accuracy of each method's choice over the split seeds, in percent: report/table3.csv."""
        from bench.results.tables import compute_table3

        return compute_table3(self._finished)

    def figure2(self, cost: Literal["train", "full"] = "train") -> Figure:
        """Draw the test accuracy against compute time; ``cost`` is that of training steps, or of everything.

        Raises:
            ReportError: none of the paper's methods has finished a cell.
        """
        from bench.report.figures.style import default_settings
        from bench.report.figures.subsampling import draw_subsampling, has_subsampling
        from bench.results.paper import find_paper_de_elbo

        if not has_subsampling(self.curves, cost):
            raise ReportError(f"{self.storage}: no curve to draw yet: let `run` finish map-gs, de-elbo or elbo")
        with default_settings():
            return draw_subsampling(self.curves, cost, find_paper_de_elbo(self.curves, ()))

    @cached_property
    def _trials(self) -> list[TrialRecord]:
        return list(self._store.records())

    @cached_property
    def _finished(self) -> pd.DataFrame:
        from bench.results.frame import to_frame

        finished = split_finished(make_methods(self._benchmark), self._trials)
        return to_frame(finished.records, ran=self._trials)


def run(
    config: str | os.PathLike[str] | Mapping[str, Any],
    storage: str | os.PathLike[str] | None = None,
    only: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    overrides: Sequence[str] = (),
    allow_import: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Run or continue a benchmark, as `deelbo-bench run` does, and draw its report into the storage.

    Args:
        config: a preset's name, a YAML file, or a dict of what such a file holds.
        storage: folder or fsspec URL for the records; by default ./deelbo-runs/NAME.
        only: a subset of the benchmark, such as "method=de-elbo,n=100".
        address: a Ray cluster; by default one is started on this machine and stopped afterwards, unless this process
            uses Ray already.
        tracking_uri: MLflow server or database; by default $DEELBO_TRACKING_URI, or a sqlite file in the storage.
        overrides: changes of the configuration, such as "training.steps=100".
        allow_import: packages from which the configuration may import networks.
        quiet: print nothing.

    Raises:
        ConfigError: bad input, in one line.
        RecordError: the storage cannot be used, or the run cannot go on; trials that have ended are kept.
        KeyboardInterrupt: it was stopped; the same call continues.
    """
    options = RunOptions(
        config if isinstance(config, Mapping) else os.fspath(config),
        None if storage is None else os.fspath(storage),
        only,
        address,
        os.environ.get(TRACKING_URI_VARIABLE) if tracking_uri is None else tracking_uri,
        overrides,
        [allow_import] if isinstance(allow_import, str) else allow_import,
    )
    console = Console(file=sys.stdout, quiet=quiet, soft_wrap=True, highlight=False, markup=False, emoji=False)
    outcome = run_session(options, console, time.time())
    summary = outcome.summary
    if summary.stop_reason:
        raise RecordError(summary.stop_reason)
    if summary.stop_reason is not None:
        raise KeyboardInterrupt(f"stopped with {summary.left} trials left: the same call continues")
    console.print(summary.describe())
    return Result(outcome.store, outcome.benchmark, summary.failures)


def load(storage: str | os.PathLike[str]) -> Result:
    """Open the storage of an earlier `run`, finished or not.

    Raises:
        RecordError: it holds no benchmark, or a damaged file.
    """
    return Result(*open_benchmark(os.fspath(storage)))
