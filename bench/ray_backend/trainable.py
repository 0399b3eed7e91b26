"""The Tune trainable: a Ray process that runs trials one after the other and writes their records."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from ray import tune

from bench.config.benchmark import Benchmark
from bench.config.plugins import plugin_modules, used_plugins
from bench.execution.run_trial import Series, TrialContext
from bench.storage.lock import Lease
from bench.storage.models import write_model
from bench.storage.object_store import MAX_OUTAGE_SECONDS, OutageTimer
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.code import Code, running_code
from bench.utils.imports import add_to_search_path
from bench.utils.text import describe_error, single_line
from deelbo.data import Source
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.registry import BackboneSource
from deelbo.saved_model import SavedModel, model_files
from deelbo.training.checkpoint import Checkpoint, Handover

TrialRunner = Callable[..., tuple[TrialRecord, Series]]
"""`bench.execution.run_trial.run_trial`, or a substitute in tests and measurements."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that all workers of a run share.

    Attributes:
        storage: URL of the driver's storage, which this node may reach or not.
        token: the driver's, which tells its storage from another one at the same URL.
        benchmark: whose trials are run.
        slots: number of trials that may run at once.
        data: folder of the datasets; None for the node's own.
        code: the driver's.
        run_trial: runs one trial.
        sources: where the user's own data are, by dataset.
        networks: of the backbones, by name; None: the built-in one of that name.
        search_path: folders of the packages from which the benchmark imports networks.
    """

    storage: str
    token: str
    benchmark: Benchmark
    slots: int
    data: str | None
    code: Code
    run_trial: TrialRunner
    sources: Mapping[str, Source] = field(default_factory=dict)
    networks: Mapping[str, BackboneSource] = field(default_factory=dict)
    search_path: Sequence[str] = ()


def shares_storage(store: RecordStore, token: str) -> bool | None:
    """Return whether a worker's storage is the one that its driver holds by this token.

    None if it cannot be read: this node lacks credentials or a package, or there is an outage.
    """
    try:
        lease = Lease.newest(store)
    except OSError:
        return None
    return lease is not None and lease.token == token


class TrialTrainable(tune.Trainable):
    """A worker process: each `step` runs one trial, and Tune reuses the process for the next one.

    The worker writes the record itself if its storage is the driver's, which it knows by the token in the lease: a
    driver that dies loses no finished trial.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds the arguments
        self, config: dict[str, Any], pretrained: Mapping[str, Pretrained], settings: WorkerSettings
    ) -> None:
        add_to_search_path(settings.search_path)
        self.settings, self.benchmark, self.pretrained = settings, settings.benchmark, pretrained
        self.code = running_code(plugin_modules(self.benchmark))
        torch.set_num_threads(self.benchmark.resources.cpus_per_trial)
        self.device = torch.device("cuda" if self.benchmark.resources.gpus_per_trial else "cpu")
        self.store = RecordStore(settings.storage)
        self.store.outage_timer = OutageTimer(MAX_OUTAGE_SECONDS)
        self.shares_storage = shares_storage(self.store, self.settings.token)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        if replace(self.code, folder=self.settings.code.folder) != self.settings.code:  # an unchecked node
            return {"code": asdict(self.code), "record": None, "done": True}
        spec = TrialSpec(**self.config["spec"])
        if self.shares_storage is None:
            self.shares_storage = shares_storage(self.store, self.settings.token)
        self.model_problem: str | None = None
        context = TrialContext(
            self.device,
            concurrency=self.settings.slots,
            attempt=self.config["attempt"],
            data=self.settings.data,
            verify_data=self.benchmark.verify_data,
            timed=self.benchmark.timed,
            lost_seconds=self.config["lost_seconds"],
            checkpoint=self._checkpoint(spec),
            handover=self._handover(spec),
            source=self.settings.sources.get(spec.dataset),
            plugins=used_plugins(self.benchmark, spec),
            network=self.settings.networks.get(spec.backbone),
            keep=None if self.benchmark.keep == "none" else partial(self._keep, spec.key),
        )
        record, series = self.settings.run_trial(spec, self.pretrained.get(spec.backbone), context)
        if (seconds := self.config["choosing_seconds"]) > 0:
            record = replace(record, seconds=record.seconds | {"choose": seconds})
        written = bool(self.shares_storage) and self._write(record, series)
        if record.status == "failed":
            self._free_memory()
        result = {"record": record.to_json(), "series": series, "written": written, "code": asdict(self.code)}
        return result | {"model_problem": self.model_problem, "done": True}

    def _free_memory(self) -> None:
        """Free what a failed trial has left, so that the next one has the whole memory."""
        gc.collect()  # exceptions in reference cycles hold the frames of the trial, and so its tensors
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize(self.device)  # raises if the error broke the process: the next trial gets a new one

    def _write(self, record: TrialRecord, series: Series) -> bool:
        """Return whether the record was written; if not, the driver tries, and stops if it cannot either."""
        try:
            self.store.write(record, series)
            if self.benchmark.checkpoint_minutes is not None and record.succeeded:
                self.store.remove(f"checkpoints/{record.key}.pt")
        except Exception:
            return False
        return True

    def _keep(self, key: str, model: SavedModel) -> None:
        """Write a model before its record, so that a trial with a record has its model; or note why it cannot be."""
        if not self.shares_storage:
            self.model_problem = "its node does not reach the storage of the run: take one that every node reaches"
            return
        try:
            write_model(self.store, key, model_files(model))
        except Exception as error:  # whatever it is, the trial has its result
            self.model_problem = describe_error(error)

    def _checkpoint(self, spec: TrialSpec) -> Checkpoint | None:
        minutes = self.benchmark.checkpoint_minutes
        if minutes is None or not self.shares_storage:
            return None
        name = f"checkpoints/{spec.key}.pt"
        return Checkpoint(
            60 * minutes,
            partial(self._call, self.store.write_file, name),
            partial(self._call, self.store.read_file, name),
        )

    def _handover(self, spec: TrialSpec) -> Handover | None:
        """Return where the segment before this one left its snapshot, and where this one leaves its own."""
        if (spec.since, spec.until) == (0.0, 1.0) or not self.shares_storage:
            return None

        def read() -> bytes | None:
            if spec.since == 0:
                return None
            content: bytes | None = self._call(self.store.read_file, f"rungs/{spec.snapshot_key(spec.since)}.pt")
            return content

        write = partial(self._call, self.store.write_file, f"rungs/{spec.snapshot_key(spec.until)}.pt")
        return Handover(read, write)

    @staticmethod
    def _call(call: Callable[..., Any], *arguments: Any) -> Any:
        """Turn an object store's own errors into OSError: a trial goes on without a checkpoint that cannot be saved."""
        try:
            return call(*arguments)
        except Exception as error:
            raise OSError(single_line(error)) from error
