"""Which of several tuned configurations is best."""

from __future__ import annotations

import math

from bench.trials import TrialRecord

__all__ = ["by_objective", "by_validation"]


def by_validation(record: TrialRecord) -> tuple[bool, float]:
    """Least is best: failed runs last, and before them those that diverged or whose validation NLL is not finite."""
    return _rank(record, "val_nll")


def by_objective(record: TrialRecord) -> tuple[bool, float]:
    """The same by the objective, of methods that hold nothing out."""
    return _rank(record, "objective")


def _rank(record: TrialRecord, metric: str) -> tuple[bool, float]:
    value = record.metrics.get(metric, math.inf)
    return record.status == "failed", value if math.isfinite(value) and record.status == "completed" else math.inf
