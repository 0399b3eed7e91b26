"""Read a benchmark from a short YAML file, and check it before anything starts."""

import stat
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.config.benchmark import Benchmark
from bench.config.error_messages import describe_problems
from bench.exceptions import ConfigError
from bench.utils.text import single_line
from deelbo.paths import expand_user

MAX_CHARACTERS = 50_000  # a benchmark takes about 1,000; PyYAML reads some 25,000 a second
MAX_MERGED, MAX_MERGED_KEYS = 10, 1_000
PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_benchmark(config: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Benchmark:
    """Read a preset by name, or a YAML file by path, and change it by overrides such as ``training.steps=3``.

    ``config`` may also be what such a file holds.
    """
    if isinstance(config, str):
        content, shown = _read_config(config)
    else:
        content, shown = deepcopy(dict(config)), "the configuration"
    for override in overrides:
        apply_override(content, override)
    return parse_benchmark(content, shown)


def _read_config(config: str) -> tuple[Any, str]:
    """Read a preset or a file; also return its name for messages."""
    presets = preset_names()
    path = PRESETS / f"{config}.yaml" if config in presets else expand_user(config)
    shown, expected = single_line(config, 200), f"give a YAML file, or one of {', '.join(presets)}"
    try:
        status = path.stat()
    except (ValueError, OSError):  # also a null character in the name, or a name that is too long
        raise ConfigError(f"no preset or file {shown!r}: {expected}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{shown!r} is not a file: {expected}")
    if status.st_size > MAX_CHARACTERS:
        raise ConfigError(
            f"{shown} has {status.st_size} bytes, at most {MAX_CHARACTERS} are read: a benchmark is a short YAML file"
        )
    try:
        content = _read_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:
        problem = f"not a YAML file that can be read ({_describe(error)})"
        raise ConfigError(f"{shown}: {problem}: correct the file") from error
    return content, shown


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is there twice; by the standard the last one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"the key {single_line(key.value, 60)} is there twice: keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the keys of other mappings (``<<``), but few: ten aliases in each of nine mappings are a billion."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        count = sum(len(value.value) if isinstance(value, yaml.SequenceNode) else 1 for value in merged)
        if count > MAX_MERGED:
            raise ValueError(f"{count} mappings are merged by <<, at most {MAX_MERGED} can be: write the keys out")
        super().flatten_mapping(node)
        if merged and len(node.value) > MAX_MERGED_KEYS:
            raise ValueError(f"{len(node.value)} keys come from <<, at most {MAX_MERGED_KEYS} can: write the keys out")


def _read_yaml(text: str) -> Any:
    """Return the content of a YAML text; raise errors of many kinds, as for a tag with a wrong value (``!!int x``)."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
    return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a safe loader


def _describe(error: Exception) -> str:
    is_sentence = isinstance(error, yaml.YAMLError | ValueError | RecursionError)
    return single_line(error if is_sentence else f"{type(error).__name__}: {error}", 300)


def apply_override(content: Any, override: str) -> None:
    """Set one key of what a YAML file holds, as ``--set`` does; missing parent keys are created."""
    shown = single_line(override, 100)
    path, separator, text = override.partition("=")
    *parents, last = path.split(".")
    if not separator or not all([*parents, last]):
        raise ConfigError(f"--set takes KEY=VALUE, such as training.steps=100, got {shown!r}")
    try:
        value = _read_yaml(text)
    except Exception as error:
        raise ConfigError(f"--set {shown}: not a YAML value ({_describe(error)})") from error
    for i, key in enumerate(parents):
        if isinstance(content, dict) and content.get(key) is None:
            content[key] = {}
        content = content[key] if isinstance(content, dict) else None
        if not isinstance(content, dict):
            parent = single_line(".".join(parents[: i + 1]), 100)
            raise ConfigError(f"--set {shown}: {parent} has no keys in it: set it as a whole")
    if isinstance(content, dict):
        content[last] = value


def parse_benchmark(content: Any, source: str) -> Benchmark:
    """Check what a YAML file holds; messages call it ``source``."""
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{source}: expected keys such as name, dataset, methods; got {kind}: see docs/config.md")
    try:
        return Benchmark.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe_problems(error.errors(), content)}") from error


def flatten_settings(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings in nested mappings by their keys as ``--set`` takes them."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
