"""What one call of `run` came to: how many trials, and where its wall-clock time went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.trials.record import TrialRecord
from bench.utils.text import format_duration

__all__ = ["FinishedTrial", "RunSummary", "summarize_run"]


class FinishedTrial(NamedTuple):
    """What an account needs of a trial that ended; its record would be kept in memory for the whole run.

    Attributes:
        started, finished: in seconds since 1970.
        failure: a line on what went wrong, where it failed.
    """

    started: float
    finished: float
    failure: str | None = None

    @classmethod
    def of(cls, record: TrialRecord) -> FinishedTrial:
        """That of a record."""
        failure = record.describe_failure() if record.status == "failed" else None
        return cls(record.started, record.finished, failure)


@dataclass(frozen=True)
class RunSummary:
    """An account of one call of `run`.

    Attributes:
        ran, reused, failed: numbers of trials; failed ones are among those that ran.
        failures: a line for each failed trial.
        left: trials that did not run, as the call was stopped.
        slots: trials that may run at once.
        wall_seconds: from the call to the last trial's end.
        utilization: share of slots x wall_seconds that was inside trials.
        start_up_seconds: from the call to the first trial's start.
        mean_gap_seconds: mean time that a slot waits between two trials.
        idle_tail_seconds: slot-seconds idle once nothing was left to start.
        stop_reason: None unless the call was stopped; then why, or nothing where a signal did it.
    """

    ran: int
    reused: int
    failed: int
    failures: list[str]
    left: int
    slots: int
    wall_seconds: float
    utilization: float
    start_up_seconds: float
    mean_gap_seconds: float
    idle_tail_seconds: float
    stop_reason: str | None = None

    def describe(self) -> str:
        """For people."""
        if not self.ran and not self.left:
            return f"nothing left to run, {self.reused} trials done before"
        if not self.ran:
            return f"no trial ended in this call, {self.reused} done before, {self.left} left"
        slots = f"{self.slots} slot{'s' * (self.slots != 1)}"
        return (
            f"{self.ran} trials in {format_duration(self.wall_seconds)}: {slots} busy {self.utilization:.0%} of the "
            f"time; start-up {format_duration(self.start_up_seconds)}, {1000 * self.mean_gap_seconds:.0f} ms between "
            f"two trials, {format_duration(self.idle_tail_seconds)} idle at the end; {self.reused} done before, "
            f"{self.failed} failed"
        )


def summarize_run(
    trials: Sequence[FinishedTrial], reused: int, left: int, slots: int, since: float, stop_reason: str | None = None
) -> RunSummary:
    """The account of the trials that a call ran. ``since``: when it began, in seconds since 1970."""
    if not trials:
        return RunSummary(0, reused, 0, [], left, slots, time.time() - since, 0.0, 0.0, 0.0, 0.0, stop_reason)
    failures = [trial.failure for trial in trials if trial.failure is not None]
    ends = sorted(trial.finished for trial in trials)
    first, wall = min(trial.started for trial in trials) - since, ends[-1] - since
    inside = sum(trial.finished - trial.started for trial in trials)
    last_start = max(trial.started for trial in trials)
    tail = sum(ends[-1] - max(end, last_start) for end in ends[-slots:])
    between = max(slots * (wall - first) - inside - tail, 0) / max(len(trials) - slots, 1)
    return RunSummary(
        ran=len(trials),
        reused=reused,
        failed=len(failures),
        failures=failures,
        left=left,
        slots=slots,
        wall_seconds=wall,
        utilization=inside / (slots * wall),
        start_up_seconds=first,
        mean_gap_seconds=between,
        idle_tail_seconds=tail,
        stop_reason=stop_reason,
    )
