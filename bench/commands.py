"""The commands that run trials, or say what would run."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pandas as pd
from rich.table import Table

from bench.config import Benchmark, ConfigError, load_benchmark, one_line, parse_benchmark
from bench.console import command, console, short
from bench.methods import make_methods
from bench.names import METHOD_NAMES, PRIOR_NAMES
from bench.race import Race, Watcher
from bench.records import RecordError, RecordStore
from bench.words import for_people
from deelbo.backbones import BACKBONES, build_backbone
from deelbo.pretraining import load_pretrained
from deelbo.tasks import TASKS
from deelbo.tasks.splits import check_size

__all__ = ["check", "claim", "plan", "run"]


def check(benchmark: Benchmark) -> None:
    """What the configuration's types cannot say: that dataset, backbone, head and sizes exist and fit together.

    Raises:
        ConfigError: they do not.
    """
    if benchmark.dataset not in TASKS:
        raise ConfigError(f"dataset = {benchmark.dataset!r}: expected one of {', '.join(sorted(TASKS))}")
    if benchmark.backbone not in BACKBONES:
        raise ConfigError(f"backbone = {benchmark.backbone!r}: expected one of {', '.join(sorted(BACKBONES))}")
    task = TASKS[benchmark.dataset]
    try:
        for n in benchmark.n:
            check_size(n, task.pool_size, task.num_classes)
        if benchmark.head is not None:
            build_backbone(benchmark.backbone, task.num_classes, head=benchmark.head)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if benchmark.resources.gpus_per_trial and not benchmark.resources.gpus_per_trial <= 1:
        raise ConfigError(f"resources.gpus_per_trial = {benchmark.resources.gpus_per_trial:g}: a trial uses 1 at most")


def check_storage(store: RecordStore, benchmark: Benchmark) -> None:
    """Raises RecordError where the storage holds another benchmark, or something else."""
    there = store.read_benchmark()
    if there is not None:
        before = parse_benchmark(there, store.path("benchmark.json")).settings_that_bind()
        now = benchmark.settings_that_bind()
        changed = [f"{name} was {before[name]!r} and is now {now[name]!r}" for name in now if now[name] != before[name]]
        if changed:
            raise RecordError(f"{store.url} holds another benchmark ({changed[0]}): choose another --storage")


def claim(store: RecordStore, benchmark: Benchmark) -> None:
    """Makes the storage this benchmark's, or takes up what changed in it. Raises as `check_storage` does."""
    check_storage(store, benchmark)
    store.write_benchmark(benchmark.content())


class _Claim(Watcher):
    """Claims the storage when trials are about to start, and not before: refused input changes nothing."""

    def __init__(self, store: RecordStore, benchmark: Benchmark) -> None:
        self.store, self.benchmark = store, benchmark

    def began(self, race: Race, slots: int) -> None:
        claim(self.store, self.benchmark)


def check_start(store: RecordStore, fingerprint: str) -> None:
    """Raises RecordError where trials of this storage started from other pretrained weights than those at hand."""
    for record in store.records():
        found = record.versions.get("pretrained", fingerprint)
        if found != fingerprint:
            raise RecordError(
                f"{store.url} holds trials that started from pretrained weights {found}, here they are {fingerprint} "
                "(another torch, or another machine): choose another --storage"
            )


def run(config: str, storage: str | None, tracking: str | None, address: str | None, since: float) -> int:
    """Runs what is missing, follows it on the terminal and in MLflow, and draws the report."""
    benchmark = load_benchmark(config)
    check(benchmark)
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

    console.print(f"{benchmark.name} in {short(store.url)}")
    pretrained = load_pretrained(say=console.print)
    check_start(store, pretrained.fingerprint)
    terminal, tracker = Terminal(console), Tracker(lambda: MLflowMirror(uri, benchmark, store))
    try:
        outcome = run_benchmark(
            benchmark, store, pretrained, address, [_Claim(store, benchmark), terminal, tracker], since
        )
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


def plan(config: str, seconds_per_step: float | None) -> int:
    """Prints how many trials each method takes in each prior and N, and the hours where a step's seconds are known."""
    benchmark = load_benchmark(config)
    check(benchmark)
    if seconds_per_step is not None and not seconds_per_step > 0:
        raise ConfigError(f"--seconds-per-step must be a positive number, got {seconds_per_step}")
    counts: Counter[tuple[str, str, int]] = Counter()
    for method in make_methods(benchmark):
        counts[method.cell.prior, method.name, method.cell.n] += method.count()
    table = Table(title=f"{benchmark.name}: {len(benchmark.seeds)} seeds, {benchmark.training.steps} steps a trial")
    for name in ("Model", "method", "N", "trials", "hours"):
        table.add_column(name, justify="left" if name in ("Model", "method") else "right")
    for (prior, method_name, n), count in counts.items():
        hours = "" if seconds_per_step is None else f"{count * benchmark.training.steps * seconds_per_step / 3600:.2f}"
        table.add_row(PRIOR_NAMES[prior], METHOD_NAMES[method_name], str(n), str(count), hours)
    total = sum(counts.values())
    table.add_section()
    hours = "" if seconds_per_step is None else f"{total * benchmark.training.steps * seconds_per_step / 3600:.2f}"
    table.add_row("all", "", "", str(total), hours)
    console.print(table)
    if seconds_per_step is None:
        console.print("hours: give --seconds-per-step, as `speed` measures it where the trials will run")
    return 0


def _show_table3(third: pd.DataFrame) -> None:
    rows = for_people(third)
    table = Table(title="test accuracy (%, class-balanced)", title_justify="left")
    for column in rows.columns:
        table.add_column(column, justify="left" if column in ("Model", "method", "dataset") else "right")
    for row in rows.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)
