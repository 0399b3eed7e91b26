"""The runs of one benchmark in MLflow: found, made where there is none, and one a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.benchmark import Benchmark
from bench.storage.records import RecordStore
from bench.tracking.client import connect
from bench.tracking.conversion import clipped, is_current, mark_of, name_of, rounded, stamp
from bench.tracking.dataset_inputs import dataset_inputs
from bench.tracking.descriptions import NOTE, is_ours
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url

__all__ = ["CHOSEN", "COMPLETE", "COST", "Child", "Runs", "end_of", "whose"]


BATCH = 1000
PAGE = 200  # of 20 kB and more a run
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # opens the page that shows training runs
COMPLETE = "deelbo.complete"
CHOSEN, COST = "chosen", "cost_seconds"
KEY = "deelbo.key"
PARENT = "mlflow.parentRunId"
STORAGE = "deelbo.storage"
IDENTITY = "deelbo.storage_id"  # two machines may have storages of one path


@dataclass
class Child:
    """A trial's run as it is in MLflow.

    Attributes:
        run: its id.
        mark: of the record that is in it; "" where none is, or not all of it.
        described: whether it has its parameters.
        erred: whether it has an error.
        cost: seconds that its method needed, where this is the trial that it chose.
    """

    run: str
    status: str = "RUNNING"
    mark: str = ""
    described: bool = False
    erred: bool = False
    cost: float | None = None

    def holds(self, record: TrialRecord) -> bool:
        return self.status == end_of(record) and self.mark == mark_of(record)

    def belies(self, record: TrialRecord) -> bool:
        """Whether it has points that are not the record's: of another result, or by the names of an earlier version.
        Those of a failed trial may stay."""
        if self.mark in ("", mark_of(record)):
            return False
        return not (is_current(self.mark) and self.mark.startswith("failed"))


class Runs:
    """A benchmark's runs in MLflow, as they were found and as this object made them.

    Args:
        uri, benchmark, store, since: as of `bench.tracking.mirror.MLflowMirror`.
        before_call: called before each request; what it raises is raised there.

    Attributes:
        parent, status: the benchmark's run and its status.
        children: the trials' runs that are known, by the trials' keys.
    """

    def __init__(
        self,
        uri: str,
        benchmark: Benchmark,
        store: RecordStore,
        since: float | None,
        before_call: Callable[[], None],
    ) -> None:
        self.benchmark, self.store, self._before_call = benchmark, store, before_call
        self.client = connect(uri)
        self.experiment = self._experiment(uri)
        self.parent, self.status = self._find_parent(since)
        self.children: dict[str, Child] = {}
        self._all_known = False
        self._costs: dict[str, float] | None = None
        self._chosen = 0.0

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        self._before_call()
        return getattr(self.client, name)(*arguments, **named)

    def _experiment(self, uri: str) -> str:
        found = self.call("get_experiment_by_name", self.benchmark.name)
        if found is None:
            artifacts = None
            if uri.startswith("sqlite:///") and not uri.startswith(
                "sqlite:///file:"
            ):  # beside the database; MLflow's own default is the current folder
                artifacts = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
            return str(self.call("create_experiment", self.benchmark.name, artifacts, TRAINING))
        if found.lifecycle_stage == "deleted":  # MLflow keeps its name taken, and its runs, until `mlflow gc`
            self.call("restore_experiment", found.experiment_id)
        return str(found.experiment_id)

    def _find_parent(self, since: float | None) -> tuple[str, str]:
        """The benchmark's run and its status; made where there is none."""
        parents = list(self.search("benchmark"))
        for extra in parents[:-1]:  # the oldest stays
            self.call("delete_run", extra.info.run_id)
        if parents:
            return str(parents[-1].info.run_id), str(parents[-1].info.status)
        tags = _named(self.store, "benchmark")
        start = None if since is None else stamp(since)
        run = self.call("create_run", self.experiment, start, tags, clipped(self.benchmark.name, 250))
        return str(run.info.run_id), "RUNNING"

    def search(self, role: str, condition: str = "") -> Iterator[Any]:
        """This storage's runs in a role, newest first."""
        words = " and ".join(filter(None, (whose(self.store, role), condition)))
        token = None
        while True:
            page = self.call("search_runs", [self.experiment], words, max_results=PAGE, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def find(self, key: str) -> Child | None:
        """A trial's run, where there is one."""
        if not self._all_known:
            self._note(self.search("trial"))
            self._all_known = True
        return self.children.get(key)

    def child(self, spec: TrialSpec, when: float) -> Child:
        """The trial's run; made where there is none."""
        if (known := self.find(spec.key)) is not None:
            return known
        tags = _named(self.store, "trial") | {KEY: spec.key, PARENT: self.parent}
        tags |= {"method": spec.method, "prior": spec.prior, "stage": spec.stage}
        run = self.call("create_run", self.experiment, stamp(when), tags, name_of(spec))
        self.children[spec.key] = Child(str(run.info.run_id))
        return self.children[spec.key]

    def kill(self, but: Collection[str] = ()) -> None:
        """Of the trials only those with the keys ``but`` stay RUNNING, and none of them twice."""
        self._note(self.search("trial", "attributes.status = 'RUNNING'"))
        for key, child in self.children.items():
            if child.status == "RUNNING" and key not in but:
                self.end(child, "KILLED")

    def _note(self, runs: Iterable[Any]) -> None:
        """Takes note of trials' runs; of two of a trial, as an interrupted call may leave them, the one with a record
        stays."""
        # all are read before any is deleted, as that moves the pages that follow
        for key, parent, found in [_read(run) for run in runs]:
            known = self.children.get(key)
            if known is not None and known.run != found.run:
                extra = known if found.mark and not known.mark else found
                self.call("delete_run", extra.run)
                if extra is found:
                    continue
            if parent != self.parent:  # that was deleted in the page
                self.call("set_tag", found.run, PARENT, self.parent)
            self.children[key] = found

    def log(
        self,
        child: Child,
        metrics: Collection[tuple[str, float, int, int]] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        mark: str = "",
    ) -> None:
        """Metrics, parameters and tags in as few requests as MLflow's limits allow; ``mark``: of the whole record."""
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(*point) for point in metrics]
        news = [] if child.described else [Param(name, value) for name, value in (params or {}).items()]
        words = [RunTag(name, value) for name, value in (tags or {}).items()]
        if mark:
            words.append(RunTag(COMPLETE, mark))
        if tags and child.erred and "error" not in tags:
            self.call("delete_tag", child.run, "error")
            child.erred = False
        room = BATCH - len(news) - len(words)
        while len(points) > room:
            self.call("log_batch", child.run, metrics=points[:BATCH])
            points = points[BATCH:]
        if points or news or words:
            self.call("log_batch", child.run, metrics=points, params=news, tags=words)
        child.described, child.mark, child.erred = True, mark or child.mark, child.erred or "error" in (tags or {})

    def choose(self, costs: Mapping[str, float], when: float) -> None:
        """Of the trials those with these keys are what their methods chose, at a cost in seconds; no others are."""
        self._costs, self._chosen = dict(costs), when
        self.find("")  # all are known then
        for key in self.children:
            self.mark(key)

    def mark(self, key: str) -> None:
        """The trial is what its method chose, or is not; nothing where that is not known yet."""
        from mlflow.entities import Metric, RunTag

        if self._costs is None:
            return
        child, cost = self.children[key], self._costs.get(key)
        cost = None if cost is None else rounded(cost)
        if cost == child.cost:
            return
        if cost is None:
            self.call("delete_tag", child.run, CHOSEN)
        else:
            points = [Metric(COST, cost, stamp(self._chosen), 0)]
            self.call("log_batch", child.run, metrics=points, tags=[RunTag(CHOSEN, "true")])
        child.cost = cost

    def log_inputs(self, child: Child, record: TrialRecord) -> None:
        """The data that the trial saw, where its record says which."""
        if inputs := dataset_inputs(record):
            self.call("log_inputs", child.run, inputs)

    def describe(self, note: str, experiment_note: str, views: dict[str, str], new: bool) -> None:
        """What the page says of the benchmark's run and of the experiment, and the views it offers. A description that
        somebody else wrote stays, and so does an earlier one of the run where this is not ``new``."""
        there = self.call("get_experiment", self.experiment).tags
        tags = {name: text for name, text in views.items() if there.get(name) != text}
        if is_ours(old := there.get(NOTE, "")) and old != experiment_note:
            tags[NOTE] = experiment_note
        for name, text in tags.items():
            self.call("set_experiment_tag", self.experiment, name, text)
        old = self.call("get_run", self.parent).data.tags.get(NOTE, "")
        if is_ours(old) and old != note and (new or not old):
            self.call("set_tag", self.parent, NOTE, note)

    def end(self, child: Child, status: str, when: float | None = None) -> None:
        """Now, where no time is given."""
        self.call("set_terminated", child.run, status, None if when is None else stamp(when))
        child.status = status

    def revive(self, child: Child) -> None:
        if child.status != "RUNNING":
            self.call("update_run", child.run, "RUNNING")
            child.status = "RUNNING"

    def remove(self, key: str) -> None:
        """Deletes a trial's run."""
        self.call("delete_run", self.children[key].run)
        del self.children[key]

    def reopen(self) -> None:
        """The benchmark's run is RUNNING."""
        if self.status != "RUNNING":
            self.call("update_run", self.parent, "RUNNING")
            self.status = "RUNNING"

    def close(self, status: str, metrics: dict[str, float], when: float) -> None:
        """The benchmark's run has ended."""
        from mlflow.entities import Metric

        if self.status != status:
            self.call("set_terminated", self.parent, status, stamp(when) or None)
            self.status = status
        points = [Metric(name, value, stamp(when), 0) for name, value in metrics.items() if math.isfinite(value)]
        self.call("log_batch", self.parent, metrics=points)


def _read(run: Any) -> tuple[str, str | None, Child]:
    """A trial's key, its parent run, and its run."""
    tags = run.data.tags
    child = Child(run.info.run_id, run.info.status, tags.get(COMPLETE, ""), bool(run.data.params), "error" in tags)
    child.cost = run.data.metrics.get(COST) if CHOSEN in tags else None
    return tags[KEY], tags.get(PARENT), child


def end_of(record: TrialRecord) -> str:
    return "FINISHED" if record.succeeded else "FAILED"


def whose(store: RecordStore, role: str) -> str:
    """MLflow's filter for the runs of a storage in a role: "benchmark" or "trial"."""
    identity = store.identity
    quote = '"' if "'" in identity else "'"
    return f"tags.`{IDENTITY}` = {quote}{clipped(identity)}{quote} and tags.`deelbo.role` = '{role}'"


def _named(store: RecordStore, role: str) -> dict[str, str]:
    """The tags by which `whose` finds a run, and where its storage was."""
    return {"deelbo.role": role, IDENTITY: clipped(store.identity), STORAGE: clipped(redact_url(store.url))}
