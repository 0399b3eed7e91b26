"""Measure how well trials fill the slots of a cluster: 1 to 8 nodes of one CPU, and trials that sleep 1 to 3 s.

Every number of slots gets the same trials in the same shuffled order, in a driver of its own. Prints a table and JSON.
``python tests/performance/slots.py --slots 1 2 4 8 --trials 96``
"""

import argparse
import hashlib
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.execution.run_trial import TrialContext
from bench.results.frame import to_frame
from bench.results.makespan import Jobs, compute_makespan
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.raylets import LOOPBACK, Raylets

NODES_PATIENCE = 300.0


def benchmark_of(trials: int, resources: Mapping[str, Any] | None = None) -> Benchmark:
    """At least that many trials: 16 a seed, none of which waits for another."""
    return parse_benchmark(
        {
            "name": "slots",
            "dataset": "mnist-digits",
            "backbone": "digits-resnet",
            "n": [100],
            "priors": ["l2-sp", "l2-zero"],
            "seeds": list(range(1, -(-trials // 16) + 1)),
            "methods": {"de-elbo": None, "elbo": None},
            "resources": dict(resources or {}),
        },
        "slots",
    )


def nap(spec: TrialSpec) -> float:
    """Seconds from 1 to 3, by the trial alone."""
    return 1 + 2 * int(hashlib.sha256(spec.key.encode()).hexdigest()[:8], 16) / 2**32


def sleep(spec: TrialSpec, pretrained: Any, context: TrialContext) -> tuple[TrialRecord, Any]:
    """A trial that does nothing but take its time; its record names its process, which is its slot."""
    since = time.time()
    time.sleep(nap(spec))
    seconds = {"train": nap(spec), "total": nap(spec)}
    metrics = {"train_nll": 0.5, "objective": 0.5, "test_nll": 0.5, "test_acc": 0.5}
    hardware = {"process": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
    return TrialRecord(
        spec, "completed", metrics, {}, seconds, since, time.time(), context.attempt, context.concurrency, hardware
    ), []


def drive(address: str, trials: int, since: float, resources: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A driver: runs all trials, and what came of it, in seconds."""
    from bench.ray_backend.tuner import BenchmarkRun

    benchmark = benchmark_of(trials, resources)
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(folder)
        with StorageLock(store) as lock:
            outcome = BenchmarkRun(
                benchmark, lock, [], AttemptLog(store), {}, address, start_time=since, run_trial=sleep
            ).run()
        records = sorted(store.records(), key=lambda record: record.started)
    ready: dict[int, float] = {}
    for record in records:
        ready.setdefault(record.hardware["process"], record.started - since)
    naps = [nap(record.spec) for record in records]
    first, last = records[0].started, max(record.finished for record in records)
    slots = outcome.slots
    greedy = compute_makespan([Jobs(tuple(naps))], slots)
    staggered = with_starts(naps, sorted(ready.values())[:slots])
    return {
        "slots": slots,
        "trials": len(records),
        "processes": len(ready),
        "nodes": len({record.hardware["node"] for record in records}),
        "sum_of_sleeps": sum(naps),
        "greedy_bound": greedy,
        "first_trial_after": first - since,
        "slots_ready_after": sorted(ready.values()),
        "makespan": last - first,
        "makespan_over_greedy": (last - first) / greedy,
        "command_to_end": last - since,
        "over_greedy_and_start_up": (last - since) / (greedy + max(ready.values())),
        "over_greedy_from_when_slots_were_ready": (last - first) / (staggered - (first - since)),
        "max_concurrency": int(to_frame(records)["concurrency_start"].max()),
        "load": os.getloadavg()[0],
    }


def with_starts(seconds: Sequence[float], ready: Sequence[float]) -> float:
    """When greedy list scheduling ends, on slots that are there from these moments on."""
    slots = list(ready)
    heapq.heapify(slots)
    end = 0.0
    for job in seconds:
        done = heapq.heappop(slots) + job
        end = max(end, done)
        heapq.heappush(slots, done)
    return end


def measure(slots: int, trials: int) -> dict[str, Any]:
    """One cluster of that many nodes, and a driver on it."""
    with Raylets() as cluster:
        for node in range(slots):
            cluster.add(cpus=1)
            cluster.wait(node + 2, NODES_PATIENCE)
        command = [sys.executable, __file__, "--drive", cluster.address, "--trials", str(trials)]
        done = subprocess.run(
            [*command, "--since", str(time.time())], env=os.environ | LOOPBACK, stdout=subprocess.PIPE, check=True
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


COLUMNS = {
    "slots": "slots",
    "sum_of_sleeps": "sum of sleeps",
    "first_trial_after": "first trial after",
    "last_slot_after": "last slot after",
    "greedy_bound": "greedy bound",
    "makespan": "makespan",
    "makespan_over_greedy": "makespan / bound",
    "over_greedy_and_start_up": "whole / (bound + start-up)",
    "over_greedy_from_when_slots_were_ready": "makespan / bound of slots that start when they did",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--resources", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        print(json.dumps(drive(options.drive, options.trials, options.since, options.resources)))
        return
    results = []
    for slots in options.slots:
        results.append(measure(slots, options.trials))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results, indent=1))
    print("| " + " | ".join(COLUMNS.values()) + " |")
    print("|" + "---|" * len(COLUMNS))
    for result in results:
        row = result | {"last_slot_after": max(result["slots_ready_after"])}
        numbers = (row[name] for name in COLUMNS)
        print("| " + " | ".join(str(n) if isinstance(n, int) else f"{n:.3g}" for n in numbers) + " |")


if __name__ == "__main__":
    main()
