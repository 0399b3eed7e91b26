"""The driver machine's GPUs while a benchmark runs: how busy, how full, how hungry. Of the machine, never of a trial.

MLflow's own monitor is a thread of the process that owns a run. Here that would be a trial's, whose seconds are
measured, so the driver looks instead, where it has GPUs and nvidia-ml-py is installed (``pip install 'deelbo[gpu]'``).
Machines that the driver is not on are not seen; what each trial took of a GPU's memory is on its own run.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from bench.tracking.client import connect, is_gone

__all__ = ["GPUWatch", "find_gpus"]


INTERVAL = 10.0


def find_gpus() -> Any | None:
    """MLflow's reader of this machine's GPUs; None where there are none, or nothing to ask them with."""
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        return GPUMonitor()  # type: ignore[no-untyped-call]
    except Exception:  # no nvidia-ml-py, no driver, no GPU: each has an error of its own
        return None


class GPUWatch(threading.Thread):
    """Logs what a reader of GPUs says to a run, as ``system/gpu_0_utilization_percentage`` and the like.

    Nobody waits for it, and a server that does not answer costs no more than the looks that it missed.

    Args:
        uri, run: where, and to which run.
        gpus: as of `find_gpus`.
        interval: seconds between two looks.
    """

    def __init__(self, uri: str, run: str, gpus: Any, interval: float = INTERVAL) -> None:
        super().__init__(name="gpu-watch", daemon=True)
        self.uri, self.run_id, self.gpus, self.interval = uri, run, gpus, interval
        self._over = threading.Event()

    def stop(self) -> None:
        """No further look; does not wait for the one under way."""
        self._over.set()

    def run(self) -> None:
        from mlflow.entities import Metric

        client = connect(self.uri)
        while not self._over.wait(self.interval):
            try:
                self.gpus.clear_metrics()
                self.gpus.collect_metrics()
                now = time.time()
                found = self.gpus.aggregate_metrics()
                points = [Metric(f"system/{name}", value, int(1000 * now), int(now)) for name, value in found.items()]
                if points and not self._over.is_set():
                    client.log_batch(self.run_id, metrics=points)
            except Exception as error:
                if is_gone(error):
                    return
