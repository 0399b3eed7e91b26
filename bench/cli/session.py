"""One call of `run`: run what is missing of a benchmark, follow it, and draw its report."""

from __future__ import annotations

import argparse
import errno
import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.console import command, console, make_table, quoted, short
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark
from bench.config.selection import filter_methods
from bench.config.validation import check, check_data, check_packages
from bench.exceptions import RecordError
from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.methods.base import Method
from bench.ray_backend.environment import configure_ray
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.scheduling.resume import check_same_inputs, load_for_resume
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.object_store import MAX_OUTAGE_SECONDS, OutageTimer
from bench.storage.records import RecordStore
from bench.tracking.client import tracking_uri
from bench.trials.record import TrialRecord
from bench.utils.code import running_code
from bench.utils.signals import interrupt_on_signals
from bench.utils.text import describe_error, format_duration, redact_url, single_line

if TYPE_CHECKING:
    from bench.scheduling.run_summary import RunSummary
    from bench.tracking.tracker import MLflowTracker
    from deelbo.pretrained.embedded import Pretrained

INTERRUPTED = 130
MANY_TRIALS = 100


def run(options: argparse.Namespace, start_time: float) -> int:
    """Carry out `run`, started at ``start_time`` in seconds since 1970, and return the exit code."""
    running_code()  # before the files on the disk may change
    benchmark = load_benchmark(options.config, options.set)
    benchmark = check(benchmark, console.print)
    methods = filter_methods(make_methods(benchmark), options.only)
    check_packages(methods)
    store = RecordStore(options.storage or f"deelbo-runs/{benchmark.name}")
    try:
        with interrupt_on_signals():
            return RunSession(options, store, benchmark, methods, start_time).run()
    except KeyboardInterrupt:
        console.print(f"stopped: the same command continues what is in {short(redact_url(store.url))}")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RecordError(
            f"{single_line(error)}: free space for {redact_url(store.url)}, or in the folder for temporary files; "
            "saved records stay, and the same command continues"
        ) from error


@dataclass(eq=False)
class RunSession(RunCallback):
    """One call of `run`, from the lock of its storage to the last line on the terminal.

    The storage becomes this benchmark's when trials are about to start, and not before: refused input changes nothing.
    """

    options: argparse.Namespace
    store: RecordStore
    benchmark: Benchmark
    methods: Sequence[Method]
    start_time: float
    _has_begun: bool = False
    _reused: list[TrialRecord] = field(default_factory=list)
    _num_reused_at_start: int = 0

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        self._has_begun = True
        self._reused, self._num_reused_at_start = queue.reused, len(queue.reused)
        self.store.write_benchmark(self.benchmark.content())

    def run(self) -> int:
        """Run the trials that are missing, report on them, and return the exit code."""
        from bench.tracking.mirror import MLflowMirror
        from bench.tracking.tracker import MLflowTracker

        uri = tracking_uri(self.store, self.options.tracking_uri)
        with StorageLock(self.store, lambda: os.kill(os.getpid(), signal.SIGTERM), console.print) as lock:
            self.store.outage_timer = OutageTimer(MAX_OUTAGE_SECONDS, console.print)
            records, quarantined = self._load_records(lock)
            tracker = MLflowTracker(MLflowMirror(uri, self.benchmark, self.store))
            try:
                with self._ray_ahead(len(records)):
                    summary = self._run_trials(lock, records, *self._resume(lock, records, quarantined), tracker)
                report = None if summary.stop_reason is not None else _draw_report(self.store, self.benchmark)
            except BaseException:
                if self._has_begun and not lock.lost:
                    tracker.stop("KILLED", {})
                raise
            return self._finish(summary, report, tracker)

    def _load_records(self, lock: StorageLock) -> tuple[list[TrialRecord], list[str]]:
        """Load the records of the storage; also return the keys of the trials of which a file was damaged."""
        if lock.predecessor is not None:
            killed = lock.predecessor.describe()
            console.print(f"the last run here was killed ({killed}): continuing from its records")
        records, quarantined = load_for_resume(self.store, self.benchmark, console.print)
        console.print(f"{self.benchmark.name} in {short(redact_url(self.store.url))}")
        return records, quarantined

    @contextmanager
    def _ray_ahead(self, num_records: int) -> Iterator[None]:
        """Start Ray while slow modules are imported, if it is to run on this machine and trials are missing."""
        if self.options.address is not None or num_records >= sum(method.count() for method in self.methods):
            yield
            return
        configure_ray(None)
        from bench.ray_backend.connect import count_slots, ray_session

        imports = threading.Thread(target=_import_slow_modules)
        imports.start()
        with ray_session(self.benchmark.resources, None):
            imports.join()
            count_slots(self.benchmark, None)  # refuses resources that this machine lacks before images are decoded
            yield

    def _resume(
        self, lock: StorageLock, records: Sequence[TrialRecord], quarantined: Sequence[str]
    ) -> tuple[AttemptLog, dict[str, Pretrained]]:
        """Check that the trials of the records saw the same images and weights as those here."""
        from bench.execution.pretrained import load_pretrained_backbones

        datasets = dict.fromkeys(method.cell.dataset for method in self.methods)
        is_here = self.options.address is None  # on a cluster the workers read the datasets
        data = check_data(self.benchmark, datasets) if is_here else {}
        pretrained = load_pretrained_backbones(self.benchmark, self.methods, say=console.print)
        check_same_inputs(self.store, records, data, pretrained)
        died = None if lock.predecessor is None else lock.predecessor.heartbeat
        attempts = AttemptLog(self.store, records, quarantined, died)
        lock.resumed = True
        return attempts, pretrained

    def _run_trials(
        self,
        lock: StorageLock,
        records: Sequence[TrialRecord],
        attempts: AttemptLog,
        pretrained: Mapping[str, Pretrained],
        tracker: MLflowTracker,
    ) -> RunSummary:
        from bench.cli.progress import ProgressDisplay

        configure_ray(self.options.address)
        from bench.ray_backend.tuner import BenchmarkRun

        display = ProgressDisplay(console)
        try:
            summary = BenchmarkRun(
                self.benchmark,
                lock,
                records,
                attempts,
                pretrained,
                self.options.address,
                [self, display, tracker],
                self.start_time,
                self.methods,
                say=console.print,
            ).run()
        finally:
            display.close()
        for record in self._reused[self._num_reused_at_start :]:  # asked for only once others had their results
            tracker.on_trial_end(record)
        if lock.lost:
            raise RecordError(
                f"another `run` took over {redact_url(self.store.url)}, as this one gave no sign of life: it continues "
                "there"
            )
        return summary

    def _finish(self, summary: RunSummary, report: Path | None, tracker: MLflowTracker) -> int:
        """Close MLflow's run, print what was done, and return the exit code."""
        if self._has_begun and _was_deleted(self.store):
            raise RecordError(
                f"{redact_url(self.store.url)} was deleted during the run, and its records with it: the same command "
                "begins again"
            )
        sent = not self._has_begun or self._close_tracking(summary, report, tracker)
        console.print(summary.describe())
        if not sent:
            again, given = f"{command()} sync {quoted(redact_url(self.store.url))}", self.options.tracking_uri
            again += f" --tracking-uri {shlex.quote(redact_url(given))}" if given else ""
            console.print(f"MLflow did not take everything ({tracker.problem}): `{again}` will")
        self._print_places(report)
        for line in summary.failures:
            console.print(f"failed  {line}")
        if summary.stop_reason:
            raise RecordError(summary.stop_reason)
        if summary.stop_reason is not None:
            console.print(f"stopped with {summary.left} trials left: the same command continues")
            return INTERRUPTED
        if summary.ran:
            seconds = time.time() - self.start_time
            share = summary.utilization * summary.wall_seconds / seconds
            console.print(
                f"the whole command took {format_duration(seconds)}; its slots were inside trials for {share:.0%} of "
                "that"
            )
        return 1 if summary.failed else 0

    def _close_tracking(self, summary: RunSummary, report: Path | None, tracker: MLflowTracker) -> bool:
        """Send MLflow what is left; return whether it took everything."""
        from bench.tracking.sync import RUN_METRICS

        metrics = {name: float(getattr(summary, key)) for name, key in RUN_METRICS.items()} if summary.ran else {}
        killed = summary.stop_reason is not None or summary.left
        if (count := tracker.num_missing) > MANY_TRIALS:
            console.print(f"sending the last {count} trials to MLflow")
        return tracker.stop("KILLED" if killed else "FAILED" if summary.failed else "FINISHED", metrics, report)

    def _print_places(self, report: Path | None) -> None:
        if report is not None:
            _print_table3(report / "table3.csv")
            place = report if self.store.local else f"{redact_url(self.store.url)}/report"
            console.print(f"report  {short(f'{place}/report.html')}")
            if (report / "figure2.png").exists():
                console.print(f"figure  {short(f'{place}/figure2.png')}")
        given = self.options.tracking_uri
        console.print(f"MLflow  {f'{command()} ui {quoted(self.store.url)}' if given is None else redact_url(given)}")


