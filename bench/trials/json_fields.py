"""Types of the values in a record's JSON file, which anybody may have written, and a line on what is wrong with it."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from bench.utils.text import short_repr

Text = Annotated[str, Field(max_length=200, pattern=r"^[ [^\p{C}\p{Z}]]*$")]
"""A short text of printable characters."""
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, lt=1e11)]
"""Up to 3,000 years, so that a date since 1970 is one too."""
if TYPE_CHECKING:
    Facts = dict[str, Any]
    Numbers = dict[str, float]
else:
    Facts = Annotated[dict[Text, Text | bool | Integer | Number | None], Field(max_length=200)]
    Numbers = Annotated[
        dict[Text, Number | Literal["nan", "inf", "-inf"]],
        Field(max_length=10_000),  # a ResNet-50 with a prior variance for each layer has 650 in its state
        AfterValidator(lambda mapping: {name: float(value) for name, value in mapping.items()}),
    ]
"""Floats by name; JSON has no number for those that are not finite, so their names stand for them."""


def to_json_number(value: float) -> float | str:
    """Return the number, or its name if JSON has none for it."""
    return value if math.isfinite(value) else str(value)


def describe_problem(error: ValidationError) -> str:
    """Describe the first value that is not as expected: where it is, what it is, and what was expected."""
    problems = error.errors(include_url=False, include_context=False)
    place = problems[0]["loc"][:2]
    messages = (problem["msg"] for problem in problems if problem["loc"][:2] == place)
    expected = " or ".join(dict.fromkeys(message.removeprefix("Input should be ") for message in messages))
    return f"{'.'.join(map(str, place))} = {short_repr.repr(problems[0]['input'])}, expected {expected}"
