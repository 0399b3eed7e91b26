"""`run`: what is missing of a benchmark, followed on the terminal and in MLflow, and its report."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.benchmark import Benchmark
from bench.checks import check, check_data, check_start, check_storage, claim
from bench.config import load_benchmark, one_line
from bench.console import command, console, short
from bench.methods import make_methods
from bench.names import METHOD_NAMES, PRIOR_NAMES, dataset_name
from bench.part import part_of
from bench.race import Race, Watcher
from bench.records import RecordStore
from bench.starts import load_starts

__all__ = ["run"]


class _Claim(Watcher):
    """Claims the storage when trials are about to start, and not before: refused input changes nothing."""

    def __init__(self, store: RecordStore, benchmark: Benchmark) -> None:
        self.store, self.benchmark = store, benchmark

    def began(self, race: Race, slots: int) -> None:
        claim(self.store, self.benchmark)


def run(
    config: str,
    storage: str | None,
    tracking: str | None,
    address: str | None,
    since: float,
    overrides: Sequence[str] = (),
    only: str | None = None,
) -> int:
    """Runs what is missing, follows it on the terminal and in MLflow, and draws the report."""
    benchmark = load_benchmark(config, overrides)
    check(benchmark)
    methods = part_of(make_methods(benchmark), only)
    store = RecordStore(storage or os.path.join("deelbo-runs", benchmark.name))
    from bench.mirror import ACCOUNT, MLflowMirror, tracking_uri
    from bench.tracking import Tracker

    uri = tracking_uri(store, tracking)
    check_storage(store, benchmark)
    if address is None:  # a Ray of this machine alone: have it listen on loopback, as it does by itself on macOS
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from bench.outcome import duration
    from bench.progress import Terminal
    from bench.report import write_report
    from bench.results import from_storage
    from bench.runner import run_benchmark

    if address is None:  # on a cluster the images are the workers' own
        check_data(store, benchmark, dict.fromkeys(method.cell.dataset for method in methods))
    console.print(f"{benchmark.name} in {short(store.url)}")
    pretrained = load_starts(benchmark, methods, say=console.print)
    check_start(store, pretrained)
    terminal, tracker = Terminal(console), Tracker(lambda: MLflowMirror(uri, benchmark, store))
    try:
        watchers = [_Claim(store, benchmark), terminal, tracker]
        outcome = run_benchmark(benchmark, store, pretrained, address, watchers, since, methods)
    finally:
        terminal.close()
    folder = Path(store.path("report")) if store.local else Path("deelbo-runs") / benchmark.name / "report"
    try:
        files = write_report([from_storage(store)], folder)
    except (ValueError, OSError) as error:  # the run's own account comes all the same
        files = {}
        console.print(f"no report: {one_line(error)}")
    account = {name: float(getattr(outcome, name)) for name in ACCOUNT} if outcome.ran else {}
    status = "KILLED" if outcome.left else "FAILED" if outcome.failed else "FINISHED"
    sent = tracker.stop(status, account, folder if files else None)
    console.print(outcome.describe())
    if not sent:
        again = f"{command()} sync {short(store.url)}" + (f" --tracking-uri {tracking}" if tracking else "")
        console.print(f"MLflow did not take everything ({tracker.problem}): `{again}` will")
    if files:
        _show_table3(pd.read_csv(files["table3.csv"]))
        console.print(f"report  {short(files['report.html'])}")
        if "figure2.png" in files:
            console.print(f"figure  {short(files['figure2.png'])}")
    where = f"{command()} ui {short(store.url)}" if tracking is None else tracking
    console.print(f"MLflow  {where}")
    for line in outcome.failures:
        console.print(f"failed  {line}")
    if outcome.ran:
        took = time.time() - since
        share = outcome.busy * outcome.wall_seconds / took
        console.print(f"the whole command took {duration(took)}; its slots were inside trials for {share:.0%} of that")
    if outcome.left:
        console.print(f"stopped with {outcome.left} trials left: the same command continues")
        return 130
    return 1 if outcome.failed else 0


def _show_table3(third: pd.DataFrame) -> None:
    """Mean (min-max) of each method in each prior and N, in the width of a terminal."""
    several = [name for name in ("dataset", "backbone") if third[name].nunique() > 1]
    published = bool(third["published_mean"].notna().any())
    title = "test accuracy (%, class-balanced), mean (min-max)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in [*several, "N", "Model", "method", "here", *["published"] * published]:
        table.add_column(name, justify="right" if name in ("N", "here", "published") else "left", no_wrap=True)
    before: list[str] = []
    for row in third.to_dict("records"):
        place = [*(dataset_name(str(row[name])) for name in several), str(row["n"])]
        if before and place != before:
            table.add_section()
        words = [PRIOR_NAMES[row["prior"]], METHOD_NAMES[row["method"]], _spread(row, "")]
        table.add_row(*place, *words, *[_spread(row, "published_")] * published)
        before = place
    console.print(table)


def _spread(row: Mapping[Hashable, Any], of: str) -> str:
    mean, least, most = (float(row[f"{of}{name}"]) for name in ("mean", "min", "max"))
    return f"{mean:.1f} ({least:.1f}-{most:.1f})" if math.isfinite(mean) else "-"
