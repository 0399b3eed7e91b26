"""Log the use of the driver machine's GPUs to the benchmark's run, by MLflow's own monitor."""

import threading
from contextlib import suppress


def monitor_gpus(uri: str, run_id: str) -> None:
    """Start MLflow's monitor, unless it runs or there is no GPU that it can read.

    It logs every ten seconds from a thread of its own, until the run has ended or a request fails. It needs
    nvidia-ml-py (``pip install 'deelbo[gpu]'``), and does not see other nodes' GPUs.
    """
    if any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate()):
        return
    with suppress(Exception):  # of the package, of the GPU's driver, of the server
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        gpu_monitor = GPUMonitor()  # type: ignore[no-untyped-call]
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
        monitor.monitors = [gpu_monitor]  # neither the CPU, nor disk and network
        monitor.start()  # type: ignore[no-untyped-call]
