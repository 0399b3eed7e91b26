"""Summary of one call of `run`: how many trials ran, and where its wall-clock time went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.trials.record import TrialRecord
from bench.utils.text import format_duration


class FinishedTrial(NamedTuple):
    """Part of a trial's record that a summary needs; whole records would stay in memory for the whole run.

    Attributes:
        started, finished: in seconds since 1970.
        failure: the error in one line, if it failed.
    """

    started: float
    finished: float
    failure: str | None = None

    @classmethod
    def of(cls, record: TrialRecord) -> FinishedTrial:
        """Extract it from a record."""
        failure = record.describe_failure() if record.status == "failed" else None
        return cls(record.started, record.finished, failure)


@dataclass(frozen=True)
class RunSummary:
    """Summary of one call of `run`.

    Attributes:
        ran, reused, failed: numbers of trials; failed ones are among those that ran.
        failures: one line for each failed trial.
        left: number of trials that did not run, as the call was stopped.
        slots: number of trials that may run at once.
        wall_seconds: from the start of the command to the end of the last trial.
        utilization: share of slots x wall_seconds that was spent in trials.
        start_up_seconds: from the start of the command to the start of the first trial.
        mean_gap_seconds: mean time that a slot waits between two trials.
        idle_tail_seconds: slot-seconds without a trial once no trial was left to start.
        stop_reason: None unless the call was stopped; then why, or "" if by a signal.
    """

    ran: int
    reused: int
    failed: int
    failures: list[str]
    left: int
    slots: int
    wall_seconds: float
    utilization: float = 0.0
    start_up_seconds: float = 0.0
    mean_gap_seconds: float = 0.0
    idle_tail_seconds: float = 0.0
    stop_reason: str | None = None

    def describe(self) -> str:
        """Describe it in one line."""
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
    trials: Sequence[FinishedTrial],
    reused: int,
    left: int,
    slots: int,
    start_time: float,
    stop_reason: str | None = None,
) -> RunSummary:
    """Summarize the trials that one call ran; see `RunSummary`. ``start_time``: of the command, by `time.time`."""
    if not trials:
        return RunSummary(0, reused, 0, [], left, slots, time.time() - start_time, stop_reason=stop_reason)
    failures = [trial.failure for trial in trials if trial.failure is not None]
    ends = sorted(trial.finished for trial in trials)
    start_up, wall = min(trial.started for trial in trials) - start_time, ends[-1] - start_time
    in_trials = sum(trial.finished - trial.started for trial in trials)
    last_start = max(trial.started for trial in trials)
    tail = sum(ends[-1] - max(end, last_start) for end in ends[-slots:])
    return RunSummary(
        ran=len(trials),
        reused=reused,
        failed=len(failures),
        failures=failures,
        left=left,
        slots=slots,
        wall_seconds=wall,
        utilization=in_trials / (slots * wall),
        start_up_seconds=start_up,
        mean_gap_seconds=max(slots * (wall - start_up) - in_trials - tail, 0) / max(len(trials) - slots, 1),
        idle_tail_seconds=tail,
        stop_reason=stop_reason,
    )
