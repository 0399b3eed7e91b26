"""A benchmark's runs in MLflow: one of its own, and one for each trial below it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.benchmark import Benchmark
from bench.storage.records import RecordStore
from bench.tracking.client import connect, is_own_database
from bench.tracking.conversion import MAX_NAME_CHARS, Point, clip_text, final_status, milliseconds, run_name, run_params
from bench.tracking.descriptions import NOTE, experiment_note, is_replaceable, run_note
from bench.tracking.views import saved_views
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url

MAX_BATCH_SIZE = 1000
PAGE_SIZE = 200  # runs, of 20 kB and more each
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # opens the page that lists training runs
KEY, MARK, ROLE, STORAGE = "deelbo.key", "deelbo.complete", "deelbo.role", "deelbo.storage"
STORAGE_ID = "deelbo.storage_id"  # two machines may have storages of one path
PARENT = "mlflow.parentRunId"
CHOSEN, COST = "chosen", "cost_seconds"
MODEL = "model"
Pairs = Mapping[str, str]
NOTHING: Pairs = {}


@dataclass
class TrialRun:
    """A trial's run as it is in MLflow.

    Attributes:
        mark: of the record that was sent (`record_mark`), or is being sent until the run has a final status.
        has_params: whether the trial's parameters were sent.
        cost: seconds that the trial's method needed, if this is the trial that it chose.
    """

    run_id: str
    parent: str | None
    status: str = "RUNNING"
    mark: str = ""
    has_params: bool = False
    cost: float | None = None

    def is_current(self, mark: str) -> bool:
        """Tell whether the run holds the whole record of that mark."""
        return self.mark == mark and self.status == final_status(mark)

    def is_stale(self, mark: str) -> bool:
        """Tell whether the run holds points of another record."""
        return self.mark not in ("", mark)


class MLflowRuns:
    """The runs of one benchmark and storage; the experiment and the benchmark's run are made if they are missing.

    Args:
        before_request: called before each request; what it raises is raised from the method.
        since: start of the benchmark in seconds since 1970; None for now.

    Attributes:
        experiment, parent: ids of the experiment and of the benchmark's run.
        trials: the trials' runs by the trials' keys, as of `load` and all that was sent since.
    """

    def __init__(
        self,
        uri: str,
        benchmark: Benchmark,
        store: RecordStore,
        before_request: Callable[[], None] = lambda: None,
        since: float | None = None,
    ) -> None:
        self.benchmark, self.store, self._before_request = benchmark, store, before_request
        self.client, self._is_own = connect(uri), is_own_database(store, uri)
        self.experiment = self._find_experiment(uri)
        self.trials: dict[str, TrialRun] = {}
        found = self.search("benchmark")
        for run in found[:-1]:
            self.call("delete_run", run.info.run_id)
        start, name = None if since is None else milliseconds(since), clip_text(benchmark.name, MAX_NAME_CHARS)
        parent = found[-1] if found else self.call("create_run", self.experiment, start, self._tags("benchmark"), name)
        self.parent = str(parent.info.run_id)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the client."""
        self._before_request()
        return getattr(self.client, method)(*arguments, **named)

    def _find_experiment(self, uri: str) -> str:
        found = self.call("get_experiment_by_name", self.benchmark.name)
        if found is None:
            artifacts, path = None, uri.removeprefix("sqlite:///")
            if self._is_own:  # no path of this machine: `ui` says where they are
                artifacts = f"mlflow-artifacts:/{self.benchmark.name}"
            elif path != uri and not path.startswith("file:"):  # MLflow's default is the working directory
                artifacts = (Path(path).absolute().parent / "mlartifacts").as_uri()
            return str(self.call("create_experiment", self.benchmark.name, artifacts, EXPERIMENT_TAGS))
        if found.lifecycle_stage == "deleted":  # its name stays taken until `mlflow gc`
            self.call("restore_experiment", found.experiment_id)
        return str(found.experiment_id)

    def _tags(self, role: str) -> dict[str, str]:
        """Return the tags by which `role_filter` finds a run, and its storage's address if MLflow is elsewhere."""
        tags = {ROLE: role, STORAGE_ID: clip_text(self.store.identity)}
        return tags if self._is_own else tags | {STORAGE: clip_text(redact_url(self.store.url))}

    def search(self, role: str, condition: str = "") -> list[Any]:
        """Return this storage's runs in a role, newest first."""
        text = " and ".join(filter(None, (role_filter(self.store, role), condition)))
        runs, token = list[Any](), None
        while True:
            page = self.call("search_runs", [self.experiment], text, max_results=PAGE_SIZE, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def load(self, condition: str = "") -> None:
        """Read the trials' runs. Of two of one trial, as interrupted requests may leave them, one is deleted."""
        for run in self.search("trial", condition):
            tags, key = run.data.tags, run.data.tags[KEY]
            cost = run.data.metrics.get(COST) if CHOSEN in tags else None
            mark, parent = tags.get(MARK, ""), tags.get(PARENT)
            found = TrialRun(run.info.run_id, parent, run.info.status, mark, bool(run.data.params), cost)
            known = self.trials.get(key, found)
            if known.run_id != found.run_id:
                if known.status == "RUNNING" != found.status:
                    known, found = found, known
                self.call("delete_run", found.run_id)
                found = known
            self.trials[key] = found

    def reload(self, key: str) -> None:
        """Read a trial's run again, since a failed request may have had an effect."""
        self.trials.pop(key, None)
        self.load(f"tags.`{KEY}` = '{key}'")

    def create(self, spec: TrialSpec, when: float, tags: Pairs = NOTHING) -> TrialRun:
        """Make a trial's run; ``when``: its start in seconds since 1970."""
        identity = {KEY: spec.key, "method": spec.method, "prior": spec.prior, "stage": spec.stage}
        tags = self._tags("trial") | identity | {PARENT: self.parent, **tags}
        run = self.call("create_run", self.experiment, milliseconds(when), tags, run_name(spec))
        made = self.trials[spec.key] = TrialRun(str(run.info.run_id), self.parent, mark=tags.get(MARK, ""))
        return made

    def log(self, run_id: str, metrics: Collection[Point] = (), params: Pairs = NOTHING, tags: Pairs = NOTHING) -> None:
        """Log to a run in as few requests as MLflow's limits allow, tags last."""
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(*point) for point in metrics]
        pairs = [Param(name, value) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        while len(points) > MAX_BATCH_SIZE - len(pairs) - len(labels):
            self.call("log_batch", run_id, metrics=points[:MAX_BATCH_SIZE])
            points = points[MAX_BATCH_SIZE:]
        self.call("log_batch", run_id, metrics=points, params=pairs, tags=labels)

    def log_params(self, run: TrialRun, spec: TrialSpec) -> None:
        """Log the parameters of a trial that runs."""
        self.log(run.run_id, params=run_params(spec))
        run.has_params = True

    def set_status(self, run: TrialRun, status: str, when: float | None = None) -> None:
        """Start a trial's run again, or end it; ``when``: its end in seconds since 1970, None for now."""
        if status == "RUNNING":
            self.call("update_run", run.run_id, status)
        else:
            self.call("set_terminated", run.run_id, status, None if when is None else milliseconds(when))
        run.status = status

    def move(self, run: TrialRun) -> None:
        """Put a trial's run below the benchmark's run, as another one was deleted in the page."""
        self.call("set_tag", run.run_id, PARENT, self.parent)
        run.parent = self.parent

    def choose(self, run: TrialRun, cost: float | None, when: float) -> None:
        """Mark a trial as its method's choice, at a cost in seconds, or remove the mark where there is no cost."""
        if cost is None:
            self.call("delete_tag", run.run_id, CHOSEN)
        else:
            self.log(run.run_id, [(COST, cost, milliseconds(when), 0)], tags={CHOSEN: "true"})
        run.cost = cost

    def describe(self, report: Path | None = None) -> None:
        """Set the descriptions and the saved views.

        A description that somebody wrote in the page stays, and so does the outcome of an earlier report.
        """
        benchmark, ids = self.benchmark, (self.experiment, self.parent)
        present = self.call("get_experiment", self.experiment).tags
        tags = saved_views(tuple(benchmark.methods))
        if is_replaceable(present.get(NOTE, "")):
            tags[NOTE] = experiment_note(benchmark, *ids)
        for name, text in tags.items():
            if present.get(name) != text:
                self.call("set_experiment_tag", self.experiment, name, text)
        old, new = self.call("get_run", self.parent).data.tags.get(NOTE, ""), run_note(benchmark, *ids, report)
        if is_replaceable(old) and old != new and (report is not None or not old):
            self.call("set_tag", self.parent, NOTE, new)

    def log_text(self, text: str, name: str) -> None:
        """Log a text as a file to the benchmark's run."""
        if not self._write_artifact(name, text.encode()):
            self.call("log_text", self.parent, text, name)

    def log_report(self, files: Iterable[Path]) -> None:
        """Log the files of a report to the benchmark's run."""
        for file in files:
            if not self._write_artifact(f"report/{file.name}", file.read_bytes()):
                self.call("log_artifact", self.parent, str(file), "report")

    def log_model(self, key: str, mark: str, folder: Path) -> None:
        """Log a folder of MLflow's `save_model` as the model of a trial with the record of that mark."""
        from mlflow.entities import LoggedModelOutput

        run_id, tags = self.trials[key].run_id, self._tags(MODEL) | {KEY: key, MARK: mark}
        model = self.call("create_logged_model", self.experiment, MODEL, run_id, tags)
        if self._is_own:
            self._before_request()
            place = model.artifact_location.removeprefix("mlflow-artifacts:/")
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = f"mlartifacts/{place}/{file.relative_to(folder).as_posix()}"
                self.store.write_file(name, file.read_bytes())
        else:
            self.call("log_model_artifacts", model.model_id, str(folder))
        self.call("finalize_logged_model", model.model_id, "READY")
        self.call("log_outputs", run_id, [LoggedModelOutput(model.model_id, 0)])

    def has_model(self, key: str, mark: str) -> bool:
        """Return whether the whole model of a trial with the record of that mark is there; delete any other of it."""
        condition = f"{role_filter(self.store, MODEL)} and tags.`{KEY}` = '{key}'"
        current = False
        for model in self.call("search_logged_models", [self.experiment], condition):
            if not current and str(model.status) == "READY" and model.tags[MARK] == mark:
                current = True
            else:
                self.call("delete_logged_model", model.model_id)
        return current

    def _write_artifact(self, name: str, content: bytes) -> bool:
        """Write an artifact into the storage if the database is there, as MLflow's client would need a server for it.

        Returns:
            False if the artifacts are elsewhere.
        """
        if self._is_own:
            self._before_request()
            self.store.write_file(f"mlartifacts/{self.benchmark.name}/{self.parent}/artifacts/{name}", content)
        return self._is_own


def role_filter(store: RecordStore, role: str) -> str:
    """Return MLflow's filter for the runs of a storage in a role: "benchmark" or "trial"."""
    identity = clip_text(store.identity)
    quote = '"' if "'" in identity else "'"
    return f"tags.`{STORAGE_ID}` = {quote}{identity}{quote} and tags.`{ROLE}` = '{role}'"
