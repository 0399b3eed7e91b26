"""One Ray Tune run for all methods together: the searcher that asks them, the trainable, and what a call came to."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours to show
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records are the log
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # and what a benchmark continues from
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 - reads the environment when imported
import torch  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from bench.benchmark import Benchmark  # noqa: E402
from bench.config import ConfigError, one_line  # noqa: E402
from bench.environment import hardware, versions  # noqa: E402
from bench.execute import execute  # noqa: E402
from bench.methods import Method, make_methods  # noqa: E402
from bench.outcome import Outcome, outcome_of  # noqa: E402
from bench.race import Race, Watcher  # noqa: E402
from bench.records import RecordStore  # noqa: E402
from bench.trials import TrialRecord, TrialSpec  # noqa: E402
from deelbo.pretraining import Pretrained  # noqa: E402
from deelbo.tasks import data_folder  # noqa: E402

__all__ = ["run_benchmark"]


class MethodSearcher(Searcher):
    """Ray Tune's side of a `Race`: each suggestion is a method's trial, each result a method's record."""

    def __init__(self, race: Race, watchers: list[Watcher], store: RecordStore, most: int) -> None:
        super().__init__()
        self._race, self._watchers, self._store, self._most = race, watchers, store, most
        self._running: dict[str, TrialSpec] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its searcher, a benchmark continues from its records."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        spec = self._race.ask() if len(self._running) < self._most else None
        if spec is None:
            finished: Any = Searcher.FINISHED  # a word, whatever the signature says
            return finished if self._race.finished else None
        self._running[trial_id] = spec
        return {"spec": asdict(spec)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        spec = self._running.pop(trial_id)
        if error or not result or "record" not in result:
            record = _lost(spec, self._store)
        else:
            record = TrialRecord.from_json(result["record"])
            if self._store.read(record.key) is None:  # the worker's storage is not this one
                self._store.write(record, result["series"])
        self._race.tell(record)
        for watcher in self._watchers:
            watcher.finished(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a benchmark continues from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `save`."""


class StartBell(tune.Callback):
    """Tells the watchers when a trial really starts: a suggestion still waits for its slot."""

    def __init__(self, watchers: list[Watcher]) -> None:
        self._watchers = watchers

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watcher in self._watchers:
            watcher.started(TrialSpec(**trial.config["spec"]))


class TrialActor(tune.Trainable):
    """Runs one trial a `step`; kept for the next trial, so that a process is started once a slot."""

    def setup(  # type: ignore[override]  # tune.with_parameters adds to it
        self,
        config: dict[str, Any],
        pretrained: Mapping[str, Pretrained],
        storage: str,
        benchmark: Benchmark,
        slots: int,
        data: str | None,
    ) -> None:
        torch.set_num_threads(benchmark.resources.cpus_per_trial)
        self.device = torch.device("cuda" if benchmark.resources.gpus_per_trial else "cpu")
        self.pretrained, self.store, self.slots = pretrained, RecordStore(storage), slots
        self.data, self.verify = data, benchmark.verify_data

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        spec = TrialSpec(**self.config["spec"])
        attempt = self.store.begin(spec.key)
        start = self.pretrained[spec.backbone]
        record, series = execute(spec, start, self.device, self.slots, attempt, self.data, self.verify)
        self.store.write(record, series)
        if record.status == "failed" and self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize(
                self.device
            )  # raises where the error broke the process: the next trial gets a new one
        return {"record": record.to_json(), "series": series, "done": True}


def run_benchmark(
    benchmark: Benchmark,
    store: RecordStore,
    pretrained: Mapping[str, Pretrained],
    address: str | None = None,
    watchers: list[Watcher] | None = None,
    since: float | None = None,
    methods: Sequence[Method] | None = None,
) -> Outcome:
    """Runs what is missing of a benchmark.

    Args:
        benchmark: what to run.
        store: where records are and go; reachable from every node.
        pretrained: where training starts, by backbone; sent to the nodes by Ray.
        address: of a Ray cluster; one is started here, and stopped after, where None.
        watchers: told of every start and end.
        since: when the call began, by time.time().
        methods: those to run, of the benchmark's own; all where None.
    """
    since = time.time() if since is None else since
    watchers = watchers or []
    race = Race(methods or make_methods(benchmark), store.records(), benchmark.order_seed)
    reused = len(race.reused)
    finished: list[TrialRecord] = []
    watchers = [*watchers, _Collector(finished)]
    slots, fits = _connect(benchmark, address, idle=race.finished)
    try:
        for watcher in watchers:
            watcher.began(race, slots)
        if not race.finished:
            # a trial always waits where a slot falls free; only on a cluster that is larger must the searcher hold back
            os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * slots)
            searcher = MethodSearcher(race, watchers, store, most=3 * slots if fits == slots else slots)
            _tune(benchmark, store, pretrained, searcher, StartBell(watchers), slots, _data(benchmark, address))
    finally:
        if address is None and ray.is_initialized():
            ray.shutdown()
    outcome = outcome_of(finished, reused, race.left, slots, since)
    if finished:
        when = datetime.fromtimestamp(since, UTC).strftime("%Y%m%dT%H%M%S.%f")
        store.write_run(when, asdict(outcome) | {"account": outcome.describe()})
    return outcome


def _tune(
    benchmark: Benchmark,
    store: RecordStore,
    pretrained: Mapping[str, Pretrained],
    searcher: MethodSearcher,
    bell: StartBell,
    slots: int,
    data: str | None,
) -> None:
    """The one Tune run."""
    resources = benchmark.resources
    actor = tune.with_parameters(
        TrialActor,
        pretrained=pretrained,
        storage=store.url,
        benchmark=benchmark,
        slots=slots,
        data=data,
    )
    scratch = tempfile.mkdtemp(prefix="deelbo-tune-")  # Tune's notes; nothing is ever read from them
    tuner = tune.Tuner(
        tune.with_resources(actor, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=benchmark.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[bell],
            verbose=0,
        ),
    )
    if threading.current_thread() is threading.main_thread():  # Tune stops cleanly at Ctrl-C; have it do so at SIGTERM
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _data(benchmark: Benchmark, address: str | None) -> str | None:
    """The folder of the datasets as workers must be told: they run elsewhere, so a relative path would miss it.

    On a cluster each node finds its own by $DEELBO_DATA, unless the configuration names one for all.
    """
    if benchmark.data is None:
        return None if address is not None else str(data_folder().absolute())
    return os.path.abspath(os.path.expanduser(benchmark.data))


class _Collector(Watcher):
    def __init__(self, into: list[TrialRecord]) -> None:
        self.into = into

    def finished(self, record: TrialRecord) -> None:
        self.into.append(record)


def _connect(benchmark: Benchmark, address: str | None, idle: bool) -> tuple[int, int]:
    """Joins or starts Ray, unless there is nothing to run; how many trials to run at once, and how many would fit."""
    wanted = benchmark.resources
    if idle:
        return wanted.slots or 1, wanted.slots or 1
    if not ray.is_initialized():
        here: dict[str, Any] = {"address": "local", "include_dashboard": False}
        if wanted.slots:
            here["num_cpus"] = wanted.slots * wanted.cpus_per_trial
        joined: dict[str, Any] = here if address is None else {"address": address}
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **joined)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise
            raise ConfigError(
                f"no Ray cluster answers at {address} ({one_line(error)[:120]}): check --address, and that a head runs"
            ) from error
    there = ray.cluster_resources()
    fits = int(there.get("CPU", 0) // wanted.cpus_per_trial)
    if wanted.gpus_per_trial:
        fits = min(fits, int(there.get("GPU", 0) / wanted.gpus_per_trial))
    if fits < 1:
        raise ConfigError(
            f"no trial fits: it takes {wanted.cpus_per_trial} CPU and {wanted.gpus_per_trial:g} GPU, the cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}: lower resources in the configuration"
        )
    return min(fits, wanted.slots or fits), fits


def _lost(spec: TrialSpec, store: RecordStore) -> TrialRecord:
    """The record of a trial whose process died as often as it was allowed to, or the one it wrote before it died."""
    attempt = store.attempts(spec.key)
    written = store.read(spec.key)
    if written is not None and (written.succeeded or written.attempt == attempt):
        return written
    now = time.time()
    device = torch.device("cpu")
    record = TrialRecord(
        spec=spec,
        status="failed",
        metrics={},
        state={},
        seconds={},
        started=now,
        finished=now,
        attempt=attempt,
        hardware=hardware(device),
        versions=versions(),
        error="the trial's process ended without a record as often as max_failures allows (killed, out of memory, or "
        "the storage could not be written): see Ray's logs",
    )
    store.write(record, [])
    return record
