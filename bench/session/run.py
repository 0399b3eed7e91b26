"""One call of `run`: run what is missing of a benchmark, follow it, and draw its report."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark
from bench.config.selection import filter_methods
from bench.config.validation import check, check_data, check_packages
from bench.exceptions import RecordError
from bench.methods.base import Method
from bench.ray_backend.environment import configure_ray
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.scheduling.resume import check_same_inputs, load_for_resume
from bench.session.progress import ProgressDisplay
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.object_store import MAX_OUTAGE_SECONDS, OutageTimer
from bench.storage.records import RecordStore
from bench.tracking.client import tracking_uri
from bench.trials.record import TrialRecord
from bench.utils.code import running_code
from bench.utils.signals import in_main_thread, interrupt_on_signals
from bench.utils.text import describe_error, redact_url, short, single_line

if TYPE_CHECKING:
    from bench.scheduling.run_summary import RunSummary
    from bench.tracking.tracker import MLflowTracker
    from deelbo.pretrained.embedded import Pretrained

INTERRUPTED = 130
MANY_TRIALS = 100


@dataclass(frozen=True)
class RunOptions:
    """Options of a call of `run`, as on the command line.

    Attributes:
        config: a preset's name, a YAML file, or what such a file holds.
        storage: folder or fsspec URL for the records; None: ./deelbo-runs/NAME of the benchmark.
        only: subset of the benchmark, see `bench.config.selection`.
        address: a Ray cluster; None: one on this machine, for this call.
        tracking_uri: MLflow server or database; None: a sqlite file in the storage.
        overrides: changes of the configuration, such as training.steps=100.
        allow_import: packages from which the configuration may import networks.
    """

    config: str | Mapping[str, Any]
    storage: str | None = None
    only: str | None = None
    address: str | None = None
    tracking_uri: str | None = None
    overrides: Sequence[str] = ()
    allow_import: Sequence[str] = ()


@dataclass(frozen=True)
class RunOutcome:
    """What a call of `run` came to.

    Attributes:
        report: folder of the report on this machine; None if it was not drawn.
        mlflow_problem: why MLflow did not take everything; None if it did.
    """

    store: RecordStore
    benchmark: Benchmark
    summary: RunSummary
    report: Path | None
    mlflow_problem: str | None = None

    @property
    def exit_code(self) -> int:
        """0 done, 1 some trials failed, 130 stopped by a signal."""
        if self.summary.stop_reason is not None:
            return INTERRUPTED
        return 1 if self.summary.failed else 0


def run(options: RunOptions, console: Console, start_time: float) -> RunOutcome:
    """Carry out `run`, started at ``start_time`` in seconds since 1970; ``console`` shows notes and the progress.

    Raises:
        ConfigError: bad input. RecordError: the storage cannot be used.
        KeyboardInterrupt: stopped before or after its trials; among them the outcome says so.
    """
    running_code()  # before the files on the disk may change
    benchmark = load_benchmark(options.config, options.overrides)
    benchmark = check(benchmark, console.print, allow_import=options.allow_import)
    methods = filter_methods(make_methods(benchmark), options.only)
    check_packages(methods)
    store = RecordStore(options.storage or f"deelbo-runs/{benchmark.name}")
    try:
        with interrupt_on_signals():
            return RunSession(options, store, benchmark, methods, start_time, console).run()
    except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: at SIGTERM, by Ray while it starts
        console.print(f"stopped: the same command continues what is in {short(redact_url(store.url))}")
        raise KeyboardInterrupt from stop
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RecordError(
            f"{single_line(error)}: free space for {redact_url(store.url)}, or in the folder for temporary files; "
            "saved records stay, and the same command continues"
        ) from error


@dataclass(eq=False)
class RunSession(RunCallback):
    """One call of `run`, from the lock of its storage to its report.

    The storage becomes this benchmark's when trials are about to start, and not before: refused input changes nothing.
    """

    options: RunOptions
    store: RecordStore
    benchmark: Benchmark
    methods: Sequence[Method]
    start_time: float
    console: Console
    _has_begun: bool = False
    _reused: list[TrialRecord] = field(default_factory=list)
    _num_reused_at_start: int = 0

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        self._has_begun = True
        self._reused, self._num_reused_at_start = queue.reused, len(queue.reused)
        self.store.write_benchmark(self.benchmark.content())

    def run(self) -> RunOutcome:
        """Run the trials that are missing, and report on them."""
        from bench.tracking.mirror import MLflowMirror
        from bench.tracking.tracker import MLflowTracker

        uri = tracking_uri(self.store, self.options.tracking_uri)
        say = self.console.print
        on_lost = _stop_this_process if in_main_thread() else None  # elsewhere a signal would end the whole process
        with StorageLock(self.store, on_lost, say) as lock:
            self.store.outage_timer = OutageTimer(MAX_OUTAGE_SECONDS, say)
            records, quarantined = self._load_records(lock)
            tracker = MLflowTracker(MLflowMirror(uri, self.benchmark, self.store))
            try:
                with self._ray_ahead(len(records)):
                    summary = self._run_trials(lock, records, *self._resume(lock, records, quarantined), tracker)
                report = None if summary.stop_reason is not None else draw_report(self.store, self.benchmark, say)
            except BaseException:
                if self._has_begun and not lock.lost:
                    tracker.stop("KILLED", {})
                raise
            return self._finish(summary, report, tracker)

    def _load_records(self, lock: StorageLock) -> tuple[list[TrialRecord], list[str]]:
        """Load the records of the storage; also return the keys of the trials of which a file was damaged."""
        if lock.predecessor is not None:
            killed = lock.predecessor.describe()
            self.console.print(f"the last run here was killed ({killed}): continuing from its records")
        records, quarantined = load_for_resume(self.store, self.benchmark, self.console.print)
        self.console.print(f"{self.benchmark.name} in {short(redact_url(self.store.url))}")
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
        pretrained = load_pretrained_backbones(self.benchmark, self.methods, say=self.console.print)
        data = check_data(self.benchmark, datasets) if is_here else {}  # minutes, if images are to be decoded
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
        configure_ray(self.options.address)
        from bench.ray_backend.tuner import BenchmarkRun

        display = ProgressDisplay(self.console)
        callbacks: list[RunCallback] = [self, display, tracker]
        if self.benchmark.keep != "none":
            from bench.models.keep import ChosenModels

            callbacks.append(ChosenModels(self.store, self.console.print, self.benchmark.keep == "all"))
        try:
            summary = BenchmarkRun(
                self.benchmark,
                lock,
                records,
                attempts,
                pretrained,
                self.options.address,
                callbacks,
                self.start_time,
                self.methods,
                say=self.console.print,
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

    def _finish(self, summary: RunSummary, report: Path | None, tracker: MLflowTracker) -> RunOutcome:
        """Close MLflow's run."""
        if self._has_begun and _was_deleted(self.store):
            raise RecordError(
                f"{redact_url(self.store.url)} was deleted during the run, and its records with it: the same command "
                "begins again"
            )
        sent = not self._has_begun or self._close_tracking(summary, report, tracker)
        return RunOutcome(self.store, self.benchmark, summary, report, None if sent else str(tracker.problem))

    def _close_tracking(self, summary: RunSummary, report: Path | None, tracker: MLflowTracker) -> bool:
        """Send MLflow what is left; return whether it took everything."""
        from bench.tracking.sync import RUN_METRICS

        metrics = {name: float(getattr(summary, key)) for name, key in RUN_METRICS.items()} if summary.ran else {}
        killed = summary.stop_reason is not None or summary.left
        if (count := tracker.num_missing) > MANY_TRIALS:
            self.console.print(f"sending the last {count} trials to MLflow")
        return tracker.stop("KILLED" if killed else "FAILED" if summary.failed else "FINISHED", metrics, report)


def _stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _import_slow_modules() -> None:
    import bench.ray_backend.tuner  # noqa: F401 - with torch and Ray Tune


def _was_deleted(store: RecordStore) -> bool:
    """Return whether the storage was deleted while it was in use; one that does not answer was not."""
    try:
        return not store.exists("benchmark.json")
    except OSError:
        return False


def draw_report(store: RecordStore, benchmark: Benchmark, say: Callable[[str], object]) -> Path | None:
    """Draw the report and return its folder; None if it cannot be drawn, which is printed and ends nothing."""
    folder = Path(store.path("report")) if store.local else Path("deelbo-runs") / benchmark.name / "report"
    try:
        from bench.report.build import write_report
        from bench.results.sources import load_storage

        files = write_report([load_storage(store)], folder)
    except Exception as error:  # whatever it is, the run's own result stands
        say(f"no report: {describe_error(error)}")
        return None
    if not store.local:  # copied there, as the folder of a job is deleted with it
        try:
            for file in files.values():
                store.write_file(f"report/{file.name}", file.read_bytes())
        except OSError as error:
            say(f"the report is only in {short(folder)}: {single_line(error)}")
    return folder
