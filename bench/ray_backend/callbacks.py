"""Callbacks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from bench.ray_backend.searcher import QueueSearcher

__all__ = ["ResultForwarder", "StartedActorFirstScheduler"]


class ResultForwarder(tune.Callback):
    """Tells the searcher what Tune tells callbacks alone: that a trial starts; its result, while it may be changed."""

    def __init__(self, searcher: QueueSearcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._searcher.began(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._searcher.delivered(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune keeps every trial to its end, with moving averages of each number it saw: 20 KB that nobody reads."""
        for name in ("metric_analysis", "metric_n_steps", "last_result"):
            with suppress(AttributeError):
                getattr(trial.run_metadata, name).clear()


class StartedActorFirstScheduler(FIFOScheduler):
    """First come, first served; and it tells the searcher why a trial died, as it is told first.

    A slot that falls free gets a trial whose process is just starting only where no other one waits. Tune would give it
    that very trial and end the process: where trials end more often than a process takes to start, a slot whose
    process or node was lost would stay empty.
    """

    def __init__(self, searcher: QueueSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        controller, starting = tune_controller._tune_controller, None
        waiting = controller._pending_trials  # get_trials() are all there ever were
        for trial in sorted(waiting, key=lambda trial: str(trial.trial_id)):
            actor = controller._trial_to_actor.get(trial)
            if actor is None or not controller._actor_manager.is_actor_started(actor):
                return trial
            starting = starting or trial
        return starting

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._searcher.died(trial.trial_id, _reason(trial))


def _reason(trial: Any) -> str:
    """Ray's words on a dead process, without the list of what it was."""
    try:
        words = (trial.get_error() or "").strip()
    except OSError:
        words = ""
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith("\t")]
    return " ".join(lines)[-600:] or "its process ended without a word"
