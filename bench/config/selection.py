"""Select a subset of a benchmark, as ``--only`` does."""

from collections.abc import Sequence

from bench.exceptions import ConfigError
from bench.methods.base import Method

KEYS = ("method", "dataset", "backbone", "prior", "n", "seed")


def filter_methods(methods: Sequence[Method], only: str | None) -> list[Method]:
    """Return those of ``methods`` that match KEY=VALUE,KEY=VALUE,...: for each key one of its values; all if None."""
    if only is None:
        return list(methods)
    wanted: dict[str, set[str]] = {}
    for part in only.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if not value:
            raise ConfigError(f"--only takes KEY=VALUE,KEY=VALUE, such as method=de-elbo,n=100; got {only!r}")
        if key not in KEYS:
            raise ConfigError(f"--only {part.strip()}: no such key, use one of {', '.join(KEYS)}")
        known = list(dict.fromkeys(_value(method, key) for method in methods))
        if value not in known:
            raise ConfigError(f"--only {part.strip()}: this benchmark has {key} {', '.join(known)}")
        wanted.setdefault(key, set()).add(value)
    selected = [m for m in methods if all(_value(m, key) in values for key, values in wanted.items())]
    if not selected:
        raise ConfigError(f"--only {only}: nothing in this benchmark matches all of it")
    return selected


def _value(method: Method, key: str) -> str:
    return method.name if key == "method" else str(getattr(method.cell, key))
