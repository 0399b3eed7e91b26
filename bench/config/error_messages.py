"""Error messages."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from bench.config.benchmark import IN_SHORT, Benchmark
from bench.methods import METHODS, method_named
from bench.utils.text import short_repr, single_line


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__


def _problem(details: Any, content: dict[str, Any]) -> str:
    branches = ("function-", "tuple[", "dict[", "literal[")
    parts = [str(part) for part in details["loc"] if not str(part).startswith(branches)]
    if parts[:1] == ["backbones"] and parts[2:3] == ["ptyl"]:
        del parts[3:4]  # of what type it was taken to be
    if parts[:1] == ["methods"]:
        del parts[2:3]  # of which method it was taken to be
    key = single_line(_as_written(".".join(parts), content), 100)
    if details["type"] == "union_tag_invalid":
        known = ", ".join(method.name for method in METHODS)
        given = short_repr.repr(details["ctx"]["tag"])
        return f"{key}: no method {given}: use one of {known}, or name one of them by {key}.method"
    if details["type"] == "extra_forbidden":
        known = _keys_beside(details["loc"])
        return f"unknown key {key}: remove it, or use one of {known}"
    if details["type"] == "missing":
        return f"key {key} is missing: add it"
    message = re.sub(r" or instance of \w+", "", details["msg"].removeprefix("Value error, "))
    message = message[0].lower() + message[1:]
    if details["type"] == "tuple_type":
        message = "must be a list, [...]"
    if details["type"] == "string_pattern_mismatch":  # `bench.types.NAME`, the only one
        message = "expected up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
    if details["type"] == "value_error" and isinstance(details["input"], dict | BaseModel):
        return f"{key}: {message}" if key else message
    return f"{key} = {short_repr.repr(details['input'])}: {message}"


def _as_written(key: str, content: dict[str, Any]) -> str:
    """The key that people gave, where they gave it in short."""
    for long, (short, setting) in IN_SHORT.items():
        if isinstance(name := content.get(short), str) and key.startswith(f"{long}.{name}"):
            rest = key.removeprefix(f"{long}.{name}")
            return f"{setting}{rest}" if long == "datasets" else rest.removeprefix(".") or short
    return key


def _keys_beside(location: tuple[Any, ...]) -> str:
    """The keys that exist where an unknown one was found."""
    model: Any = Benchmark
    if location[0] == "methods" and len(location) > 3:  # entry, method, key
        model, location = method_named(location[2]).Settings, location[3:]
    for part in location[:-1]:
        by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        choices = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        inner = [a for a in choices if issubclass(a, BaseModel)]
        if not inner:
            break
        model = inner[0]
    known = [field.alias or name for name, field in model.model_fields.items()]
    return ", ".join([*known, *sum(IN_SHORT.values(), ())] if model is Benchmark else known)
