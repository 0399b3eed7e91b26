"""Run a method in one cell of a small benchmark, with records that a function makes."""

import math
import random
from collections.abc import Callable
from typing import Any, TypeVar

from bench.config.benchmark import trial_template
from bench.config.loading import parse_benchmark
from bench.methods.base import Method
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec

FAILED = None
Judge = Callable[[TrialSpec], float | None]
"""The result of a trial: its validation NLL or objective; NaN if it diverges, `FAILED` if it fails."""
M = TypeVar("M", bound=Method)


def make(
    kind: type[M], prior: str = "l2-sp", n: int = 100, split: int = 1001, name: str | None = None, **given: Any
) -> M:
    """Return the method in one cell, with settings as YAML would give them; ``split`` is the seed of the cell."""
    content = {"name": "a", "dataset": "mnist-digits", "backbone": "digits-resnet", "n": [n], "seeds": [split]}
    benchmark = parse_benchmark(content | {"priors": [prior], "methods": {"elbo": {}}}, "x")
    settings = kind.Settings.model_validate({"method": kind.name} | given)
    template = trial_template(benchmark, Cell("mnist-digits", "digits-resnet", prior, n, split))
    return kind(template, settings, name)


def judged(spec: TrialSpec, value: float | None) -> TrialRecord:
    """Return the record of a trial with this result."""
    if value is None:
        return TrialRecord(spec, "failed", {}, {}, {}, 1000.0, 1001.0, error="RuntimeError: out of luck")
    status = "completed" if math.isfinite(value) else "diverged"
    metric = "objective" if spec.stage == "run" else "val_nll"
    seconds = {"train": 10 * (spec.until - spec.since), "evaluate": 1.0}
    return TrialRecord(spec, status, {metric: value}, {}, seconds, 1000.0, 1011.0)


def waiting(method: Method) -> list[TrialSpec]:
    """Return all trials that may start now."""
    return list(iter(method.ask, None))


def drive(method: Method, judge: Judge, order: int | None = None) -> list[TrialRecord]:
    """Run a method to its end, and check that its count of trials never grows and is exact at the end.

    Returns:
        the records in the order in which the method received them: that of its trials, or shuffled by the seed
        ``order`` among those that are running.
    """
    shuffle = random.Random(order)  # noqa: S311
    running, records, bound = list[TrialSpec](), list[TrialRecord](), method.count()
    while running := running + waiting(method):
        spec = running.pop(shuffle.randrange(len(running)) if order is not None else 0)
        records.append(judged(spec, judge(spec)))
        method.tell(records[-1])
        assert method.count() <= bound
        bound = method.count()
    assert bound == len(records)
    return records
