"""The types of a benchmark's settings: numbers as people write them, lists without repetition, no unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

__all__ = [
    "LEARNING_RATES",
    "Count",
    "Filled",
    "LearningRates",
    "NotNegative",
    "Number",
    "Positive",
    "Prior",
    "Seed",
    "Share",
    "Strict",
    "filled",
    "number",
]


def number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    return value


def filled(values: Any) -> Any:
    if not values:
        raise ValueError("must hold at least one value")
    if len(set(values)) < len(values):
        raise ValueError("must not hold a value twice")
    return values


Number = BeforeValidator(number)
Filled = AfterValidator(filled)
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Prior = Literal["l2-zero", "l2-sp", "ptyl"]


class Strict(BaseModel):
    """No unknown keys, and nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)
LearningRates = Annotated[tuple[Positive, ...], Filled]
Share = Annotated[float, Number, Field(gt=0, lt=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
