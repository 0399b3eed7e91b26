"""Records to MLflow: a parent run for the benchmark, a child run for each trial. MLflow is a view, never the truth.

`MLflowMirror` may be asked for the same thing twice, and then changes nothing; `sync` asks it for everything.
`bench.tracking.tracker` does so while a race runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from time import sleep as wait

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import ConfigError, RecordError
from bench.results.configurations import selected_trials
from bench.scheduling.queue import split_finished
from bench.storage.records import RecordStore
from bench.tracking.client import connect, is_gone, is_refusal, tracking_uri
from bench.tracking.conversion import content_of, mark_of, params_of
from bench.tracking.descriptions import experiment_note, run_note
from bench.tracking.gpu_metrics import GPUWatch, find_gpus
from bench.tracking.runs import Runs, end_of, whose
from bench.tracking.views import saved
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url, single_line

__all__ = ["ACCOUNT", "MLflowMirror", "log_report", "sync", "tracking_uri"]


OUTAGE = (1, 2, 4, 8, 16, 30)
"""Seconds between tries once a server has answered: as long as one takes to be started anew."""
ACCOUNT = {"wall_seconds": "wall_seconds", "busy": "utilization", "slots": "slots"}


class MLflowMirror:
    """One benchmark's runs in MLflow. Every method may be repeated, also after it failed half-way.

    Args:
        uri: of the tracking server or database.
        benchmark: whose runs these are; its name is the experiment's.
        store: where series are read from.
        since: when the benchmark began, in seconds since 1970; now where None.
    """

    def __init__(self, uri: str, benchmark: Benchmark, store: RecordStore, since: float | None = None) -> None:
        self.uri, self.benchmark, self.store, self.since = uri, benchmark, store, since
        self.before_call: Callable[[], None] = lambda: None
        """Called before each request; what it raises puts an end to the method."""
        self._watch: GPUWatch | None = None

    @cached_property
    def runs(self) -> Runs:
        """What is in MLflow; looked up at the first use."""
        return Runs(self.uri, self.benchmark, self.store, self.since, lambda: self.before_call())

    def open(self, alive: Collection[str] = ()) -> None:
        """The benchmark is running, and of its trials at most those with the keys ``alive``."""
        self.runs.reopen()
        self.runs.kill(but=alive)
        if self._watch is None and (gpus := find_gpus()) is not None:
            self._watch = GPUWatch(self.uri, self.runs.parent, gpus)
            self._watch.start()

    def start(self, spec: TrialSpec, when: float) -> None:
        """The trial has begun: its child run, RUNNING."""
        child = self.runs.child(spec, when)
        if child.status != "FINISHED":  # else an earlier result, which stays until there is a new one
            self.runs.revive(child)
        self.runs.log(child, params=params_of(spec))

    def finish(self, record: TrialRecord) -> None:
        """The trial has ended: its metrics, series, seconds, hardware and versions, and its status.

        Raises:
            RecordError: its series is damaged; the rest is in MLflow, and will be sent again.
        """
        known = self.runs.find(record.key)
        if known is not None and known.holds(record):
            return
        if known is not None and known.belies(record):
            self.runs.remove(record.key)
        child = self.runs.child(record.spec, record.started)
        damage: RecordError | None = None
        try:
            content = content_of(record, self.store.series(record.key))
        except RecordError as error:
            content, damage = content_of(record, []), error
        self.runs.log_inputs(child, record)
        self.runs.log(child, content.metrics, params_of(record.spec), content.tags, "" if damage else mark_of(record))
        self.runs.end(child, end_of(record), record.finished)
        self.runs.mark(record.key)  # where a server was away, this may come after what was chosen
        if damage:
            raise damage

    def resend(self, key: str) -> None:
        """As `finish`, of the record in the storage."""
        if (record := self.store.read(key)) is not None:
            self.finish(record)

    def close(self, status: str, metrics: dict[str, float], when: float) -> None:
        """The benchmark has ended ``when`` its last trial did; children that never ended are KILLED."""
        self.leave()
        self.runs.close(status, metrics, when)
        self.tidy()

    def leave(self) -> None:
        """Nothing more is logged by itself."""
        if self._watch is not None:
            self._watch.stop()

    def tidy(self) -> None:
        """No trial's run stays RUNNING or is there twice: a server may do what it was asked after nobody waits."""
        self.runs.kill()

    def choose(self) -> None:
        """Marks the trials that their methods chose, by all records, and what each method needed."""
        records = []
        for record in self.store.records([]):  # a request each, where the storage is an object store
            self.before_call()
            records.append(record)
        ended = max((record.finished for record in records), default=0.0)
        self.runs.choose(selected_trials(self.benchmark, records), ended)

    def describe(self, report: Path | None = None) -> None:
        """What the page says of the benchmark, with the outcome that a report has, and the views it offers."""
        experiment, run = self.runs.experiment, self.runs.parent
        views = saved(tuple(self.benchmark.methods))
        outcome = run_note(self.benchmark, experiment, run, report)
        self.runs.describe(outcome, experiment_note(self.benchmark, experiment, run), views, report is not None)

    def publish(self, report: Path | None = None) -> None:
        """Logs the configuration, the files of the report, and what the page says and shows of them."""
        self.describe(report)
        text = json.dumps(self.benchmark.content(), indent=1)
        self.runs.call("log_text", self.runs.parent, text, "benchmark.json")
        if report is None:
            return
        for file in sorted(path for path in report.rglob("*") if path.is_file()):
            place = PurePosixPath("report", file.relative_to(report).parent)
            self.runs.call("log_artifact", self.runs.parent, str(file), str(place))


