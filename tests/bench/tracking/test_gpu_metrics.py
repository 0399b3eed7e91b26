"""The look at the driver's GPUs: in nobody's way, over when it should be, and none where there is nothing to see."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.storage.records import RecordStore
from bench.tracking.gpu_metrics import GPUWatch, find_gpus
from bench.tracking.mirror import MLflowMirror


class Gpus:
    """A reader as MLflow's, of one GPU that is half busy; its first look fails."""

    def __init__(self) -> None:
        self.looks = 0

    def clear_metrics(self) -> None:
        pass

    def collect_metrics(self) -> None:
        self.looks += 1
        if self.looks == 1:
            raise RuntimeError("NVML: unknown error")

    def aggregate_metrics(self) -> dict[str, float]:
        return {"gpu_0_utilization_percentage": 50.0}


@pytest.fixture
def mirror(tiny: Benchmark, storage: RecordStore, uri: str) -> Iterator[MLflowMirror]:
    made = MLflowMirror(uri, tiny, storage)
    yield made
    if made._watch is not None:
        made._watch.stop()
        made._watch.join()


def seen(mirror: MLflowMirror) -> dict[str, Any]:
    found = mirror.runs.client.get_run(mirror.runs.parent).data.metrics
    return {name: value for name, value in found.items() if name.startswith("system/")}


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_a_gpu_there_is_no_look(mirror: MLflowMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nvidia-ml-py is not installed, or finds nothing, no thread is started."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delitem(sys.modules, "mlflow.system_metrics.metrics.gpu_monitor", raising=False)
    assert find_gpus() is None
    mirror.open()
    assert mirror._watch is None


def test_gpus_are_on_the_benchmarks_run(mirror: MLflowMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a benchmark is open its run gets what the driver's GPUs say, after a look that failed too; once it is
    closed, nothing more."""
    gpus = Gpus()
    monkeypatch.setattr("bench.tracking.mirror.find_gpus", lambda: gpus)
    monkeypatch.setattr("bench.tracking.mirror.GPUWatch", lambda *given: GPUWatch(*given, interval=0.05))
    mirror.open()
    until(lambda: seen(mirror))
    assert seen(mirror) == {"system/gpu_0_utilization_percentage": 50.0}
    mirror.close("FINISHED", {}, 1014.0)
    assert mirror._watch is not None
    mirror._watch.join(30)
    looks = gpus.looks
    time.sleep(0.2)
    assert (gpus.looks, mirror._watch.is_alive()) == (looks, False)


def test_a_run_that_is_gone_ends_the_look(mirror: MLflowMirror, tiny: Benchmark) -> None:
    """A run that was deleted in the page is not looked for again."""
    watch = GPUWatch(mirror.uri, "0" * 32, Gpus(), interval=0.01)
    watch.start()
    watch.join(30)
    assert not watch.is_alive()
