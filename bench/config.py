"""A benchmark as people write it: a short YAML file, checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bench.benchmark import IN_SHORT, Benchmark
from bench.methods import METHODS, method_named
from bench.said import SHORT, one_line

__all__ = [
    "PRESETS",
    "ConfigError",
    "leaves",
    "load_benchmark",
    "one_line",
    "override",
    "parse_benchmark",
    "preset_names",
]

LARGEST = 50_000
"""Characters of a YAML text: a benchmark takes about 1,000, and YAML is read at 25,000 a second or so."""
PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """Bad input, in one short line: what came, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # whatever the input, names and values of which are in it


def preset_names() -> list[str]:
    """The benchmarks that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_benchmark(config: str, overrides: Sequence[str] = ()) -> Benchmark:
    """Reads a preset by name, or a YAML file by path.

    ``overrides``: changes such as ``training.steps=3``, the value in YAML, made before anything is checked.

    Raises:
        ConfigError: no such preset or file, not YAML, an unknown key, or a value that makes no sense.
    """
    path = PRESETS / f"{config}.yaml" if config in preset_names() else Path(config)
    shown = one_line(config, 200)
    try:
        there = path.is_file()
        something = path.exists()
    except (ValueError, OSError):  # a NUL in its name, or a name that is too long
        there = something = False
    if something and not there:
        raise ConfigError(f"{shown} is no file: give a YAML file, or one of {_presets()}")
    if not there:
        raise ConfigError(f"no preset or file {shown!r}: give a YAML file, or one of {_presets()}")
    if (size := path.stat().st_size) > LARGEST:
        raise ConfigError(f"{shown} has {size} bytes, at most {LARGEST} are read: a benchmark is a short YAML file")
    try:
        content = _read(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ConfigError(f"{shown}: not a YAML file that can be read ({_complaint(error)}): mend the file") from error
    for change in overrides:
        override(content, change)
    return parse_benchmark(content, shown)


def _presets() -> str:
    return ", ".join(preset_names())


MERGE = "tag:yaml.org,2002:merge"
MOST_MERGED, MOST_KEYS = 10, 1_000


class _Unambiguous(yaml.SafeLoader):
    """YAML's safe loader, but a key that is there twice is an error: by the standard the last one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"the key {one_line(key.value, 60)} is there twice: keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Takes the keys of other mappings (``<<``) in: not many, as ten aliases in each of nine mappings would stand
        for a billion."""
        merged = [value for key, value in node.value if key.tag == MERGE]
        count = sum(len(value.value) if isinstance(value, yaml.SequenceNode) else 1 for value in merged)
        if count > MOST_MERGED:
            raise ValueError(f"{count} mappings are merged by <<, at most {MOST_MERGED} can be: write the keys out")
        super().flatten_mapping(node)
        if merged and len(node.value) > MOST_KEYS:
            raise ValueError(f"{len(node.value)} keys come from <<, at most {MOST_KEYS} can: write the keys out")


def _read(text: str) -> Any:
    """The content of a YAML text. Raises ValueError, RecursionError, or whatever else the text led the reader to: of a
    tag with a wrong value (``!!int x``) it says IndexError, KeyError, AttributeError or OverflowError."""
    if len(text) > LARGEST:
        raise ValueError(f"{len(text)} characters, at most {LARGEST} are read")
    return yaml.load(text, Loader=_Unambiguous)  # noqa: S506 - a safe loader


def _complaint(error: Exception) -> str:
    """What YAML's reader says: its own errors are sentences, others go by their names."""
    named = isinstance(error, yaml.YAMLError | ValueError | RecursionError)
    return one_line(error if named else f"{type(error).__name__}: {error}", 300)


def override(content: Any, change: str) -> None:
    """Sets one key of what a YAML file held; keys on the way are made where they are missing."""
    shown = one_line(change, 100)
    path, found, text = change.partition("=")
    *parents, last = path.split(".")
    if not found or not all([*parents, last]):
        raise ConfigError(f"--set takes KEY=VALUE, such as training.steps=100, got {shown!r}")
    try:
        value = _read(text)
    except Exception as error:
        raise ConfigError(f"--set {shown}: not a YAML value ({_complaint(error)})") from error
    for i, key in enumerate(parents):
        if isinstance(content, dict) and content.get(key) is None:
            content[key] = {}
        content = content[key] if isinstance(content, dict) else None
        if not isinstance(content, dict):
            where = one_line(".".join(parents[: i + 1]), 100)
            raise ConfigError(f"--set {shown}: {where} has no keys in it: set it as a whole")
    if isinstance(content, dict):
        content[last] = value


def parse_benchmark(content: Any, source: str) -> Benchmark:
    """Checks what a YAML file held. Raises ConfigError, naming the key, as `load_benchmark` does."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{source}: expected keys such as name, dataset, methods; got {_kind(content)}: see docs/config.md"
        )
    try:
        return Benchmark.model_validate(content)
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{source}: {_problem(error.errors()[0], content)}{more}") from error


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in nested mappings, by their keys as ``--set`` takes them."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__


def _problem(details: Any, content: dict[str, Any]) -> str:
    branches = ("function-", "tuple[", "dict[", "literal[")
    parts = [str(part) for part in details["loc"] if not str(part).startswith(branches)]
    if parts[:1] == ["backbones"] and parts[2:3] == ["ptyl"]:
        del parts[3:4]  # of what type it was taken to be
    if parts[:1] == ["methods"]:
        del parts[2:3]  # of which method it was taken to be
    key = one_line(_as_written(".".join(parts), content), 100)
    if details["type"] == "union_tag_invalid":
        known = ", ".join(method.name for method in METHODS)
        given = SHORT.repr(details["ctx"]["tag"])
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
    if details["type"] == "string_pattern_mismatch":  # `bench.benchmark.NAME`, the only one
        message = "expected up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
    if details["type"] == "value_error" and isinstance(details["input"], dict | BaseModel):
        return f"{key}: {message}" if key else message
    return f"{key} = {SHORT.repr(details['input'])}: {message}"


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
