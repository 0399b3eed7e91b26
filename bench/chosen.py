"""Which trials a benchmark comes to: those that its methods chose, and what each method needed for that."""

from __future__ import annotations

from collections.abc import Sequence

from bench.benchmark import Benchmark
from bench.configurations import configurations
from bench.methods import make_methods
from bench.race import settle
from bench.records import frame_of
from bench.trials import TrialRecord

__all__ = ["chosen_trials"]


def chosen_trials(benchmark: Benchmark, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Keys of the trials that are tested for their methods, one a method and cell, as the report counts them.

    Returns:
        Seconds by key: all that the method needed in that cell, its judged runs and the training again of the best. A
        cell that a method is not done with has none, and neither has one whose choice was not trained again.
    """
    kept, _, _ = settle(make_methods(benchmark), list(records))
    if not kept:
        return {}
    frame = frame_of(kept)
    found = {}
    for _, tried in configurations(frame, "full"):
        if tried.tested[0] >= 0:
            found[str(frame.loc[tried.tested[0], "key"])] = float(tried.tuning.sum() + tried.retraining[0])
    return found
