"""A trial: what is asked for (`TrialSpec`) and what came of it (`TrialRecord`)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from bench.fields import check_fields, facts, kinds_of, numbers, plain, strict_json
from bench.said import SHORT, one_line

__all__ = ["Cell", "TrialRecord", "TrialSpec", "plain"]


LONGEST = 1e11  # seconds: 3,000 years, so that dates since 1970 are below it too
STATUSES = ("completed", "diverged", "failed")
LATER = {"lost_seconds": 0.0, "timed": True, "concurrency_start": None, "concurrency_end": None}
"""What earlier records do not have."""
PARTS = ("metrics", "state", "seconds")


@dataclass(frozen=True)
class Cell:
    """Where methods compete: a dataset, a backbone, a prior, a number of training images, a split seed."""

    dataset: str
    backbone: str
    prior: str
    n: int
    seed: int


@dataclass(frozen=True)
class TrialSpec:
    """One training run, by everything that determines its result.

    Attributes:
        method: the entry under ``methods`` that asked for it.
        stage: "tune" (trained on 4/5 of N, judged on the fifth), "retrain" (on all N, after tuning), or "run" (on all
            N, no tuning needed).
        weight_decay: alpha, MAP's L2 strength of the backbone; None for PTYL and for learned strengths.
        head_weight_decay: beta, MAP's L2 strength of the head; None for learned strengths.
        prior_scale: lambda of PTYL's prior in MAP; None elsewhere.
        kappa: of the ELBo; None stands for ``kappa_share`` D/N, and for MAP, which has none.
        image_size: side of what the network sees; the task's own where None.
        precision, channels_last, compile: see `deelbo.Numerics`.
        learner: the method of `bench.methods` whose own objective is minimised; None: MAP with the given strengths,
            or in stage "run" the (DE) ELBo.
        groups: which weights share a learned prior variance: "backbone+head", or "layer".
        optimiser: "sgd", or a name of `bench.optimisers`.
        until: the share of the run's epochs after which this trial stops, its schedule that of the whole run.
        since: the share that another trial of the same run has trained before, from whose end this one goes on.
        number: the place of its configuration in the order of a method that decides one after the other.
        options: a method's own settings that determine the result, as JSON.
    """

    dataset: str
    backbone: str
    head: str | None
    method: str
    prior: str
    n: int
    seed: int
    stage: str
    learning_rate: float
    weight_decay: float | None
    head_weight_decay: float | None
    prior_scale: float | None
    kappa: float | None
    steps: int
    batch_size: int
    momentum: float
    clip_norm: float
    sigma: float
    posterior_passes: int
    series_points: int
    image_size: int | None = None
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    learner: str | None = None
    kappa_share: float = 1.0
    groups: str = "backbone+head"
    optimiser: str = "sgd"
    until: float = 1.0
    since: float = 0.0
    number: int | None = None
    options: str = "{}"

    @cached_property
    def key(self) -> str:
        """A hash of all fields: the trial's name wherever it is kept.

        A field that came later counts only where it is not at its default, so that older records keep their names.
        """
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # asdict copies: ten times as slow
        content = {name: value for name, (value, default) in values.items() if default is MISSING or value != default}
        words = json.dumps(content, sort_keys=True, allow_nan=False)
        return hashlib.sha256(words.encode()).hexdigest()[:20]

    def kept_as(self, share: float) -> str:
        """The name under which this run is kept for whoever goes on with it, where ``share`` of it is trained."""
        return replace(self, until=share, since=0.0).key

    @property
    def cell(self) -> Cell:
        return Cell(self.dataset, self.backbone, self.prior, self.n, self.seed)

    def describe(self) -> str:
        """A short name for people."""
        strengths = [("wd", self.weight_decay), ("lambda", self.prior_scale), ("head wd", self.head_weight_decay)]
        if self.weight_decay == self.head_weight_decay:
            strengths.pop()
        words = [f"{name} {value:g}" for name, value in strengths if value is not None]
        words += [f"no. {self.number}"] if self.number is not None else []
        words += [f"{100 * self.since:g}% to {100 * self.until:g}%"] if (self.since, self.until) != (0.0, 1.0) else []
        where = f"{self.dataset} {self.backbone} {self.prior} n={self.n} seed={self.seed}"
        text = f"{where} {self.method} {self.stage} lr {self.learning_rate:g}"
        return " ".join([text, *words])


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
        concurrency_start, concurrency_end: how many did, this one included, when it began and when it ended, on all
            nodes together; None where nobody counted.
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
    concurrency_start: int | None = None
    concurrency_end: int | None = None

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
        for name in ("concurrency_start", "concurrency_end"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} = {count}, expected at least 1, the trial itself")
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
        return f"{self.spec.describe()}: {one_line(lines[-1], 300)}"

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
                raise TypeError(f"status {SHORT.repr(record.status)}, expected one of {', '.join(STATUSES)}")
            record.check()
            expected = record.key
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            problem = one_line(f"{type(error).__name__}: {error}", 200)
            raise ValueError(f"not a trial record ({problem})") from error
        if key != expected:
            raise ValueError(f"the record's key {SHORT.repr(key)} does not fit its content ({expected})")
        return record


SPEC_KINDS = kinds_of(TrialSpec)
RECORD_KINDS = kinds_of(TrialRecord)
NO_METRICS = frozenset({*SPEC_KINDS, *RECORD_KINDS, "key", "source"})
"""Names that mean something else in a table of trials."""
