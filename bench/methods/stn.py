"""STN: learn the strengths along the weights' learned response to them, then retrain on all images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from bench.methods.hypergradient import LearnedInTuning, LearnedInTuningSettings
from bench.trials.spec import TrialSpec
from bench.types import Count, Positive

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective

DRAW_STREAM = 1_000_033  # added to a trial's seed for the drawn strengths; the seed itself orders the data


class STNSettings(LearnedInTuningSettings):
    """Settings of the linear response, see `deelbo.objectives.stn`.

    Attributes:
        every, rate: as of `HypergradientSettings`.
        spread: standard deviation of the drawn log strengths in nats.
    """

    method: Literal["stn"] = "stn"
    every: Count = 2
    rate: Positive | None = None
    spread: Positive = 0.1


class STN(LearnedInTuning):
    """Self-Tuning Networks, as one linear response of all weights; not the published layers.

    A tuning run takes half as long again by default, as each second step is followed by a validation gradient.
    """

    name = "stn"
    title = "STN, linear response"
    option_names = ("start", "every", "rate", "spread")
    Settings = STNSettings
    settings: STNSettings

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        import torch

        from deelbo.objectives.stn import ResponseMAP

        options = json.loads(spec.options)
        start = dict.fromkeys([group.name for group in groups], options.pop("start"))
        generator = torch.Generator().manual_seed(spec.seed + DRAW_STREAM)
        return ResponseMAP(groups, num_examples, start, generator=generator, **options)
