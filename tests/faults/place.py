"""The benchmark that faults are tried on: small, with real trials, and its records without any fault."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.faults.processes import Run
from tests.helpers import tiny

CONTENT: dict[str, Any] = tiny.CONTENT | {
    "methods": {
        "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0.001, 0], "retrain": "best"},
        "de-elbo": {"learning_rates": [0.1, 0.01, 0.001]},
        "elbo": {"learning_rates": [0.1, 0.01]},
    },
    "training": {"steps": 60, "batch_size": 50},
    "max_failures": 1000,
}
A_SEED = 12
"""Trials of `CONTENT` for each seed."""


@dataclass(frozen=True)
class Place:
    """A folder for storages, and the benchmark's records where nothing disturbed it.

    Args:
        folder: for everything; must exist.
        few, many: how many seeds, 12 trials each, a scenario takes that restarts often, or that needs time.
        random: moments and victims are drawn from it.
    """

    folder: Path
    few: int = 2
    many: int = 8
    random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - moments, not secrets

    def of(self, name: str, seed: int) -> Place:
        """A scenario's own folder and random numbers; the reference is shared."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mine = replace(self, folder=folder, random=random.Random(f"{seed} {name}"))  # noqa: S311
        mine.__dict__["reference"] = self.reference
        return mine

    def config(self, name: str = "tiny", seeds: int | None = None, **change: Any) -> Path:
        """A configuration's file. ``seeds``: how many, 12 trials each; few where None."""
        count = self.few if seeds is None else seeds
        file = self.folder / f"{name}.yaml"
        content = copy.deepcopy(CONTENT) | {"seeds": [1001 + 1000 * i for i in range(count)]} | change
        file.write_text(yaml.safe_dump(content))
        return file

    @cached_property
    def reference(self) -> Path:
        """The storage of an undisturbed run of all seeds."""
        storage = self.folder / "undisturbed"
        if storage.exists():
            return storage
        with Run(self.config("undisturbed", self.many), storage, "run") as run:
            run.ends_well()
        return storage

    def run_here(self) -> None:
        """Make the undisturbed storage in this process, without Ray, MLflow and account of time."""
        import torch

        from bench.config.benchmark import make_methods
        from bench.config.loading import load_benchmark
        from bench.execution.run_trial import TrialContext, run_trial
        from bench.scheduling.queue import TrialQueue
        from bench.storage.records import RecordStore
        from deelbo.pretrained.embedded import load_pretrained

        store = RecordStore(str(self.folder / "undisturbed"))
        queue = TrialQueue(make_methods(load_benchmark(str(self.config("undisturbed", self.many)))))
        start = load_pretrained()
        while (spec := queue.ask()) is not None:
            record, series = run_trial(spec, start, TrialContext(torch.device("cpu")))
            store.write(record, series)
            queue.tell(record)

    @cached_property
    def account(self) -> dict[str, float]:
        """The summary of the undisturbed run; ``trial``: mean seconds of one."""
        (file,) = (self.reference / "runs").iterdir()
        account: dict[str, float] = json.loads(file.read_text())
        busy = account["utilization"] * account["wall_seconds"] * account["slots"]
        return account | {"trial": busy / account["ran"]}

    def database(self, name: str) -> str:
        """Return the URI of an MLflow database with tables, and with the runs of the undisturbed storage."""
        file = self.folder / f"{name}.db"
        shutil.copyfile(self.reference / "mlflow.db", file)
        return f"sqlite:///{file}"

    def finished(self, name: str, seeds: int | None = None) -> Path:
        """A storage in which so many seeds are done: the undisturbed one's records."""
        storage = self.folder / name
        wanted = {1001 + 1000 * i for i in range(self.few if seeds is None else seeds)}
        for folder in ("records", "series"):
            (storage / folder).mkdir(parents=True)
        for file in (self.reference / "records").iterdir():
            if json.loads(file.read_text())["spec"]["seed"] in wanted:
                for folder in ("records", "series"):
                    shutil.copyfile(self.reference / folder / file.name, storage / folder / file.name)
        return storage
