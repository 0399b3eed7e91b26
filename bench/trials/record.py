"""Record."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.trials.json_fields import check_fields, facts, kinds_of, numbers, plain, strict_json
from bench.trials.spec import SPEC_KINDS, TrialSpec
from bench.utils.text import describe_error, short_repr, single_line

__all__ = ["TrialRecord"]


LONGEST = 1e11  # seconds: 3,000 years, so that dates since 1970 are below it too
STATUSES = ("completed", "diverged", "failed")
LATER = {"lost_seconds": 0.0, "timed": True}
"""What earlier records do not have."""
PARTS = ("metrics", "state", "seconds")


@dataclass(frozen=True)
class TrialRecord:
    """What came of a trial.

    Attributes:
        status: "completed"; "diverged" (a loss or metric was not finite: a result like any other); "failed" (an error
            kept in ``error``; the next run tries again).
        metrics: see `deelbo.FitResult`.
        state: the objective at the end: learned scales, sigma, weight decay, squared distances, D.
        seconds: wall-clock seconds by phase of the clock, and ``total`` for the whole trial.
        started, finished: seconds since 1970, UTC.
        attempt: 1 unless earlier attempts died.
        lost_seconds: what earlier attempts ran in vain before they died; in no phase of ``seconds``.
        timed: whether the seconds are fit to be compared: the benchmark may say ``timed: false``.
        concurrency: how many trials may have run at once.
        hardware, versions: where and with what it ran.
    """

    spec: TrialSpec
    status: str
    metrics: dict[str, float]
    state: dict[str, float]
    seconds: dict[str, float]
    started: float
    finished: float
    attempt: int = 1
    concurrency: int = 1
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    lost_seconds: float = 0.0
    timed: bool = True

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def succeeded(self) -> bool:
        """Whether it is a result: completed or diverged."""
        return self.status in ("completed", "diverged")

    def check(self) -> None:
        """Raises ValueError where a number cannot be what it says it is."""
        moments = {name: getattr(self, name) for name in ("started", "finished", "lost_seconds")}
        numbers = self.seconds | moments
        if self.succeeded and "train" not in self.seconds:
            raise ValueError("a result without its training seconds")
        for name, value in numbers.items():
            if not 0 <= value < LONGEST:
                raise ValueError(f"{name} = {value} seconds")
        if not 0 <= self.spec.since < self.spec.until <= 1:
            raise ValueError(f"a trial from {self.spec.since} to {self.spec.until} of its run, expected 0 to 1")
        if self.spec.number is not None and self.spec.number < 0:
            raise ValueError(f"number = {self.spec.number}, expected 0 or more")
        for name, value in self.metrics.items():
            if name.endswith("_acc") and not (math.isnan(value) or 0 <= value <= 1):
                raise ValueError(f"{name} = {value}, expected 0 to 1")
        if wrong := sorted(self.metrics.keys() & NO_METRICS):
            raise ValueError(f"a metric by the name {wrong[0]}, which is something else")

    def describe_failure(self) -> str:
        """The trial and the last line of its error, for people."""
        lines = (self.error or "").strip().splitlines() or ["no error kept"]
        return f"{self.spec.describe()}: {single_line(lines[-1], 300)}"

    def to_json(self) -> str:
        """Strict JSON; numbers that are not finite become the words nan, inf and -inf."""
        content: dict[str, Any] = {"key": self.key, "format": 1} | asdict(self)
        for name in PARTS:
            content[name] = {key: plain(value) for key, value in content[name].items()}
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrialRecord:
        """The record that `to_json` wrote.

        Raises:
            ValueError: the text is not one, a field is of another type than it should be, or the key does not fit; in
                one short line, whatever the text holds.
        """
        try:
            content = strict_json(text)
            spec = TrialSpec(**content["spec"])
            check_fields(vars(spec), SPEC_KINDS, long="options")
            content = LATER | content
            values = {name: content[name] for name in RECORD_KINDS}
            check_fields(values, RECORD_KINDS, long="error")
            for name in PARTS:
                values[name] = numbers(name, content[name])
            values["hardware"] = facts("hardware", content["hardware"])
            values["versions"] = facts("versions", content["versions"], texts=True)
            record = cls(spec=spec, **values)
            key = content["key"]
            if record.status not in STATUSES:
                raise TypeError(f"status {short_repr.repr(record.status)}, expected one of {', '.join(STATUSES)}")
            record.check()
            expected = record.key
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a trial record ({describe_error(error, 200)})") from error
        if key != expected:
            raise ValueError(f"the record's key {short_repr.repr(key)} does not fit its content ({expected})")
        return record


RECORD_KINDS = kinds_of(TrialRecord)
NO_METRICS = frozenset({*SPEC_KINDS, *RECORD_KINDS, "key", "source"})
"""Names that mean something else in a table of trials."""
