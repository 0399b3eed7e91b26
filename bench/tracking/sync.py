"""Send all records of a storage to MLflow, or a report alone."""

import time
from collections.abc import Iterable
from pathlib import Path

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import ConfigError, RecordError
from bench.results.configurations import selected_trials
from bench.scheduling.queue import split_finished
from bench.storage.records import RecordStore
from bench.tracking.client import connect
from bench.tracking.conversion import record_mark
from bench.tracking.mirror import MLflowMirror, Target
from bench.tracking.runs import MLflowRuns, role_filter
from bench.utils.text import redact_url

PAUSE_SECONDS = (1, 2, 4, 8, 16, 30)
"""Between passes that get no further: a minute, in which a server restarts."""
NUM_FIRST_PAUSES = 3  # of these, for a server that never answered
RUN_METRICS = {"wall_seconds": "wall_seconds", "busy": "utilization", "slots": "slots"}
"""Metrics of the benchmark's run, and the fields of a run's summary."""


def sync(store: RecordStore, benchmark: Benchmark, uri: str, report: Path | None = None) -> int:
    """Make a benchmark's runs in MLflow what its records say, and return the number of trials.

    Raises:
        RecordError: some records are damaged or refused; all others are in MLflow.
    """
    problems: list[str] = []
    records = list(store.records(problems))
    _, remaining, _ = split_finished(make_methods(benchmark), records)
    failed = any(record.status == "failed" for record in records)
    summary = (store.runs(problems) or [{}])[-1]
    target = Target(
        {record.key: record_mark(record) for record in records},
        status="KILLED" if remaining else "FAILED" if failed else "FINISHED",
        costs=selected_trials(benchmark, records),
        metrics={name: float(summary[field]) for name, field in RUN_METRICS.items() if field in summary},
        finished=max((record.finished for record in records), default=0.0),
        report=report,
    )
    mirror = MLflowMirror(uri, benchmark, store, min((record.started for record in records), default=None))
    _insist(mirror, target)
    names = {record.key: record.spec.describe() for record in records}
    problems += [f"{names.get(key, benchmark.name)}: {message}" for (key, _), message in mirror.refused.items()]
    if problems:
        raise RecordError(f"all but {len(problems)} records are in MLflow; the first of those: {problems[0]}")
    return len(records)


def _insist(mirror: MLflowMirror, target: Target) -> None:
    """Reconcile until nothing is left to send; raise the last error where that gets no further."""
    num_pauses, progress_time = 0, mirror.progress_time
    while (error := mirror.reconcile(target)) is not None:
        num_pauses = num_pauses + 1 if progress_time == mirror.progress_time else 1
        progress_time = mirror.progress_time
        if num_pauses > (NUM_FIRST_PAUSES if mirror.runs is None else len(PAUSE_SECONDS)):
            raise error
        time.sleep(PAUSE_SECONDS[num_pauses - 1])


def log_report(store: RecordStore, benchmark: Benchmark, uri: str, files: Iterable[Path]) -> None:
    """Log the files of a report to the benchmark's run, and its outcome as the run's description.

    Raises:
        ConfigError: there is no such run.
    """
    path = uri.removeprefix("sqlite:///")
    if path == uri or Path(path).exists():  # a request would create the database
        client = connect(uri)
        experiment = client.get_experiment_by_name(benchmark.name)
        if experiment and client.search_runs([experiment.experiment_id], role_filter(store, "benchmark")):
            runs = MLflowRuns(uri, benchmark, store)
            runs.log_report(files := list(files))
            runs.describe(files[0].parent)
            return
    raise ConfigError(
        f"MLflow at {redact_url(uri)} has no run of {redact_url(store.url)}: `sync` makes it, and takes the report too"
    )
