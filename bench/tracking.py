"""Records to MLflow: a parent run for the benchmark, a child run for each trial. MLflow is a view, never the truth.

`MLflowMirror` writes; it can be asked for the same thing twice and changes nothing. `Tracker` does so from a thread of
its own, so that a server that is slow or gone delays no trial; what it could not send, `sync` sends from the records.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.config import Benchmark, one_line
from bench.race import Race, Watcher
from bench.records import RecordStore
from bench.trials import TrialRecord, TrialSpec

__all__ = ["MLflowMirror", "Tracker", "sync", "tracking_uri"]

PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # table creation is not news
}
BATCH = 1000
NAMES = {"scale_backbone": "lambda", "scale_head": "tau"}
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # opens the page that shows training runs
COMPLETE = "deelbo.complete"
KEY = "deelbo.key"
BENCHMARK = "deelbo.storage"


def tracking_uri(store: RecordStore, uri: str | None = None) -> str:
    """The given URI, or by default a sqlite file in the storage folder.

    Raises:
        ValueError: the storage is not a local folder and no URI was given.
    """
    if uri is not None:
        return uri
    if not store.local:
        raise ValueError(f"{store.url} is not a local folder, so MLflow needs a place of its own: give --tracking-uri")
    return f"sqlite:///{store.path('mlflow.db')}"


class MLflowMirror:
    """One benchmark's runs in MLflow. Every method may be repeated.

    Args:
        uri: of the tracking server or database.
        benchmark: whose runs these are; its name is the experiment's.
        store: where series are read from.
    """

    def __init__(self, uri: str, benchmark: Benchmark, store: RecordStore) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient  # takes seconds, and only who tracks should wait for it

        self.uri, self.benchmark, self.store = uri, benchmark, store
        self.client = MlflowClient(uri)
        self.experiment = self._experiment()
        self.runs: dict[str, str] = {}
        self.complete: set[str] = set()
        self.parent = self._find_runs()

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.benchmark.name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:") and self.store.local:
            artifacts = Path(self.store.path("mlartifacts")).as_uri()
        return str(self.client.create_experiment(self.benchmark.name, artifacts, TRAINING))

    def _find_runs(self) -> str:
        """The parent run, made where there is none; takes note of the children that exist."""
        quote = '"' if "'" in self.store.url else "'"
        where = f"tags.`{BENCHMARK}` = {quote}{self.store.url}{quote}"
        parents = self.client.search_runs([self.experiment], f"{where} and tags.`deelbo.role` = 'benchmark'")
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"{where} and tags.`deelbo.role` = 'trial'", max_results=1000, page_token=token
            )
            for run in page:
                self.runs[run.data.tags[KEY]] = run.info.run_id
                if COMPLETE in run.data.tags:
                    self.complete.add(run.data.tags[KEY])
            token = page.token
            if not token:
                break
        if parents:
            return str(parents[0].info.run_id)
        tags = {"deelbo.role": "benchmark", BENCHMARK: self.store.url}
        run = self.client.create_run(self.experiment, tags=tags, run_name=self.benchmark.name)
        text = json.dumps(self.benchmark.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1)
        self.client.log_text(run.info.run_id, text, "benchmark.json")
        return str(run.info.run_id)

    def open(self) -> None:
        """The benchmark is running."""
        self.client.update_run(self.parent, status="RUNNING")

    def start(self, spec: TrialSpec, when: float) -> str:
        """The trial has begun: its child run, RUNNING."""
        if spec.key in self.runs:
            return self.runs[spec.key]
        from mlflow.entities import Param

        tags = {"deelbo.role": "trial", BENCHMARK: self.store.url, KEY: spec.key, "mlflow.parentRunId": self.parent}
        tags |= {"method": spec.method, "prior": spec.prior, "stage": spec.stage}
        run = self.client.create_run(self.experiment, int(when * 1000), tags, spec.describe())
        given = {name: value for name, value in vars(spec).items() if value is not None and name != "key"}
        self.client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in given.items()])
        self.runs[spec.key] = str(run.info.run_id)
        return self.runs[spec.key]

    def finish(self, record: TrialRecord) -> None:
        """The trial has ended: its metrics, series, seconds, hardware and versions, and its status."""
        from mlflow.entities import Metric, RunTag

        if record.key in self.complete:
            return
        run = self.start(record.spec, record.started)
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


def sync(store: RecordStore, benchmark: Benchmark, uri: str, report: Path | None = None) -> int:
    """Rebuilds a benchmark's runs in MLflow from its records, without duplicates; how many trials it has."""
    mirror = MLflowMirror(uri, benchmark, store)
    count = 0
    failed = 0
    for record in store.records():
        mirror.finish(record)
        count += 1
        failed += record.status == "failed"
    accounts = store.runs()
    metrics = {} if not accounts else {name: accounts[-1][name] for name in ("wall_seconds", "busy", "slots")}
    mirror.close("FAILED" if failed else "FINISHED", metrics, report)
    return count


class Tracker(Watcher):
    """Follows a race in MLflow from a thread of its own. Nothing here waits for a server, and nothing raises.

    An event that cannot be sent is tried again after ``pause`` seconds, those behind it waiting. `stop` gives what is
    left at most ``grace`` seconds.
    """

    def __init__(self, make_mirror: Callable[[], MLflowMirror], pause: float = 5.0, grace: float = 30.0) -> None:
        self._make_mirror, self._pause, self._grace = make_mirror, pause, grace
        self._mirror: MLflowMirror | None = None
        self._events: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._deadline = math.inf
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def began(self, race: Race, slots: int) -> None:
        self._events.put(("open", ()))

    def started(self, spec: TrialSpec) -> None:
        self._events.put(("start", (spec, time.time())))

    def finished(self, record: TrialRecord) -> None:
        self._events.put(("finish", (record,)))

    def stop(self, status: str, metrics: dict[str, float], report: Path | None = None) -> bool:
        """Sends what is left, then closes the benchmark's run; whether everything was sent."""
        self._events.put(("close", (status, metrics, report)))
        self._events.put(None)
        self._deadline = time.monotonic() + self._grace
        self._thread.join(self._grace + 1)
        sent = not self._thread.is_alive() and self._events.empty()
        if not sent and self.problem is None:
            self.problem = f"no answer within {self._grace:g} s"
        return sent

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            name, arguments = event
            while True:
                try:
                    if self._mirror is None:
                        self._mirror = self._make_mirror()
                    getattr(self._mirror, name)(*arguments)
                    break
                except Exception as error:
                    self.problem = one_line(error)[:200]
                    if time.monotonic() + self._pause > self._deadline:
                        self._events.put(event)
                        return
                    time.sleep(self._pause)
