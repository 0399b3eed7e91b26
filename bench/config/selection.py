"""A part of a benchmark, as ``--only`` names it: some of its methods, priors, sizes, seeds, datasets, backbones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.exceptions import ConfigError
from bench.methods.base import Method

__all__ = ["filter_methods"]


KEYS = ("method", "dataset", "backbone", "prior", "n", "seed")


@dataclass(frozen=True)
class _Competitor:
    """A method in its cell, as words that ``--only`` can name."""

    method: Method

    def word(self, key: str) -> str:
        return self.method.name if key == "method" else str(getattr(self.method.cell, key))


def filter_methods(methods: Sequence[Method], only: str | None) -> list[Method]:
    """Those of ``methods`` that ``only`` names, in order; all where it is None.

    ``only`` is ``KEY=VALUE,KEY=VALUE,...``, KEY one of `KEYS`. A key given twice allows both values; different keys
    must all fit.

    Raises:
        ConfigError: not of that form, an unknown key, a value that the benchmark does not have, or nothing fits.
    """
    if only is None:
        return list(methods)
    there = [_Competitor(method) for method in methods]
    wanted: dict[str, set[str]] = {}
    for piece in only.split(","):
        key, found, value = (word.strip() for word in piece.partition("="))
        if not found or not value:
            raise ConfigError(f"--only takes KEY=VALUE,KEY=VALUE, such as method=de-elbo,n=100; got {only!r}")
        if key not in KEYS:
            raise ConfigError(f"--only {piece.strip()}: no such key, use one of {', '.join(KEYS)}")
        known = list(dict.fromkeys(one.word(key) for one in there))
        if value not in known:
            raise ConfigError(f"--only {piece.strip()}: this benchmark has {key} {', '.join(known)}")
        wanted.setdefault(key, set()).add(value)
    part = [one.method for one in there if all(one.word(key) in values for key, values in wanted.items())]
    if not part:
        raise ConfigError(f"--only {only}: nothing in this benchmark is all of that")
    return part
