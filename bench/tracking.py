"""Follows a race in MLflow, from a thread of its own."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.config import one_line
from bench.mirror import MLflowMirror
from bench.race import Race, Watcher
from bench.trials import TrialRecord, TrialSpec

__all__ = ["Tracker"]


class Tracker(Watcher):
    """Follows a race in MLflow from a thread of its own. Nothing here waits for a server, and nothing raises.

    An event that cannot be sent is tried again after ``pause`` seconds, those behind it waiting. `stop` gives what is
    left at most ``grace`` seconds.
    """

    def __init__(self, make_mirror: Callable[[], MLflowMirror], pause: float = 5.0, grace: float = 30.0) -> None:
        self._make_mirror, self._pause, self._grace = make_mirror, pause, grace
        self._mirror: MLflowMirror | None = None
        self._events: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._deadline = math.inf
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def began(self, race: Race, slots: int) -> None:
        self._events.put(("open", ()))
        for record in race.reused:  # an interrupted call may not have sent them
            self._events.put(("finish", (record,)))

    def started(self, spec: TrialSpec) -> None:
        self._events.put(("start", (spec, time.time())))

    def finished(self, record: TrialRecord) -> None:
        self._events.put(("finish", (record,)))

    def stop(self, status: str, metrics: dict[str, float], report: Path | None = None) -> bool:
        """Sends what is left, then closes the benchmark's run; whether everything was sent."""
        self._events.put(("close", (status, metrics, report)))
        self._events.put(None)
        self._deadline = time.monotonic() + self._grace
        self._thread.join(self._grace + 1)
        sent = not self._thread.is_alive() and self._events.empty()
        if not sent and self.problem is None:
            self.problem = f"no answer within {self._grace:g} s"
        return sent

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            name, arguments = event
            while True:
                try:
                    if self._mirror is None:
                        self._mirror = self._make_mirror()
                    getattr(self._mirror, name)(*arguments)
                    break
                except Exception as error:
                    self.problem = one_line(error)[:200]
                    if time.monotonic() + self._pause > self._deadline:
                        self._events.put(event)
                        return
                    time.sleep(self._pause)
