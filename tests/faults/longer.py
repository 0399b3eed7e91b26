"""A long run that is not timed loses its process, and goes on from its checkpoint."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.faults.place import Place
from tests.faults.processes import Run, in_training

EVERY = 0.005
"""Minutes from one checkpoint to the next."""
LONG: dict[str, Any] = {
    "methods": {"de-elbo": {"learning_rates": [0.1]}},
    "training": {"steps": 1200, "batch_size": 50},
    "resources": {"slots": 1},
    "timed": False,
}


def kill_long_runs(times: int, place: Place) -> str:
    """Its process dies as often as a checkpoint is newer than the last death; the end is as if it never had."""
    undisturbed, storage = place.folder / "whole", place.folder / "storage"
    with Run(place.config("whole", seeds=1, **LONG), undisturbed, "run") as run:
        run.ends_well()
    (whole,) = _records(undisturbed)
    config = place.config(seeds=1, checkpoint_minutes=EVERY, **LONG)
    seen: set[float] = set()
    with Run(config, storage, "run") as run:
        for _ in range(times):
            run.until(lambda: in_training(run.pid) and _newer(storage, seen), "a checkpoint")
            os.kill(in_training(run.pid)[0], signal.SIGKILL)
        run.ends_well()
    (record,) = _records(storage)
    assert record["attempt"] == times + 1, f"{times} deaths, at attempt {record['attempt']}"
    step, carried = record["state"].pop("resumed_at_step"), record["state"].pop("resumed_seconds")
    for name in ("metrics", "state"):
        assert record[name] == whole[name], f"{name} differ: {record[name]}, expected {whole[name]}"
    assert (record["timed"], whole["lost_seconds"]) == (False, 0.0)
    assert 0 < step < LONG["training"]["steps"]
    assert record["lost_seconds"] > 0
    assert not list((storage / "checkpoints").iterdir()), "a checkpoint outlived its trial"
    lost = record["lost_seconds"]
    return f"went on at step {step}, {carried:.1f} s carried over, {lost:.1f} s lost; the same to the bit"


def _records(storage: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (storage / "records").iterdir()]


def _newer(storage: Path, seen: set[float]) -> bool:
    """Return whether there is a checkpoint that the last call did not see."""
    try:
        (file,) = (storage / "checkpoints").glob("*.pt")
        written = file.stat().st_mtime
    except (ValueError, OSError):
        return False
    new = written not in seen
    seen.add(written)
    return new