def _import_slow_modules() -> None:
    import bench.ray_backend.tuner  # noqa: F401 - with torch and Ray Tune


def _was_deleted(store: RecordStore) -> bool:
    """Return whether the storage was deleted while it was in use; one that does not answer was not."""
    try:
        return not store.exists("benchmark.json")
    except OSError:
        return False


def _draw_report(store: RecordStore, benchmark: Benchmark) -> Path | None:
    """Draw the report and return its folder; None if it cannot be drawn, which is printed and ends nothing."""
    folder = Path(store.path("report")) if store.local else Path("deelbo-runs") / benchmark.name / "report"
    try:
        from bench.report.build import write_report
        from bench.results.sources import load_storage

        files = write_report([load_storage(store)], folder)
    except Exception as error:  # whatever it is, the run's own result stands
        console.print(f"no report: {describe_error(error)}")
        return None
    if not store.local:  # copied there, as the folder of a job is deleted with it
        try:
            for file in files.values():
                store.write_file(f"report/{file.name}", file.read_bytes())
        except OSError as error:
            console.print(f"the report is only in {short(folder)}: {single_line(error)}")
    return folder


def _print_table3(file: Path) -> None:
    import pandas as pd

    third = pd.read_csv(file)
    varying = [name for name in ("dataset", "backbone") if third[name].nunique() > 1]
    published = bool(third["published_mean"].notna().any())
    table = make_table("test accuracy (%, class-balanced), mean (min-max)")
    for name in [*varying, "N", "Model", "method", "here", *["published"] * published]:
        table.add_column(name, justify="right" if name in ("N", "here", "published") else "left", no_wrap=True)
    previous: list[str] = []
    for row in third.to_dict("records"):
        place = [*(dataset_name(str(row[name])) for name in varying), str(row["n"])]
        if previous and place != previous:
            table.add_section()
        cells = [PRIOR_NAMES[row["prior"]], method_name(row["method"]), _spread(row, "")]
        table.add_row(*place, *cells, *[_spread(row, "published_")] * published)
        previous = place
    console.print(table)


def _spread(row: Mapping[Hashable, Any], prefix: str) -> str:
    mean, low, high = (float(row[f"{prefix}{name}"]) for name in ("mean", "min", "max"))
    return f"{mean:.1f} ({low:.1f}-{high:.1f})" if math.isfinite(mean) else "-"
