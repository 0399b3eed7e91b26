"""The specification of a trial (`TrialSpec`), and what all trials of a cell share (`TrialTemplate`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from bench.trials.json_fields import Integer, Number, Text


@dataclass(frozen=True)
class Cell:
    """A comparison of methods: one dataset, backbone, prior, number of training images and split seed."""

    dataset: str
    backbone: str
    prior: str
    n: int
    seed: int


@dataclass(frozen=True)
class TrialSpec:
    """The specification of one training run: everything that determines its result.

    Attributes:
        method: the configured method (an entry under ``methods``) that asked for it.
        stage: "tune" (trained on 4/5 of N, judged on the fifth), "retrain" (on all N, after tuning), or "run" (on all
            N, no tuning needed).
        weight_decay: alpha, MAP's L2 strength of the backbone; None for PTYL and for learned strengths.
        head_weight_decay: beta, MAP's L2 strength of the head; None for learned strengths.
        prior_scale: lambda of PTYL's prior in MAP; None elsewhere.
        kappa: weight of the likelihood in the ELBo; None: ``kappa_share`` D/N, or MAP, which has none.
        image_size: height and width of the network's input in pixels; None: the dataset's own.
        precision, channels_last, compile: see `deelbo.Numerics`.
        batchnorm, noise_until, final_batchnorm, closing_batchnorm, lr_scheduler, validation_epoch, stop_after, train,
            predictive_draws: see `deelbo.Schedule`.
        start_alpha: see `deelbo.ELBO`; it takes the place of ``sigma``.
        learner: the method of `bench.methods` whose own objective is minimized; None: MAP with the given strengths,
            or in stage "run" the (DE) ELBo.
        groups: which weights share a learned prior variance: "backbone+head", or "layer".
        optimizer: "sgd", or a name of `bench.execution.optimizers`.
        until: share of the run's epochs after which this trial stops; its schedule is that of the whole run.
        since: share of the epochs that an earlier trial of the same run has trained, from whose end this one resumes.
        number: place of its configuration in the order of a method that tries one after the other.
        options: the method's own settings that determine the result, as JSON.
    """

    dataset: Text
    backbone: Text
    head: Text | None
    method: Text
    prior: Text
    n: Integer
    seed: Integer
    stage: Text
    learning_rate: Number
    weight_decay: Number | None
    head_weight_decay: Number | None
    prior_scale: Number | None
    kappa: Number | None
    steps: Integer
    batch_size: Integer
    momentum: Number
    clip_norm: Number
    sigma: Number
    posterior_passes: Integer
    series_points: Integer
    image_size: Integer | None = None
    precision: Text = "float32"
    channels_last: bool = False
    compile: bool = False
    learner: Text | None = None
    kappa_share: Number = 1.0
    groups: Text = "backbone+head"
    optimizer: Text = "sgd"
    until: Annotated[float, Field(ge=0, le=1)] = 1.0
    since: Annotated[float, Field(ge=0, le=1)] = 0.0
    number: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    options: str = "{}"
    batchnorm: Text = "train"
    noise_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    final_batchnorm: Text = "running"
    closing_batchnorm: Text = "running"
    start_alpha: Number | None = None
    lr_scheduler: Text = "cosine"
    validation_epoch: Text = "last"
    stop_after: Annotated[float, Field(gt=0, le=1)] = 1.0
    train: Text = "all"
    predictive_draws: Integer = 0

    @cached_property
    def key(self) -> str:
        """A hash of all fields that are not at their defaults, which names the trial's files.

        So a field can be added, with a default, without renaming the trials that exist.
        """
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # asdict copies: ten times as slow
        content = {name: value for name, (value, default) in values.items() if default is MISSING or value != default}
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def snapshot_key(self, share: float) -> str:
        """Return the name of this run's snapshot after a share of its epochs, from which a later segment resumes."""
        return replace(self, until=share, since=0.0).key

    @property
    def is_tested(self) -> bool:
        """True if its network may be the one that its method chooses: of a whole run on all N, not retrained again."""
        is_last = self.stage == "retrain" or (self.stage == "run" and self.number is None)
        return is_last and self.until == 1

    @property
    def cell(self) -> Cell:
        return Cell(self.dataset, self.backbone, self.prior, self.n, self.seed)

    def describe(self) -> str:
        """Describe the trial in a short line."""
        strengths = [("wd", self.weight_decay), ("lambda", self.prior_scale), ("head wd", self.head_weight_decay)]
        if self.weight_decay == self.head_weight_decay:
            strengths.pop()
        settings = [f"{name} {value:g}" for name, value in strengths if value is not None]
        if self.number is not None:
            settings.append(f"no. {self.number}")
        if (self.since, self.until) != (0.0, 1.0):
            settings.append(f"{100 * self.since:g}% to {100 * self.until:g}%")
        if self.stop_after < 1:
            settings.append(f"stops after {100 * self.stop_after:g}%")
        cell = f"{self.dataset} {self.backbone} {self.prior} n={self.n} seed={self.seed}"
        return " ".join([f"{cell} {self.method} {self.stage} lr {self.learning_rate:g}", *settings])


@dataclass(frozen=True)
class TrialTemplate:
    """Fields that all trials of one cell share.

    Attributes:
        head: name of the backbone's classification layer; None: the backbone's own default.
        training: the fields of `TrialSpec` that the configuration sets under ``training``.
    """

    cell: Cell
    head: str | None
    training: Mapping[str, Any]

    def make(self, method: str, stage: str, learning_rate: float, **settings: Any) -> TrialSpec:
        """Return a trial with these fields of `TrialSpec`; ``options`` may be a mapping."""
        values: dict[str, Any] = dict.fromkeys(("weight_decay", "head_weight_decay", "prior_scale", "kappa"))
        values |= {**self.training, **settings}
        if isinstance(options := values.get("options"), dict):
            values["options"] = json.dumps(options, sort_keys=True, separators=(",", ":"))
        return TrialSpec(
            **asdict(self.cell), head=self.head, method=method, stage=stage, learning_rate=learning_rate, **values
        )
