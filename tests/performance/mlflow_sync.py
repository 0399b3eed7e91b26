"""Measure `sync`: the records of 1,000 trials to an empty MLflow server on loopback, and the same again.

Prints JSON: the seconds of both commands, imports included. ``python -m tests.performance.mlflow_sync --trials 1000``
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.config.benchmark import Benchmark, make_methods
from bench.execution.run_trial import TrialContext
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from tests.faults.servers import Server
from tests.performance.scale import benchmark_of, pretend

CHANGING = ("train_nll", "scale_backbone", "scale_head", "weight_decay_backbone", "weight_decay_head")


def fill(store: RecordStore, benchmark: Benchmark) -> int:
    """Write records as a run leaves them; return their number."""
    store.write_benchmark(benchmark.content())
    queue, context = TrialQueue(make_methods(benchmark)), TrialContext(torch.device("cpu"), 4, 1)
    count = 0
    while (spec := queue.ask()) is not None:
        record, series = pretend(spec, None, context)
        record = replace(record, versions={"torch": "2", "python": "3.11", "data": "f1a9"})
        rows = [
            {name: value * (i if name in CHANGING else 1) for name, value in row.items()}
            for i, row in enumerate(series, 1)
        ]
        store.write(record, rows)
        queue.tell(record)
        count += 1
    return count


def time_sync(storage: str, uri: str) -> float:
    """Seconds of one `sync`."""
    since = time.perf_counter()
    command = [sys.executable, "-m", "bench", "sync", storage, "--tracking-uri", uri]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="processes of the MLflow server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = RecordStore(str(folder / "storage"))
        count = fill(store, benchmark_of(options.trials, 4))
        with Server(folder / "mlflow.db", workers=options.workers) as server:
            first, again = (time_sync(store.url, server.uri) for _ in range(2))
    load = os.getloadavg()[0]
    print(json.dumps({"trials": count, "first": round(first, 1), "again": round(again, 1), "load": round(load, 1)}))


if __name__ == "__main__":
    main()
