"""The interface of code that follows a run."""

from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec


class RunCallback:
    """Base class of observers of a run. Every method must return at once: the scheduler waits for it."""

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        """Trials are about to start, at most ``slots`` at a time."""

    def on_trial_start(self, spec: TrialSpec) -> None:
        """A trial starts; called again for each retry."""

    def on_trial_retry(self, spec: TrialSpec, reason: str) -> None:
        """A trial's process died, and the trial will be tried again."""

    def on_trial_end(self, record: TrialRecord) -> None:
        """A trial has its record."""

    def on_model_lost(self, spec: TrialSpec, reason: str) -> None:
        """The model of a trial could not be kept; its record counts."""
