"""Progress of a run on the terminal: trials done, running and left, and the time that the rest will take."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import format_duration

LINE_INTERVAL_SECONDS = 10.0
RATE_WINDOW_TRIALS = 200  # latest trials, from which the trials per second are estimated


class _StatusColumn(ProgressColumn):
    """A text that is asked for at each refresh, so that the time left runs down during a long trial."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._status = status
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(self._status())


class ProgressDisplay(RunCallback):
    """A bar on a terminal; elsewhere one line every ten seconds, printed when the free slots have been filled again."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self._task = TaskID(0)
        # the first start, then each end, and the share of a run that its trial has trained
        self._moments: deque[tuple[float, float]] = deque(maxlen=RATE_WINDOW_TRIALS + 1)
        self._ended = 0
        self._last_line = time.monotonic()
        self._running: set[str] = set()

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        self.queue, self.slots = queue, slots
        reused = f", {len(queue.reused)} done before" if queue.reused else ""
        self.console.print(f"{'at most ' * queue.at_most}{queue.total} trials{reused}, {slots} at a time")
        if self.console.is_terminal and queue.num_remaining:
            status = _StatusColumn(self.status)
            bar = BarColumn(bar_width=None)  # as wide as the rest leaves
            columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), status, TimeElapsedColumn())
            self.bar = Progress(*columns, console=self.console, expand=True)
            self._task = self.bar.add_task("trials", total=queue.total, completed=queue.num_completed)
            self.bar.start()

    def on_trial_start(self, spec: TrialSpec) -> None:
        self._running.add(spec.key)
        if not self._moments:
            self._last_line = time.monotonic()
            self._moments.append((self._last_line, 0.0))
        self._update(overdue_seconds=LINE_INTERVAL_SECONDS)

    def on_trial_retry(self, spec: TrialSpec, reason: str) -> None:
        self._running.discard(spec.key)
        self.console.print(f"lost, tried again: {spec.describe()} ({reason[:160]})", highlight=False)

    def on_trial_end(self, record: TrialRecord) -> None:
        self._running.discard(record.key)
        self._moments.append((time.monotonic(), record.spec.until - record.spec.since))
        self._ended += 1
        if record.status != "completed":
            self.console.print(f"{record.status}: {record.spec.describe()}", highlight=False)
        self._update()

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):  # the terminal is gone
                self.bar.stop()
            self.bar = None

    def status(self) -> str:
        """Describe what runs and is left, with the time left once as many trials have ended as run at once."""
        running, remaining = min(len(self._running), self.slots), self.queue.num_remaining
        status = f"{running} running, {remaining - running} left"
        if remaining and self._ended >= self.slots and (seconds := self._seconds_left()) > 0:
            status += f", about {format_duration(seconds)} to go"
        return status

    def _seconds_left(self) -> float:
        """Estimate the time that the remaining trials take, by the runs per second of the latest ones."""
        (start, _), (last, _) = self._moments[0], self._moments[-1]
        runs = sum(share for _, share in list(self._moments)[1:])
        left = self.queue.num_remaining * self.queue.mean_remaining_share * (last - start) / runs
        return left - (time.monotonic() - last)

    def _update(self, overdue_seconds: float = float("inf")) -> None:
        """Move the bar, or print a line if one is due; it waits ``overdue_seconds`` for free slots to be filled."""
        queue = self.queue
        if self.bar is not None:
            self.bar.update(self._task, total=queue.total, completed=queue.num_completed)
            return
        now = time.monotonic()
        wait = 0.0 if len(self._running) >= min(self.slots, queue.num_remaining) else overdue_seconds
        if now - self._last_line >= LINE_INTERVAL_SECONDS + wait or not queue.num_remaining:
            self._last_line = now
            self.console.print(f"{queue.num_completed}/{queue.total} done, {self.status()}", highlight=False)
