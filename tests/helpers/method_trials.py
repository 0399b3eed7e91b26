"""What the tests of search methods share: a cell of some benchmark, a method at work in it, records that nobody ran."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, TypeVar

from bench.config.benchmark import trial_template
from bench.config.loading import parse_benchmark
from bench.methods.base import Method
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec

__all__ = ["FAILED", "Judge", "drive", "judged", "make", "waiting"]

FAILED = None
Judge = Callable[[TrialSpec], float | None]
"""What becomes of a trial: its validation NLL or objective; nan where it diverges, `FAILED` where it fails."""
M = TypeVar("M", bound=Method)


def make(
    kind: type[M], prior: str = "l2-sp", n: int = 100, split: int = 1001, name: str | None = None, **given: Any
) -> M:
    """The method in one cell, with these settings as YAML would give them. ``split``: the cell's seed."""
    content = {"name": "a", "dataset": "mnist-digits", "backbone": "digits-resnet", "n": [n], "seeds": [split]}
    benchmark = parse_benchmark(content | {"priors": [prior], "methods": {"elbo": {}}}, "x")
    settings = kind.Settings.model_validate({"method": kind.name} | given)
    template = trial_template(benchmark, Cell("mnist-digits", "digits-resnet", prior, n, split))
    return kind(template, settings, name)


def judged(spec: TrialSpec, value: float | None) -> TrialRecord:
    """The record of a trial that came to this."""
    if value is None:
        return TrialRecord(spec, "failed", {}, {}, {}, 1000.0, 1001.0, error="RuntimeError: out of luck")
    status = "completed" if math.isfinite(value) else "diverged"
    metric = "objective" if spec.stage == "run" else "val_nll"
    seconds = {"train": 10 * (spec.until - spec.since), "evaluate": 1.0}
    return TrialRecord(spec, status, {metric: value}, {}, seconds, 1000.0, 1011.0)


def waiting(method: Method) -> list[TrialSpec]:
    """Everything that may start now."""
    asked = []
    while (spec := method.ask()) is not None:
        asked.append(spec)
    return asked


def drive(method: Method, judge: Judge, order: int | None = None) -> list[TrialRecord]:
    """Runs a method to its end; its records as they were told: at once as asked, or shuffled by that seed among those
    that are out. What the method expects to take must never grow, and be what it took in the end."""
    shuffle = random.Random(order)  # noqa: S311
    out, records, most = list[TrialSpec](), list[TrialRecord](), method.count()
    while out := out + waiting(method):
        spec = out.pop(shuffle.randrange(len(out)) if order is not None else 0)
        records.append(judged(spec, judge(spec)))
        method.tell(records[-1])
        assert method.count() <= most
        most = method.count()
    assert most == len(records)
    return records
