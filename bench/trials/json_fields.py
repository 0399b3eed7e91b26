"""What a record's JSON may hold: plain values, of the types of their fields. Anybody may have written the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from bench.utils.text import short_repr

__all__ = ["Kinds", "check_fields", "facts", "kinds_of", "numbers", "plain", "strict_json"]


Kinds = dict[str, tuple[type, ...]]
MOST = 200
"""Characters of a name, such as a dataset's, and facts in a mapping: many times what trials have."""
NUMBERS = 10_000
"""Numbers in a mapping: with a prior variance for each layer a ResNet-50 has 650 of them in its state."""
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
EXPECTED = {str: "a short text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def plain(value: float) -> float | str:
    """The number, or its word where JSON has no number for it."""
    return value if math.isfinite(value) else str(value)


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON: such a number is written as the word nan, inf or -inf")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def strict_json(text: str) -> Any:
    """As `json.loads`, but NaN and Infinity are no numbers. Raises ValueError or RecursionError."""
    return _DECODER.decode(text)


def kinds_of(cls: type) -> Kinds:
    """The types that JSON may have for each field of a dataclass; of those fields alone that are of plain types."""
    hints = get_type_hints(cls)
    kinds = {name: get_args(hint) if get_origin(hint) is UnionType else (hint,) for name, hint in hints.items()}
    # 1 stands for 1.0 in files that other programs wrote
    return {
        name: (*several, int) if float in several else several
        for name, several in kinds.items()
        if all(kind in EXPECTED for kind in several)
    }


def check_fields(values: Mapping[str, Any], kinds: Kinds, long: str = "") -> None:
    """Raises ValueError where a value is of another type than its field, or not plain; ``long``: a text of any kind."""
    for name, accepted in kinds.items():
        value = values[name]
        if type(value) not in accepted or not (name == long or _is_plain(value)):
            expected = " or ".join(EXPECTED[kind] for kind in accepted if kind is not int or float not in accepted)
            raise ValueError(f"{name} = {short_repr.repr(value)}, expected {expected}")


def numbers(name: str, mapping: Any) -> dict[str, float]:
    """The entries as floats, the words nan, inf and -inf among them. Raises ValueError where one is anything else."""
    found = {}
    for key, value in _entries(name, mapping, NUMBERS).items():
        if type(value) is str and value in WORDS:
            found[key] = WORDS[value]
        elif type(value) in (float, int) and _is_plain(value):
            found[key] = float(value)
        else:
            raise ValueError(f"{name}.{key} = {short_repr.repr(value)}, expected a number, or nan, inf or -inf")
    return found


def facts(name: str, mapping: Any, texts: bool = False) -> dict[str, Any]:
    """The entries. Raises ValueError where one is not plain, or, if ``texts`` alone may be there, no text."""
    for key, value in _entries(name, mapping, MOST).items():
        if not _is_plain(value) or (texts and type(value) is not str):
            raise ValueError(
                f"{name}.{key} = {short_repr.repr(value)}, expected a short text{'' if texts else ' or number'}"
            )
    return dict(mapping)


def _entries(name: str, mapping: Any, most: int) -> dict[str, Any]:
    if type(mapping) is not dict or len(mapping) > most:
        raise ValueError(f"{name} = {short_repr.repr(mapping)}, expected at most {most} entries by their names")
    for key in mapping:
        if not _is_plain(key):
            raise ValueError(f"{name} holds {short_repr.repr(key)}, expected a short text")
    return mapping


def _is_plain(value: Any) -> bool:
    """A finite number that fits 64 bits, a short text of printable characters, true, false or null."""
    kind = type(value)  # and not isinstance, as a bool is no number here
    if kind is str:
        return len(value) <= MOST and str.isprintable(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    if kind is float:
        return math.isfinite(value)
    return kind is bool or value is None
