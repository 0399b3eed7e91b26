"""`run`: what is missing of a benchmark, followed on the terminal and in MLflow, and its report."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.cli.console import command, console, short
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark
from bench.config.selection import filter_methods
from bench.config.validation import check, check_data, check_packages
from bench.exceptions import RecordError
from bench.execution.pretrained import load_pretrained_backbones
from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.methods.base import Method
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.scheduling.resume import check_same_inputs, load_for_resume
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from bench.storage.retry import OUTAGE, Patience
from bench.tracking.client import tracking_uri
from bench.trials.record import TrialRecord
from bench.utils.signals import stopped_by_signals
from bench.utils.text import redact_url, single_line
from deelbo.pretrained.embedded import Pretrained

__all__ = ["run"]


STOPPED = 130
MANY_EVENTS = 100


class _Claim(RunCallback):
    """Makes the storage this benchmark's, or takes up what changed in it, when trials are about to start and not
    before: refused input changes nothing."""

    def __init__(self, store: RecordStore, benchmark: Benchmark) -> None:
        self.store, self.benchmark, self.done = store, benchmark, False
        self._reused: list[TrialRecord] = []
        self._known = 0

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        self.done = True
        self._reused, self._known = queue.reused, len(queue.reused)
        self.store.write_benchmark(self.benchmark.content())

    def taken_up_later(self) -> list[TrialRecord]:
        """Records that were there before, and of which a method asked only once others had their result again."""
        return self._reused[self._known :]


@dataclass(frozen=True)
class _Where:
    """What was given on the command line about places."""

    tracking: str | None
    address: str | None


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
    methods = filter_methods(make_methods(benchmark), only)
    check_packages(methods)
    store = RecordStore(storage or os.path.join("deelbo-runs", benchmark.name))
    where = _Where(tracking, address)
    try:
        with stopped_by_signals():
            return _run_in(store, benchmark, methods, where, since)
    except KeyboardInterrupt:
        console.print(f"stopped: the same command continues what is in {short(redact_url(store.url))}")
        return STOPPED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RecordError(
            f"{single_line(error)}: make room for {redact_url(store.url)}, or in the folder for temporary "
            "files; what is kept "
            "stays, and the same command continues"
        ) from error


def _run_in(
    store: RecordStore,
    benchmark: Benchmark,
    methods: Sequence[Method],
    where: _Where,
    since: float,
) -> int:
    """`run` in one storage, which is locked."""
    uri = tracking_uri(store, where.tracking)
    with StorageLock(store, taken_away=lambda: os.kill(os.getpid(), signal.SIGTERM)) as lock:
        store.patience = Patience(OUTAGE, console.print)
        if lock.predecessor is not None:
            console.print(f"the last run here was killed ({lock.predecessor.describe()}): going on from its records")
        records, set_aside = load_for_resume(store, benchmark, console.print)
        console.print(f"{benchmark.name} in {short(redact_url(store.url))}")
        # on a cluster the workers read the images
        data = check_data(benchmark, dict.fromkeys(m.cell.dataset for m in methods)) if where.address is None else {}
        starts = load_pretrained_backbones(benchmark, methods, say=console.print)
        check_same_inputs(store, records, data, starts)
        died = lock.predecessor.beat if lock.predecessor is not None else None
        attempts = AttemptLog(store, records, set_aside, died)
        lock.taken_up = True
        return _race(lock, records, attempts, benchmark, methods, starts, where, uri, since)


def _race(
    lock: StorageLock,
    records: Sequence[TrialRecord],
    attempts: AttemptLog,
    benchmark: Benchmark,
    methods: Sequence[Method],
    starts: Mapping[str, Pretrained],
    where: _Where,
    uri: str,
    since: float,
) -> int:
    """Runs what is missing, and says what came of it; ``uri``: of MLflow, wherever it was named."""
    if where.address is None:  # a Ray of this machine alone: have it listen on loopback, as it does by itself on macOS
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from bench.cli.progress import ProgressDisplay
    from bench.ray_backend.tuner import run_benchmark
    from bench.tracking.mirror import ACCOUNT, MLflowMirror
    from bench.tracking.tracker import Tracker
    from bench.utils.text import format_duration

    store = lock.store
    terminal, tracker = ProgressDisplay(console), Tracker(lambda: MLflowMirror(uri, benchmark, store))
    claim = _Claim(store, benchmark)
    try:
        callbacks = [claim, terminal, tracker]
        try:
            outcome = run_benchmark(
                benchmark, lock, records, attempts, starts, where.address, callbacks, since, methods, say=console.print
            )
        finally:
            terminal.close()
        for record in claim.taken_up_later():
            tracker.on_trial_end(record)
        if lock.taken:
            raise RecordError(
                f"another `run` has taken {redact_url(store.url)}, as this one gave no sign of life: it goes on there"
            )
        stopped = outcome.stop_reason is not None
        folder = None if stopped else _draw_report(store, benchmark)
    except BaseException:
        if claim.done and not lock.taken:
            tracker.stop("KILLED", {})
        raise
    account = {name: float(getattr(outcome, field)) for name, field in ACCOUNT.items()} if outcome.ran else {}
    status = "KILLED" if stopped or outcome.left else "FAILED" if outcome.failed else "FINISHED"
    if claim.done and _was_deleted(store):
        raise RecordError(
            f"{redact_url(store.url)} was deleted during the run: what it had is gone, the same command begins again"
        )
    if tracker.left > MANY_EVENTS:
        console.print(f"MLflow takes the last {tracker.left} of what happened")
    sent = not claim.done or tracker.stop(status, account, folder)
    console.print(outcome.describe())
    if not sent:
        again = f"{command()} sync {short(redact_url(store.url))}"
        again += f" --tracking-uri {redact_url(where.tracking)}" if where.tracking else ""
        console.print(f"MLflow did not take everything ({tracker.problem}): `{again}` will")
    if folder is not None:
        _show_table3(pd.read_csv(folder / "table3.csv"))
        place = folder if store.local else f"{redact_url(store.url)}/report"
        console.print(f"report  {short(f'{place}/report.html')}")
        if (folder / "figure2.png").exists():
            console.print(f"figure  {short(f'{place}/figure2.png')}")
    console.print(
        f"MLflow  {f'{command()} ui {short(store.url)}' if where.tracking is None else redact_url(where.tracking)}"
    )
    for line in outcome.failures:
        console.print(f"failed  {line}")
    if outcome.stop_reason:
        raise RecordError(outcome.stop_reason)
    if stopped:
        console.print(f"stopped with {outcome.left} trials left: the same command continues")
        return STOPPED
    if outcome.ran:
        took = time.time() - since
        share = outcome.utilization * outcome.wall_seconds / took
        console.print(
            f"the whole command took {format_duration(took)}; its slots were inside trials for {share:.0%} of that"
        )
    return 1 if outcome.failed else 0


def _was_deleted(store: RecordStore) -> bool:
    """Whether somebody deleted a storage while it was at work; one that does not answer was not."""
    try:
        return not store.exists("benchmark.json")
    except OSError:
        return False


def _draw_report(store: RecordStore, benchmark: Benchmark) -> Path | None:
    """The folder of the report; None, and why, where there can be none: the run's own account comes all the same."""
    from bench.report.build import write_report
    from bench.results.sources import from_storage

    folder = Path(store.path("report")) if store.local else Path("deelbo-runs") / benchmark.name / "report"
    try:
        files = write_report([from_storage(store)], folder)
    except (ValueError, OSError) as error:
        console.print(f"no report: {single_line(error)}")
        return None
    if not store.local:  # also there: a job's own folder goes away with it
        try:
            for file in files.values():
                store.write_file(f"report/{file.name}", file.read_bytes())
        except OSError as error:
            console.print(f"the report is in {short(folder)} alone: {single_line(error)}")
    return folder


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
        words = [PRIOR_NAMES[row["prior"]], method_name(row["method"]), _spread(row, "")]
        table.add_row(*place, *words, *[_spread(row, "published_")] * published)
        before = place
    console.print(table)


def _spread(row: Mapping[Hashable, Any], of: str) -> str:
    mean, least, most = (float(row[f"{of}{name}"]) for name in ("mean", "min", "max"))
    return f"{mean:.1f} ({least:.1f}-{most:.1f})" if math.isfinite(mean) else "-"
