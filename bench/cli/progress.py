"""What a person sees while a benchmark runs: done, running, left, and the time left."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import format_duration

__all__ = ["ProgressDisplay"]


LINE_EVERY = 10.0
WINDOW = 200
"""How many of the last trials say how long one takes."""


class ProgressDisplay(RunCallback):
    """A bar that moves on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self._task = TaskID(0)
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._last_line = 0.0
        self._out: dict[str, TrialSpec] = {}

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        self.queue, self.slots = queue, slots
        again = f", {len(queue.reused)} done before" if queue.reused else ""
        self.console.print(f"{'at most ' * queue.at_most}{queue.total} trials{again}, {slots} at a time")
        if self.console.is_terminal and queue.num_remaining:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._task = self.bar.add_task("trials", total=queue.total, completed=queue.num_completed, status="")
            self.bar.start()

    def on_trial_start(self, spec: TrialSpec) -> None:
        self._out[spec.key] = spec
        self._show()

    def on_trial_retry(self, spec: TrialSpec, reason: str) -> None:
        self._out.pop(spec.key, None)
        self.console.print(f"lost, tried again: {spec.describe()} ({reason[:160]})", highlight=False)

    def on_trial_end(self, record: TrialRecord) -> None:
        self._out.pop(record.key, None)
        self._seconds.append(record.finished - record.started)
        if record.status != "completed":
            self.console.print(f"{record.status}: {record.spec.describe()}", highlight=False)
        self._show()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar is not None:
            with suppress(OSError):  # the terminal is gone
                self.bar.stop()
            self.bar = None

    def status(self) -> str:
        """Running, left, and the time left once one trial has ended."""
        running = min(len(self._out), self.slots)
        words = f"{running} running, {self.queue.num_remaining - running} left"
        if self._seconds and self.queue.num_remaining:
            words += f", about {format_duration(median(self._seconds) * self.queue.num_remaining / self.slots)} to go"
        return words

    def _show(self) -> None:
        if self.bar is not None:
            self.bar.update(
                self._task, total=self.queue.total, completed=self.queue.num_completed, status=self.status()
            )
        elif time.monotonic() - self._last_line >= LINE_EVERY or not self.queue.num_remaining:
            self._last_line = time.monotonic()
            self.console.print(f"{self.queue.num_completed}/{self.queue.total} done, {self.status()}", highlight=False)
