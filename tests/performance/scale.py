"""Measure the bookkeeping of a benchmark with trials that train nothing: Ray, records and MLflow alone.

Prints JSON: seconds a trial and the driver's memory for each thousand trials, how soon a finished storage is
continued, and what its report takes. ``python tests/performance/scale.py --trials 10000``
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.execution.run_trial import TrialContext
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.session.progress import ProgressDisplay
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

ROWS = 20


def benchmark_of(trials: int, slots: int) -> Benchmark:
    """At least that many trials: 66 a seed."""
    content = {
        "name": "scale",
        "dataset": "mnist-digits",
        "backbone": "digits-resnet",
        "n": [100],
        "priors": ["l2-sp", "l2-zero"],
        "seeds": list(range(1, -(-trials // 66) + 1)),
        "methods": {"map-gs": None, "de-elbo": None, "elbo": None},
        "resources": {"slots": slots},
    }
    return parse_benchmark(content, "scale")


def pretend(spec: TrialSpec, pretrained: Any, context: TrialContext) -> tuple[TrialRecord, Any]:
    """A trial that takes no time, its record as large as a real one's."""
    chance = int(hashlib.sha256(spec.key.encode()).hexdigest()[:8], 16) / 2**32
    names = {"tune": ("val_nll", "val_acc"), "retrain": ("test_nll", "test_acc")}.get(spec.stage, ())
    metrics = {"train_nll": chance} | dict.fromkeys(names, chance)
    if spec.stage == "run":
        metrics |= {"test_nll": chance, "test_acc": chance, "objective": chance, "nll_under_q": chance}
    state = {f"{name}_{group}": chance for name in ("scale", "weight_decay", "dim") for group in ("backbone", "head")}
    now = time.time()
    seconds = dict.fromkeys(("setup", "warmup", "train", "evaluate", "select", "monitor", "test", "total"), 0.001)
    series = [{"epoch": i, "step": i, "train_seconds": i, "train_nll": chance} | state for i in range(1, ROWS + 1)]
    hardware = {"device": "cpu", "node": "a", "cpu": "b", "threads": 1}
    record = TrialRecord(
        spec,
        "completed",
        metrics,
        state,
        seconds,
        now,
        now,
        context.attempt,
        context.concurrency,
        hardware,
        {"torch": "2"},
    )
    return record, series


class Meter(RunCallback):
    """Time and the driver's memory at every thousandth trial."""

    def __init__(self, every: int) -> None:
        self.every, self.count = every, 0
        self.marks: list[tuple[int, float, float]] = []

    def on_trial_end(self, record: TrialRecord) -> None:
        self.count += 1
        if self.count % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.marks.append((self.count, time.perf_counter(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            print(self.marks[-1], file=sys.stderr, flush=True)


def fill(store: RecordStore, benchmark: Benchmark, every: int, mlflow: bool) -> dict[str, Any]:
    """Runs the benchmark; what each stretch of ``every`` trials took."""
    from bench.ray_backend.tuner import BenchmarkRun
    from bench.tracking.client import tracking_uri
    from bench.tracking.mirror import MLflowMirror
    from bench.tracking.tracker import MLflowTracker

    meter = Meter(every)
    with StorageLock(store) as lock:
        store.write_benchmark(benchmark.content())
        tracker = MLflowTracker(MLflowMirror(tracking_uri(store), benchmark, store)) if mlflow else RunCallback()
        callbacks = [tracker, ProgressDisplay(Console(file=sys.stderr)), meter]
        outcome = BenchmarkRun(benchmark, lock, [], AttemptLog(store), {}, callbacks=callbacks, run_trial=pretend).run()
        stopping = time.perf_counter()
        sent = tracker.stop("FINISHED", {}) if isinstance(tracker, MLflowTracker) else None
        flush = time.perf_counter() - stopping
    marks = meter.marks
    stretches = [(b[1] - a[1]) / every for a, b in pairwise(marks)]
    return {
        "trials": outcome.ran,
        "milliseconds_a_trial": [round(1000 * s, 2) for s in stretches],
        "driver_mib": [round(mib) for _, _, mib in marks],
        "mlflow_took_all": sent,
        "mlflow_flush_seconds": round(flush, 1),
    }


def until_trials(config: Path, store: RecordStore) -> float:
    """Seconds from the command, with one more seed, to its first trial: all is read, and Ray is up."""
    known = set(store.names("attempts"))
    since = time.perf_counter()
    command = ["run", str(config), "--storage", store.url, "--tracking-uri", "http://127.0.0.1:9"]
    process = subprocess.Popen([sys.executable, "-m", "bench", *command], stdout=subprocess.DEVNULL)
    while process.poll() is None and set(os.listdir(store.path("attempts"))) <= {Path(name).name for name in known}:
        time.sleep(0.05)
    seconds = time.perf_counter() - since
    process.terminate()
    process.wait()
    return seconds


def timed(*command: str) -> float:
    """Seconds of a command of ours."""
    since = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--no-mlflow", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = benchmark_of(options.trials, options.slots)
        store = RecordStore(str(Path(folder) / "scale"))
        result = fill(store, benchmark, options.every, not options.no_mlflow)
        content = benchmark.content() | {"seeds": [*benchmark.seeds, 99_999]}
        (Path(folder) / "more.yaml").write_text(yaml.safe_dump(content))
        since = time.perf_counter()
        with StorageLock(store):
            records, _ = store.recover_records()
            TrialQueue(make_methods(benchmark), records)
        result["read_seconds"] = round(time.perf_counter() - since, 2)
        result["continue_seconds"] = round(until_trials(Path(folder) / "more.yaml", store), 1)
        result["report_seconds"] = round(timed("report", store.url), 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
