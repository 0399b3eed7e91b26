"""Run what is missing of a benchmark, all methods together, as one Ray Tune run."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ray import tune

from bench.config.benchmark import Benchmark, make_methods
from bench.config.plugins import plugin_modules
from bench.exceptions import RunAborted
from bench.execution.run_trial import run_trial
from bench.methods.base import Method
from bench.ray_backend.callbacks import ResultForwarder, StartedActorFirstScheduler
from bench.ray_backend.capacity import trial_resources
from bench.ray_backend.code_check import NodeCodeCheck
from bench.ray_backend.connect import count_slots, ray_session
from bench.ray_backend.searcher import QueueSearcher
from bench.ray_backend.trainable import TrialRunner, TrialTrainable, WorkerSettings
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.scheduling.run_summary import FinishedTrial, RunSummary, summarize_run
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.trials.record import TrialRecord
from bench.utils.code import running_code
from bench.utils.imports import package_folders
from bench.utils.signals import interrupt_on_signals
from deelbo.data import data_folder
from deelbo.paths import expand_user
from deelbo.pretrained.embedded import Pretrained

SCRATCH_PREFIX = "deelbo-tune-"
TUNE_NAMES = {"CPU": "cpu", "GPU": "gpu"}


@dataclass
class BenchmarkRun:
    """The trials of one call of `run`.

    Attributes:
        benchmark: what to run.
        lock: holds the storage of the records, which the nodes may reach or not.
        records: those that exist and count.
        attempts: at trials of this storage.
        pretrained: initial weights by backbone; Ray sends them to the nodes.
        address: of a Ray cluster; None to start Ray on this machine, and stop it afterwards.
        callbacks: told of every start and end.
        start_time: of the call, in seconds since 1970.
        methods: those to run of the benchmark's own; all if None.
        run_trial: runs one trial.
        say: prints a line for the user.
    """

    benchmark: Benchmark
    lock: StorageLock
    records: Sequence[TrialRecord]
    attempts: AttemptLog
    pretrained: Mapping[str, Pretrained]
    address: str | None = None
    callbacks: Sequence[RunCallback] = ()
    start_time: float = field(default_factory=time.time)
    methods: Sequence[Method] | None = None
    run_trial: TrialRunner = run_trial
    say: Callable[[str], object] = print

    def run(self) -> RunSummary:
        """Run what is missing, until all is done or the run is stopped (KeyboardInterrupt, `RunAborted`)."""
        queue = TrialQueue(self.methods or make_methods(self.benchmark), self.records, self.benchmark.order_seed)
        finished = _FinishedTrials()
        callbacks = [*self.callbacks, finished]
        slots = self.benchmark.resources.slots or 1
        stop_reason: str | None = None
        try:
            with interrupt_on_signals():
                if queue.finished:
                    _start(callbacks, queue, slots)
                else:
                    with ray_session(self.benchmark.resources, self.address):
                        slots, num_fits = count_slots(self.benchmark, self.address, self.say)
                        _start(callbacks, queue, slots)
                        checks: list[RunCallback] = []
                        if self.address is not None:  # on one machine each worker's own comparison is enough
                            checks = [
                                NodeCodeCheck(trial_resources(self.benchmark.resources), plugin_modules(self.benchmark))
                            ]
                        self._tune(queue, [*checks, *callbacks], slots, num_fits)
        except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: at SIGTERM, by Ray while it starts
            self.lock.store.stop_waiting()
            stop_reason = str(stop) if isinstance(stop, RunAborted) else ""
        reused, left = len(queue.reused), queue.num_remaining
        summary = summarize_run(finished.trials, reused, left, slots, self.start_time, stop_reason)
        self._write_summary(summary)
        return summary

    def _check_nodes(self) -> NodeCodeCheck:
        wanted, folders = trial_resources(self.benchmark.resources), package_folders(self.benchmark.imported_packages())
        return NodeCodeCheck(wanted, plugin_modules(self.benchmark), folders)

    def _tune(self, queue: TrialQueue, callbacks: Sequence[RunCallback], slots: int, num_fits: int) -> None:
        """Run the queue by one Ray Tune run."""
        # a trial always waits where a slot falls free; only on a larger cluster must the searcher hold back
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * slots)
        # and a cluster that could grow must not, where slots are given
        may_wait = num_fits == slots and (self.address is None or self.benchmark.resources.slots is None)
        max_out = 3 * slots if may_wait else slots
        searcher = QueueSearcher(queue, callbacks, self.lock.store, self.attempts, max_out, self.benchmark)
        with _scratch_folder() as folder:
            try:
                tuner = self._build_tuner(searcher, slots, folder)
                with interrupt_on_signals():  # once more: Ray has installed its own handlers
                    tuner.fit()
            finally:
                self._abandon(searcher)
        if not queue.finished:  # at SIGUSR1 Tune ends early without an error
            raise KeyboardInterrupt

    def _build_tuner(self, searcher: QueueSearcher, slots: int, folder: str) -> tune.Tuner:
        wanted = trial_resources(self.benchmark.resources)
        data = _data_folder(self.benchmark, self.address)
        trainable = tune.with_parameters(
            TrialTrainable,
            pretrained=self.pretrained,
            settings=WorkerSettings(
                self.lock.store.url,
                self.lock.token,
                self.benchmark,
                slots,
                data,
                running_code(plugin_modules(self.benchmark)),
                self.run_trial,
                sources={name: s for name in self.benchmark.datasets if (s := self.benchmark.source(name)) is not None},
                networks={name: self.benchmark.backbone_source(name) for name in self.benchmark.backbones},
                search_path=package_folders(self.benchmark.imported_packages()),
            ),
        )
        return tune.Tuner(
            tune.with_resources(trainable, {TUNE_NAMES.get(name, name): wanted[name] for name in wanted}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StartedActorFirstScheduler(searcher),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher retries
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[ResultForwarder(searcher)],
                verbose=0,
            ),
        )

    def _abandon(self, searcher: QueueSearcher) -> None:
        """Note that the attempts which still run have failed."""
        try:
            if not self.lock.lost:
                searcher.abandon()
        except Exception:  # such as a full disk
            self.lock.attempts_open = True

    def _write_summary(self, summary: RunSummary) -> None:
        if summary.ran:
            when = datetime.fromtimestamp(self.start_time, UTC).strftime("%Y%m%dT%H%M%S.%f")
            with suppress(OSError):  # a storage that takes no records has been reported
                self.lock.store.write_run(when, asdict(summary) | {"account": summary.describe()})


def _data_folder(benchmark: Benchmark, address: str | None) -> str | None:
    """Return the absolute folder of the datasets for workers, whose working directory is another.

    On a cluster each node finds its own by $DEELBO_DATA, unless the configuration names one for all.
    """
    if benchmark.data is None:
        return None if address is not None else str(data_folder().absolute())
    return str(expand_user(benchmark.data).absolute())


class _FinishedTrials(RunCallback):
    def __init__(self) -> None:
        self.trials: list[FinishedTrial] = []

    def on_trial_end(self, record: TrialRecord) -> None:
        self.trials.append(FinishedTrial.of(record))


def _start(callbacks: Sequence[RunCallback], queue: TrialQueue, slots: int) -> None:
    for callback in callbacks:
        callback.on_run_start(queue, slots)


@contextmanager
def _scratch_folder() -> Iterator[str]:
    """Make a folder for Tune's own files, which are never read; also remove those of drivers that were killed.

    Its name holds the driver's process id, and the namespace of processes, as containers may share the parent folder.
    """
    namespace = Path("/proc/self/ns/pid")
    prefix = f"{SCRATCH_PREFIX}{namespace.stat().st_ino}-" if namespace.exists() else SCRATCH_PREFIX
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
