"""Records to MLflow: a parent run for the benchmark, a child run for each trial. MLflow is a view, never the truth.

`MLflowMirror` may be asked for the same thing twice, and then changes nothing; `sync` asks it for everything.
`bench.tracking` does so while a race runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.benchmark import Benchmark
from bench.config import ConfigError
from bench.methods import make_methods
from bench.race import settle
from bench.records import RecordStore
from bench.trials import TrialRecord, TrialSpec

__all__ = ["MLflowMirror", "log_report", "sync", "tracking_uri"]

PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # table creation is not news
}
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
BATCH = 1000
ACCOUNT: tuple[str, ...] = ("wall_seconds", "busy", "slots")
NAMES = {"scale_backbone": "lambda", "scale_head": "tau"}
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # opens the page that shows training runs
COMPLETE = "deelbo.complete"
KEY = "deelbo.key"
STORAGE = "deelbo.storage"


def tracking_uri(store: RecordStore, uri: str | None = None) -> str:
    """The given URI, or by default a sqlite file in the storage folder.

    Raises:
        ConfigError: the storage is not a local folder and no URI was given, or the URI is none that MLflow takes.
    """
    if uri is None:
        if not store.local:
            raise ConfigError(
                f"{store.url} is no local folder, so MLflow needs a place of its own: give --tracking-uri"
            )
        return f"sqlite:///{store.path('mlflow.db')}"
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.partition("+")[0] not in SCHEMES:
        raise ConfigError(
            f"--tracking-uri {uri!r}: expected a URI that begins with one of {', '.join(SCHEMES)} and ://"
        )
    if scheme == "sqlite" and (Path(rest[1:]).is_dir() or not Path(rest[1:]).absolute().parent.is_dir()):
        raise ConfigError(f"--tracking-uri {uri!r}: expected sqlite:/// and a file in a folder that exists")
    return uri


def _client(uri: str) -> Any:
    """A client that does not wait long for a server that does not answer."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds, and only who tracks should wait for it

    return MlflowClient(uri)


def _whose(store: RecordStore, role: str) -> str:
    """MLflow's filter for the runs of a storage in a role: "benchmark" or "trial"."""
    quote = '"' if "'" in store.url else "'"
    return f"tags.`{STORAGE}` = {quote}{store.url}{quote} and tags.`deelbo.role` = '{role}'"


