"""A benchmark as people write it: a short YAML file, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.config.benchmark import Benchmark
from bench.config.error_messages import _kind, _problem
from bench.exceptions import ConfigError
from bench.utils.text import single_line

__all__ = [
    "PRESETS",
    "apply_override",
    "flatten_settings",
    "load_benchmark",
    "parse_benchmark",
    "preset_names",
    "single_line",
]


LARGEST = 50_000
"""Characters of a YAML text: a benchmark takes about 1,000, and YAML is read at 25,000 a second or so."""
PRESETS = Path(__file__).parent / "presets"


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
    shown = single_line(config, 200)
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
        apply_override(content, change)
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
                    raise ValueError(f"the key {single_line(key.value, 60)} is there twice: keep one")
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
    return single_line(error if named else f"{type(error).__name__}: {error}", 300)


def apply_override(content: Any, change: str) -> None:
    """Sets one key of what a YAML file held; keys on the way are made where they are missing."""
    shown = single_line(change, 100)
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
            where = single_line(".".join(parents[: i + 1]), 100)
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


def flatten_settings(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in nested mappings, by their keys as ``--set`` takes them."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
