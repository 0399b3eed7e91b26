"""Sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from bench.types import NAME, Count, NotNegative, Number, Positive, Strict
from deelbo.limits import MIN_SIGMA

__all__ = ["BackboneSettings", "SWAGFiles", "Training"]


def _swag_files(value: Any) -> Any:
    if value is not None and not isinstance(value, str | BaseModel):
        parts = value if isinstance(value, dict) else {}
        if set(parts) != {"mean", "variance", "factor"} or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("must be a file, or {mean: FILE, variance: FILE, factor: FILE}")
    return value


class Training(Strict):
    """How every run is trained, whatever its method. See `deelbo.Schedule` and `deelbo.Numerics`."""

    steps: Count = 6000
    batch_size: Count = 128
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9
    clip_norm: Positive = 1.0
    sigma: Annotated[float, Number, Field(ge=MIN_SIGMA, allow_inf_nan=False)] = 1e-4
    posterior_passes: Count = 10
    series_points: Count = 20
    image_size: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: Annotated[bool, Field(strict=True)] = False
    compile: Annotated[bool, Field(strict=True)] = False


class Resources(Strict):
    """What one trial takes, and how many run at once (``slots``; as many as fit where it is not given).

    A `Benchmark` gives its trials a whole GPU each where ``gpus_per_trial`` is not given and its backbones need one.
    ``accelerator`` is the type of GPU that every trial gets, as Ray names it (`ray.util.accelerators`): H100.
    """

    cpus_per_trial: Count = 1
    gpus_per_trial: NotNegative = 0
    slots: Count | None = None
    accelerator: Annotated[str, StringConstraints(pattern=NAME)] | None = None

    @model_validator(mode="after")
    def _some_accelerator(self) -> Self:
        """A type of GPU says nothing of trials that take none."""
        if self.accelerator is not None and not self.gpus_per_trial:
            raise ValueError(
                f"accelerator = {self.accelerator} with gpus_per_trial = 0, expected trials that take a GPU: set "
                "gpus_per_trial to 1, or leave accelerator out"
            )
        return self


class SWAGFiles(Strict):
    """PTYL's prior in three files of one tensor each."""

    mean: str
    variance: str
    factor: str


class BackboneSettings(Strict):
    """Where a backbone's weights come from, and which of its modules is the head."""

    weights: str | None = None
    ptyl: Annotated[str | SWAGFiles | None, BeforeValidator(_swag_files)] = None
    head: str | None = None
