"""MLflow's monitor of the driver's GPUs: it logs to the benchmark's run until that ends, if there is a GPU."""

import threading

import pytest

from bench.config.benchmark import Benchmark
from bench.storage.records import RecordStore
from bench.tracking.gpu_metrics import monitor_gpus
from bench.tracking.runs import MLflowRuns
from tests.faults.processes import until

READER = "mlflow.system_metrics.metrics.gpu_monitor.GPUMonitor"


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


class Reader:
    """A reader of one GPU that is half busy, with the methods of MLflow's."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}

    def collect_metrics(self) -> None:
        self._metrics["gpu_0_utilization_percentage"] = [50.0]

    def aggregate_metrics(self) -> dict[str, float]:
        return {name: values[0] for name, values in self._metrics.items()}

    def clear_metrics(self) -> None:
        self._metrics.clear()


def test_gpus_are_logged_until_the_run_ends(
    uri: str, tiny: Benchmark, storage: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark's run gets the GPU's metrics and no others, from one thread, which ends with the run."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setattr(READER, Reader)
    runs = MLflowRuns(uri, tiny, storage)
    for _ in range(2):
        monitor_gpus(uri, runs.parent)
        assert len(monitors()) == 1
    until(lambda: runs.client.get_run(runs.parent).data.metrics)
    assert runs.client.get_run(runs.parent).data.metrics == {"system/gpu_0_utilization_percentage": 50.0}
    runs.client.set_terminated(runs.parent)
    until(lambda: not monitors())


def test_without_a_gpu_no_monitor_is_started(
    uri: str, tiny: Benchmark, storage: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nvidia-ml-py is not installed, or finds no GPU, there is no thread and no error."""

    def fail() -> None:
        raise ImportError("`nvidia-ml-py` is not installed")

    monkeypatch.setattr(READER, fail)
    monitor_gpus(uri, MLflowRuns(uri, tiny, storage).parent)
    assert monitors() == []
