"""The record of a trial, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from bench.exceptions import FormatError
from bench.trials.json_fields import Facts, Integer, Numbers, Seconds, Text, describe_problem, to_json_number
from bench.trials.spec import TrialSpec
from bench.utils.text import describe_error, short_repr, single_line

FORMAT = 2
ROUNDING = 1e-6
"""How far float32 may round an accuracy beyond 0 or 1."""


@dataclass(frozen=True)
class TrialRecord:
    """The result of a trial.

    Attributes:
        status: "completed"; "diverged" (a loss or metric was not finite: a result like any other); "failed" (an error
            kept in ``error``; the next run tries again).
        metrics: see `deelbo.FitResult`.
        state: the objective at the end: learned scales, sigma, weight decay, squared distances, D.
        seconds: by phase of the clock, and ``total`` for the whole trial.
        started, finished: seconds since 1970, UTC.
        concurrency: how many trials may have run at once.
        lost_seconds: how long attempts before this one ran; in no phase of ``seconds``.
        timed: false if the seconds are no measurement.
    """

    spec: TrialSpec
    status: Literal["completed", "diverged", "failed"]
    metrics: Numbers
    state: Numbers
    seconds: dict[Text, Seconds]
    started: Seconds
    finished: Seconds
    attempt: Integer = 1
    concurrency: Integer = 1
    hardware: Facts = field(default_factory=dict)
    versions: dict[Text, Text] = field(default_factory=dict)
    error: str | None = None
    lost_seconds: Seconds = 0.0
    timed: bool = True

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def succeeded(self) -> bool:
        """True if it is a result: completed or diverged."""
        return self.status in ("completed", "diverged")

    def describe_failure(self) -> str:
        """Describe the trial and the last line of its error."""
        lines = (self.error or "").strip().splitlines() or ["no error kept"]
        return f"{self.spec.describe()}: {single_line(lines[-1], 300)}"

    def to_json(self) -> str:
        """Return strict JSON; numbers that are not finite are the texts nan, inf and -inf."""
        content: dict[str, Any] = {"key": self.key, "format": FORMAT} | asdict(self)
        for name in ("metrics", "state"):
            content[name] = {key: to_json_number(value) for key, value in content[name].items()}
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrialRecord:
        """Return the record that `to_json` wrote.

        Raises:
            FormatError: an earlier version wrote it.
            ValueError: it is not a record: the problem in one short line, whatever the text holds.
        """
        try:
            content = from_json(text, allow_inf_nan=False)
            if (version := content["format"]) == 1:
                raise FormatError("it is of format 1")
            if version != FORMAT:
                raise ValueError(f"format = {short_repr.repr(version)}, expected {FORMAT}")
            record = _ADAPTER.validate_json(text, strict=True)
            _check(record)
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            problem = describe_problem(error) if isinstance(error, ValidationError) else describe_error(error)
            raise ValueError(f"not a trial record ({single_line(problem, 200)})") from None
        if (key := content["key"]) != record.key:
            raise ValueError(f"the record's key {short_repr.repr(key)} does not fit its content ({record.key})")
        return record


_ADAPTER = TypeAdapter(TrialRecord)
OTHER_NAMES = frozenset({field.name for cls in (TrialSpec, TrialRecord) for field in fields(cls)} | {"key", "source"})
"""Names that mean something else than a metric in a table of trials."""


def _check(record: TrialRecord) -> None:
    """Raise ValueError if the fields of a record contradict each other; clip accuracies that float32 rounded."""
    if record.succeeded and "train" not in record.seconds:
        raise ValueError("a result without its training seconds")
    if record.spec.since >= record.spec.until:
        raise ValueError(f"until = {record.spec.until}, expected more than since = {record.spec.since}")
    for name, value in record.metrics.items():
        if name in OTHER_NAMES:
            raise ValueError(f"a metric by the name {name}, which means something else")
        if name.endswith("_acc"):
            if value < -ROUNDING or value > 1 + ROUNDING:
                raise ValueError(f"{name} = {value}, expected 0 to 1")
            record.metrics[name] = min(max(value, 0.0), 1.0) if value == value else value