class MLflowMirror:
    """One benchmark's runs in MLflow. Every method may be repeated.

    Args:
        uri: of the tracking server or database.
        benchmark: whose runs these are; its name is the experiment's.
        store: where series are read from.
    """

    def __init__(self, uri: str, benchmark: Benchmark, store: RecordStore) -> None:
        self.uri, self.benchmark, self.store = uri, benchmark, store
        self.client = _client(uri)
        self.experiment = self._experiment()
        self.runs: dict[str, str] = {}
        self.complete: set[str] = set()
        self.parent = self._find_runs()

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.benchmark.name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:///"):  # beside the database; MLflow's own default is the current folder
            artifacts = (Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
        return str(self.client.create_experiment(self.benchmark.name, artifacts, TRAINING))

    def _find_runs(self) -> str:
        """The parent run, made where there is none; takes note of the children that exist."""
        parents = self.client.search_runs([self.experiment], _whose(self.store, "benchmark"))
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], _whose(self.store, "trial"), max_results=1000, page_token=token
            )
            for run in page:
                self._note(run.data.tags[KEY], run.info.run_id, COMPLETE in run.data.tags)
            token = page.token
            if not token:
                break
        if parents:
            return str(parents[0].info.run_id)
        tags = {"deelbo.role": "benchmark", STORAGE: self.store.url}
        run = self.client.create_run(self.experiment, tags=tags, run_name=self.benchmark.name)
        text = json.dumps(self.benchmark.content(), indent=1)
        self.client.log_text(run.info.run_id, text, "benchmark.json")
        return str(run.info.run_id)

    def _note(self, key: str, run: str, complete: bool) -> None:
        """Takes note of a child; of two with one key, that an interrupted call left behind, the complete one stays."""
        if key in self.runs:
            extra = self.runs[key] if complete else run
            self.client.delete_run(extra)
            if extra == run:
                return
        self.runs[key] = run
        if complete:
            self.complete.add(key)

    def open(self) -> None:
        """The benchmark is running."""
        self.client.update_run(self.parent, status="RUNNING")

    def start(self, spec: TrialSpec, when: float) -> str:
        """The trial has begun: its child run, RUNNING."""
        if spec.key in self.runs:
            return self.runs[spec.key]
        tags = {"deelbo.role": "trial", STORAGE: self.store.url, KEY: spec.key, "mlflow.parentRunId": self.parent}
        tags |= {"method": spec.method, "prior": spec.prior, "stage": spec.stage}
        run = self.client.create_run(self.experiment, int(when * 1000), tags, spec.describe())
        self.runs[spec.key] = str(run.info.run_id)
        self._log_spec(spec)
        return self.runs[spec.key]

    def _log_spec(self, spec: TrialSpec) -> None:
        from mlflow.entities import Param

        given = {name: value for name, value in asdict(spec).items() if value is not None}
        self.client.log_batch(self.runs[spec.key], params=[Param(name, str(value)) for name, value in given.items()])

    def finish(self, record: TrialRecord) -> None:
        """The trial has ended: its metrics, series, seconds, hardware and versions, and its status."""
        from mlflow.entities import Metric, RunTag

        if record.key in self.complete:
            return
        run = self.start(record.spec, record.started)
        self._log_spec(record.spec)  # again, in case the server failed between the two
        metrics, tags = [], {"status": record.status, "attempt": str(record.attempt)}
        series = self.store.series(record.key)
        for row in series:
            when = int((record.started + row["train_seconds"]) * 1000)
            metrics += [
                Metric(NAMES.get(name, name), value, when, int(row["step"]))
                for name, value in row.items()
                if name not in ("step", "epoch") and math.isfinite(value)
            ]
        step, when = int(series[-1]["step"]) if series else 0, int(record.finished * 1000)
        known = {name for name, value in series[-1].items() if math.isfinite(value)} if series else set()
        last = {name: value for name, value in (record.metrics | record.state).items() if name not in known}
        last |= {f"seconds_{phase}": seconds for phase, seconds in record.seconds.items()}
        for name, value in last.items():
            if math.isfinite(value):
                metrics.append(Metric(NAMES.get(name, name), value, when, step))
            else:
                tags[NAMES.get(name, name)] = str(value)
        tags |= {f"hardware.{name}": str(value) for name, value in record.hardware.items()}
        tags |= {f"version.{name}": value for name, value in record.versions.items()}
        tags["concurrency"] = str(record.concurrency)
        if record.error is not None:
            tags["error"] = record.error[-4000:]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH])
        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
        status = "FINISHED" if record.succeeded else "FAILED"
        self.client.set_terminated(run, status, when)
        if record.succeeded:
            self.client.set_tag(run, COMPLETE, "1")
            self.complete.add(record.key)

    def close(self, status: str, metrics: dict[str, float], report: Path | None = None) -> None:
        """The benchmark has ended: children that never did are KILLED, the report is logged, the parent closed."""
        for key, run in self.runs.items():
            if key not in self.complete and self.client.get_run(run).info.status == "RUNNING":
                self.client.set_terminated(run, "KILLED")
        for name, value in metrics.items():
            self.client.log_metric(self.parent, name, value)
        if report is not None:
            self.client.log_artifacts(self.parent, str(report), "report")
        self.client.set_terminated(self.parent, status)


def log_report(store: RecordStore, benchmark: Benchmark, uri: str, files: Iterable[Path]) -> None:
    """Logs the files of a report to the benchmark's parent run, whatever the state of that.

    Raises:
        ConfigError: there is no such run.
    """
    none = f"MLflow at {uri} has no run of {store.url}: `sync` makes it, and takes the report too"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(none)  # asking would make the database
    client = _client(uri)
    found = client.get_experiment_by_name(benchmark.name)
    runs = client.search_runs([found.experiment_id], _whose(store, "benchmark")) if found is not None else []
    if not runs:
        raise ConfigError(none)
    for file in files:
        client.log_artifact(runs[0].info.run_id, str(file), "report")


def sync(store: RecordStore, benchmark: Benchmark, uri: str, report: Path | None = None) -> int:
    """Rebuilds a benchmark's runs in MLflow from its records, without duplicates; how many trials it has."""
    mirror = MLflowMirror(uri, benchmark, store)
    records = list(store.records())
    for record in records:
        mirror.finish(record)
    _, left, _ = settle(make_methods(benchmark), records)
    failed = any(record.status == "failed" for record in records)
    accounts = store.runs()
    metrics = {} if not accounts else {n: accounts[-1][n] for n in ACCOUNT if n in accounts[-1]}
    mirror.close("KILLED" if left else "FAILED" if failed else "FINISHED", metrics, report)
    return len(records)
