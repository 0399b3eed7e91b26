"""Tune's callback and scheduler, which forward to the searcher what Tune tells them alone."""

from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from bench.ray_backend.searcher import UNKNOWN_REASON, QueueSearcher


class ResultForwarder(tune.Callback):
    """Tell the searcher that a trial has started, and its result while that can still be changed."""

    def __init__(self, searcher: QueueSearcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as the searcher does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._searcher.start_trial(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._searcher.take_result(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Free memory: Tune keeps every trial to its end, with 20 KB of moving averages that nobody reads."""
        for name in ("metric_analysis", "metric_n_steps", "last_result"):
            with suppress(AttributeError):
                getattr(trial.run_metadata, name).clear()


class StartedActorFirstScheduler(FIFOScheduler):
    """First in, first out, but a trial whose process is just starting comes after those that can use the free slot.

    Tune would give a free slot to the trial whose process is starting, and end that process: if trials end more often
    than a process takes to start, a slot whose process or node was lost would stay empty. The scheduler also tells the
    searcher why a trial died, as Tune tells it first.
    """

    def __init__(self, searcher: QueueSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        controller, starting = tune_controller._tune_controller, None
        for trial in sorted(controller._pending_trials, key=lambda trial: str(trial.trial_id)):
            actor = controller._trial_to_actor.get(trial)
            if actor is None or not controller._actor_manager.is_actor_started(actor):
                return trial
            starting = starting or trial
        return starting

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._searcher.note_error(trial.trial_id, _reason(trial))


def _reason(trial: Any) -> str:
    """Return Ray's message on a dead process, without its list of possible causes."""
    try:
        message = (trial.get_error() or "").strip()
    except OSError:
        message = ""
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("\t")]
    return " ".join(lines)[-600:] or UNKNOWN_REASON
