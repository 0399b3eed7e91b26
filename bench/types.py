"""Types of configuration values: numbers as people write them, lists without repetition, no unknown keys."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def parse_number(value: Any) -> Any:
    """Convert a text to a number: YAML 1.1 reads 1e-4 as text. Pydantic checks everything else."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    return value


def check_unique(values: Any) -> Any:
    """Return ``values``; raise ValueError if there are none, or if one is there twice."""
    if not values:
        raise ValueError("must hold at least one value")
    if len(set(values)) < len(values):
        raise ValueError("must not hold a value twice")
    return values


class StrictModel(BaseModel):
    """A frozen model without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


Number = BeforeValidator(parse_number)
Unique = AfterValidator(check_unique)
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Number, Field(gt=0, lt=1)]
Share = Annotated[float, Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Prior = Literal["l2-zero", "l2-sp", "ptyl"]
LearningRates = Annotated[tuple[Positive, ...], Unique]
DEFAULT_LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
