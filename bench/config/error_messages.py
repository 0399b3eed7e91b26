"""Messages for errors that pydantic finds in a configuration, in the keys that its file uses."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from bench.config.benchmark import SHORT_FORMS, Benchmark
from bench.config.sections import ImageSettings, TextSettings
from bench.methods import method_named
from bench.utils.text import short_repr, single_line

BRANCHES = ("function-", "tuple[", "dict[", "literal[")  # of unions, as pydantic names them: not keys
MESSAGES = {
    "tuple_type": "must be a list, [...]",
    "string_pattern_mismatch": "expected up to 64 letters, digits, dots, dashes, underscores, a letter or digit first",
}


def describe_problems(errors: Sequence[Any], content: dict[str, Any]) -> str:
    """Return one line on the first of `pydantic.ValidationError.errors`; keys that are missing beside it are named."""
    first, *others = errors
    line = describe_problem(first, content)
    section = first["loc"][:-1]
    missing = [
        error for error in others if error["type"] == first["type"] == "missing" and error["loc"][:-1] == section
    ]
    if missing:
        keys = [describe_key(error["loc"], content) for error in (first, *missing)]
        line = f"keys {', '.join(keys[:-1])} and {keys[-1]} are missing: add them"
    left = len(others) - len(missing)
    return f"{line} (and {left} more)" if left else line


def describe_key(location: Sequence[Any], content: dict[str, Any]) -> str:
    """Return the key at the ``loc`` of an error, as the file writes it."""
    parts = [str(part) for part in location if not str(part).startswith(BRANCHES)]
    if parts[:1] == ["backbones"] and parts[2:3] == ["ptyl"]:
        del parts[3:4]  # the type that pydantic took it for
    if parts[:1] == ["datasets"]:
        del parts[2:3]  # the kind of dataset that pydantic took it for
    return single_line(_key_as_written(".".join(parts), content), 100)


def describe_problem(details: Any, content: dict[str, Any]) -> str:
    """Return one line on one of `pydantic.ValidationError.errors` in the ``content`` of a file: key, value, remedy."""
    key, kind, value = describe_key(details["loc"], content), details["type"], details["input"]
    if kind == "unknown_method":
        return f"{key}: {details['msg']}, or name one of them by {key}.method"
    if kind == "extra_forbidden":
        return f"unknown key {key}: remove it, or use one of {_keys_beside(details['loc'], content)}"
    if kind == "missing":
        return f"key {key} is missing: add it"
    message = re.sub(r" or instance of \w+", "", details["msg"].removeprefix("Value error, "))
    message = MESSAGES.get(kind, message[0].lower() + message[1:])
    if kind == "value_error" and isinstance(value, dict | BaseModel):
        return f"{key}: {message}" if key else message
    return f"{key} = {short_repr.repr(value)}: {message}"


def _key_as_written(key: str, content: dict[str, Any]) -> str:
    """Return the key in its short form if the file uses that."""
    for long, (short, setting) in SHORT_FORMS.items():
        if isinstance(name := content.get(short), str) and key.startswith(f"{long}.{name}"):
            rest = key.removeprefix(f"{long}.{name}")
            return f"{setting}{rest}" if long == "datasets" else rest.removeprefix(".") or short
    return key


def _keys_beside(location: tuple[Any, ...], content: dict[str, Any]) -> str:
    """Return the known keys of the section in which an unknown one was found."""
    model: Any = Benchmark
    if location[0] == "methods" and len(location) > 2:  # entry, key
        settings = content["methods"][location[1]]
        model, location = method_named(settings.get("method", location[1])).Settings, location[2:]
    if location[0] == "datasets":  # name, kind, key
        model, location = TextSettings if location[2] == "texts" else ImageSettings, location[3:]
    for part in location[:-1]:
        by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        choices = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        inner = [a for a in choices if issubclass(a, BaseModel)]
        if not inner:
            break
        model = inner[0]
    known = [field.alias or name for name, field in model.model_fields.items()]
    return ", ".join([*known, *sum(SHORT_FORMS.values(), ())] if model is Benchmark else known)
