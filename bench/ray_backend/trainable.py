"""The trainable: a process of Ray that runs trials, one after the other, and keeps their records."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from ray import tune

from bench.config.benchmark import Benchmark
from bench.execution.run_trial import Series, TrialContext
from bench.storage.lease import Lease
from bench.storage.records import RecordStore
from bench.storage.retry import OUTAGE, Patience
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import single_line
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.checkpoint import Checkpoint, Handover

__all__ = ["TrialRunner", "TrialTrainable"]


TrialRunner = Callable[..., tuple[TrialRecord, Series]]
"""`bench.execution.run_trial.run_trial`, or what a test or a measurement puts in its place."""


class TrialTrainable(tune.Trainable):
    """Runs one trial a `step`; kept for the next trial, so that a process is started once a slot.

    The worker writes the record itself where its storage is the driver's, which it knows by the token in
    its lease: a driver that dies loses no finished trial.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds to it
        self,
        config: dict[str, Any],
        pretrained: Mapping[str, Pretrained],
        storage: str,
        token: str,
        benchmark: Benchmark,
        slots: int,
        data: str | None,
        run_trial: TrialRunner,
    ) -> None:
        torch.set_num_threads(benchmark.resources.cpus_per_trial)
        self.device = torch.device("cuda" if benchmark.resources.gpus_per_trial else "cpu")
        self.pretrained, self.benchmark, self.slots, self.data = pretrained, benchmark, slots, data
        self.run_trial = run_trial
        self.store = RecordStore(storage)
        self.store.patience = Patience(OUTAGE)
        self.token = token
        self.shares_storage = self._shares()

    def _shares(self) -> bool | None:
        """Whether the driver's name is in the storage; None where it cannot be read: this node lacks credentials or
        a package, or there is an outage."""
        try:
            lease = Lease.newest(self.store)
        except OSError:
            return None
        return lease is not None and lease.token == self.token

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        spec = TrialSpec(**self.config["spec"])
        if self.shares_storage is None:
            self.shares_storage = self._shares()
        context = TrialContext(
            self.device,
            concurrency=self.slots,
            attempt=self.config["attempt"],
            data=self.data,
            verify_data=self.benchmark.verify_data,
            timed=self.benchmark.timed,
            lost_seconds=self.config["lost_seconds"],
            checkpoint=self._checkpoint(spec),
            handover=self._handover(spec),
        )
        record, series = self.run_trial(spec, self.pretrained.get(spec.backbone), context)
        if (took := self.config["choosing_seconds"]) > 0:
            record = replace(record, seconds=record.seconds | {"choose": took})
        written = bool(self.shares_storage) and self._write(record, series)
        if record.status == "failed" and self.device.type == "cuda":
            gc.collect()  # reference cycles would keep the memory of the failed trial
            torch.cuda.empty_cache()
            torch.cuda.synchronize(self.device)  # raises if the error broke the process: the next trial gets a new one
        return {"record": record.to_json(), "series": series, "written": written, "done": True}

    def _write(self, record: TrialRecord, series: Series) -> bool:
        """Whether the record is kept; if not, the driver tries, and stops where it cannot either."""
        try:
            self.store.write(record, series)
            if self.benchmark.checkpoint_minutes is not None and record.succeeded:
                self.store.remove(f"checkpoints/{record.key}.pt")
        except Exception:
            return False
        return True

    def _checkpoint(self, spec: TrialSpec) -> Checkpoint | None:
        minutes = self.benchmark.checkpoint_minutes
        if minutes is None or not self.shares_storage:
            return None
        name = f"checkpoints/{spec.key}.pt"
        return Checkpoint(
            60 * minutes,
            partial(self._tried, self.store.write_file, name),
            partial(self._tried, self.store.read_file, name),
        )

    def _handover(self, spec: TrialSpec) -> Handover | None:
        """Where the part of a run before this one was left, and where this one is left, if another may come."""
        if (spec.since, spec.until) == (0.0, 1.0) or not self.shares_storage:
            return None

        def read() -> bytes | None:
            if spec.since == 0:
                return None
            content: bytes | None = self._tried(self.store.read_file, f"rungs/{spec.kept_as(spec.since)}.pt")
            return content

        write = partial(self._tried, self.store.write_file, f"rungs/{spec.kept_as(spec.until)}.pt")
        return Handover(read, write)

    @staticmethod
    def _tried(call: Callable[..., Any], *arguments: Any) -> Any:
        """An object store's own errors as OSError: a checkpoint that cannot be kept is no reason to end a run."""
        try:
            return call(*arguments)
        except Exception as error:
            raise OSError(single_line(error)) from error