def log_report(store: RecordStore, benchmark: Benchmark, uri: str, files: Iterable[Path]) -> None:
    """Logs the files of a report to the benchmark's parent run, whatever the state of that.

    Raises:
        ConfigError: there is no such run.
    """
    none = (
        f"MLflow at {redact_url(uri)} has no run of {redact_url(store.url)}: `sync` makes it, and takes the report too"
    )
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(none)  # asking would make the database
    client = connect(uri)
    found = client.get_experiment_by_name(benchmark.name)
    runs = client.search_runs([found.experiment_id], whose(store, "benchmark")) if found is not None else []
    if not runs:
        raise ConfigError(none)
    mirror, files = MLflowMirror(uri, benchmark, store), list(files)
    for file in files:
        mirror.runs.call("log_artifact", mirror.runs.parent, str(file), "report")
    mirror.describe(files[0].parent if files else None)


def sync(store: RecordStore, benchmark: Benchmark, uri: str, report: Path | None = None) -> int:
    """Makes a benchmark's runs in MLflow what its records say, without duplicates; how many trials it has.

    Raises:
        RecordError: some records are damaged or refused; all others are in MLflow.
    """
    problems: list[str] = []
    records = list(store.records(problems))
    began = min((record.started for record in records), default=None)
    mirror = MLflowMirror(uri, benchmark, store, began)
    _insist(mirror.describe)  # thousands of trials take minutes, in which people look
    for record in records:
        try:
            _insist(partial(mirror.finish, record), OUTAGE)
        except Exception as error:
            if is_gone(error) or not is_refusal(error):
                raise
            problems.append(f"{record.spec.describe()}: {single_line(error)}")
    _, left, _ = split_finished(make_methods(benchmark), records)
    failed = any(record.status == "failed" for record in records)
    accounts = store.runs(problems)
    metrics = (
        {} if not accounts else {n: float(accounts[-1][field]) for n, field in ACCOUNT.items() if field in accounts[-1]}
    )
    ended = max((record.finished for record in records), default=0.0)
    _insist(lambda: mirror.close("KILLED" if left else "FAILED" if failed else "FINISHED", metrics, ended))
    _insist(lambda: mirror.publish(report))
    _insist(mirror.choose)
    if problems:
        raise RecordError(f"all but {len(problems)} records are in MLflow; the first of those: {problems[0]}")
    return len(records)


def _insist(what: Callable[[], None], pauses: Sequence[float] = (1, 2, 4)) -> None:
    """Does it, again after each pause where it failed for a reason that may pass."""
    for pause in pauses:
        try:
            return what()
        except Exception as error:
            if is_gone(error) or is_refusal(error):
                raise
            wait(pause)
    return what()
