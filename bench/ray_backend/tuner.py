"""One Ray Tune run for all methods together: what is missing of a benchmark, and what the call came to."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

import ray
from ray import tune

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RunAborted
from bench.execution.run_trial import run_trial
from bench.methods.base import Method
from bench.ray_backend.callbacks import ResultForwarder, StartedActorFirstScheduler
from bench.ray_backend.capacity import trial_resources
from bench.ray_backend.connect import connect
from bench.ray_backend.searcher import QueueSearcher
from bench.ray_backend.trainable import TrialRunner, TrialTrainable
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.scheduling.run_summary import FinishedTrial, RunSummary, summarize_run
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.trials.record import TrialRecord
from bench.utils.signals import interrupt_on_signals, preserve_handlers
from deelbo.data import data_folder
from deelbo.pretrained.embedded import Pretrained

__all__ = ["run_benchmark"]


SCRATCH = "deelbo-tune-"
TUNE_NAMES = {"CPU": "cpu", "GPU": "gpu"}


def run_benchmark(
    benchmark: Benchmark,
    lock: StorageLock,
    records: Sequence[TrialRecord],
    attempts: AttemptLog,
    pretrained: Mapping[str, Pretrained],
    address: str | None = None,
    callbacks: Sequence[RunCallback] = (),
    since: float | None = None,
    methods: Sequence[Method] | None = None,
    run_trial: TrialRunner = run_trial,
    say: Callable[[str], object] = print,
) -> RunSummary:
    """Runs what is missing of a benchmark, until all is done or it is stopped (KeyboardInterrupt, `RunAborted`).

    Args:
        benchmark: what to run.
        lock: holds the storage where records go, reachable from every node or not.
        records: those that exist and count.
        attempts: at trials of this storage.
        pretrained: where training starts, by backbone; sent to the nodes by Ray.
        address: of a Ray cluster; one is started here, and stopped after, where None.
        callbacks: told of every start and end.
        since: when the call began, by time.time().
        methods: those to run, of the benchmark's own; all where None.
        run_trial: how a trial is run.
        say: prints a line for the user.
    """
    since = time.time() if since is None else since
    queue = TrialQueue(methods or make_methods(benchmark), records, benchmark.order_seed)
    ended: list[FinishedTrial] = []
    callbacks = [*callbacks, _Collector(ended)]
    slots = benchmark.resources.slots or 1
    stop_reason: str | None = None
    mine = not ray.is_initialized()
    try:
        with interrupt_on_signals():
            fits = slots
            if not queue.finished:
                slots, fits = connect(benchmark, address, say)
            for callback in callbacks:
                callback.on_run_start(queue, slots)
            if not queue.finished:
                # a trial always waits where a slot falls free; only on a larger cluster must the searcher hold back
                os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * slots)
                # and a cluster that could grow must not, where slots are given
                keep_waiting = fits == slots and (address is None or benchmark.resources.slots is None)
                most = 3 * slots if keep_waiting else slots
                searcher = QueueSearcher(queue, callbacks, lock.store, attempts, most, benchmark)
                _tune(benchmark, lock, pretrained, searcher, slots, _data(benchmark, address), run_trial)
                if not queue.finished:  # Tune ends early, and in order, at SIGUSR1
                    raise KeyboardInterrupt
    except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: at SIGTERM, by Ray while it starts
        lock.store.hurry()
        stop_reason = str(stop) if isinstance(stop, RunAborted) else ""
    finally:
        if mine and ray.is_initialized():
            with preserve_handlers():
                ray.shutdown()
    summary = summarize_run(ended, len(queue.reused), queue.num_remaining, slots, since, stop_reason)
    if ended:
        when = datetime.fromtimestamp(since, UTC).strftime("%Y%m%dT%H%M%S.%f")
        with suppress(OSError):  # where records could not be written it has been said
            lock.store.write_run(when, asdict(summary) | {"account": summary.describe()})
    return summary


def _tune(
    benchmark: Benchmark,
    lock: StorageLock,
    pretrained: Mapping[str, Pretrained],
    searcher: QueueSearcher,
    slots: int,
    data: str | None,
    run_trial: TrialRunner,
) -> None:
    """The one Tune run."""
    wanted = trial_resources(benchmark.resources)
    actor = tune.with_parameters(
        TrialTrainable,
        pretrained=pretrained,
        storage=lock.store.url,
        token=lock.token,
        benchmark=benchmark,
        slots=slots,
        data=data,
        run_trial=run_trial,
    )
    _sweep()
    scratch = tempfile.mkdtemp(prefix=f"{_scratch()}{os.getpid()}-")  # Tune's notes; nothing is ever read from them
    tuner = tune.Tuner(
        tune.with_resources(actor, {TUNE_NAMES.get(name, name): wanted[name] for name in wanted}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StartedActorFirstScheduler(searcher),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher's business
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[ResultForwarder(searcher)],
            verbose=0,
        ),
    )
    try:
        with interrupt_on_signals():  # once more: Ray has set its own
            tuner.fit()
    finally:
        try:
            if not lock.lost:
                searcher.abandon()
        except Exception:  # the disk is full, say
            lock.attempts_open = True
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch() -> str:
    """How the notes of drivers in this name space of processes begin: others may share the folder."""
    return f"{SCRATCH}{os.stat('/proc/self/ns/pid').st_ino}-" if os.path.exists("/proc/self/ns/pid") else SCRATCH


def _sweep() -> None:
    """Removes the notes of drivers that were killed."""
    for name in os.listdir(tempfile.gettempdir()):
        pid = name.removeprefix(_scratch()).partition("-")[0]
        if name.startswith(_scratch()) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)


def _data(benchmark: Benchmark, address: str | None) -> str | None:
    """The folder of the datasets as workers must be told: they run elsewhere, so a relative path would miss it.

    On a cluster each node finds its own by $DEELBO_DATA, unless the configuration names one for all.
    """
    if benchmark.data is None:
        return None if address is not None else str(data_folder().absolute())
    return os.path.abspath(os.path.expanduser(benchmark.data))


class _Collector(RunCallback):
    def __init__(self, into: list[FinishedTrial]) -> None:
        self.into = into

    def on_trial_end(self, record: TrialRecord) -> None:
        self.into.append(FinishedTrial.of(record))
