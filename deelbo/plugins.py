"""Plug-ins: datasets, backbones and methods of other installed packages, which they offer as entry points.

A plug-in is imported when its name is first used. One that cannot be used is named with the reason; the others work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
MAX_CHARACTERS = 200  # of an error that a plug-in raises


@dataclass(frozen=True)
class Plugin:
    """The origin of a plug-in: its distribution, that one's version, and the top-level module that is imported.

    The distribution of a package that is imported without an entry point is empty.
    """

    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"the plug-in {self.distribution} {self.version}" if self.distribution else f"the package {self.module}"


class Registry(Generic[T]):
    """Objects by name: the built-in ones, and those of plug-ins.

    Args:
        kind: what the objects are, for messages: "dataset", "backbone", "method".
        builtin: the built-in ones. A plug-in cannot replace them.
        find_fault: returns what is wrong with an object that a plug-in gives, or None.
    """

    def __init__(self, kind: str, builtin: Mapping[str, T], find_fault: Callable[[str, object], str | None]) -> None:
        self.kind, self.builtin, self._find_fault = kind, builtin, find_fault
        self.group = f"deelbo.{kind}s"
        self._loaded: dict[str, T] = {}
        self._failures: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in _entry_points(self.group)

    def find(self, name: str) -> T:
        """Return the object of that name.

        Raises:
            ValueError: there is none, or its plug-in cannot be used; one line.
        """
        if name in self.builtin:
            return self.builtin[name]
        if name not in _entry_points(self.group):
            raise ValueError(f"{self.kind} must be one of {self.describe()}, got {name!r}")
        if (problem := self.find_problem(name)) is not None:
            raise ValueError(problem)
        return self._loaded[name]

    def plugin(self, name: str) -> Plugin | None:
        """Return the plug-in that gives the object of that name, without importing it; None if none does."""
        if name in self.builtin or name not in (points := _entry_points(self.group)):
            return None
        return _origin(points[name][0])

    def names(self) -> list[str]:
        """Return the names of built-in objects, in their order, then those of plug-ins."""
        return [*self.builtin, *sorted(_entry_points(self.group).keys() - self.builtin.keys())]

    def loaded(self) -> dict[str, T]:
        """Return the objects of the plug-ins that were used so far, by name."""
        return dict(self._loaded)

    def describe(self) -> str:
        """Return the names that can be used, after importing all plug-ins, and why others cannot."""
        problems = {name: problem for name in _entry_points(self.group) if (problem := self.find_problem(name))}
        known = ", ".join(name for name in self.names() if name in self.builtin or name not in problems)
        return f"{known} ({'; '.join(problems.values())})" if problems else known

    def find_problem(self, name: str) -> str | None:
        """Return why the plug-in of that name cannot be used, in one line; None if it can."""
        if name in self.builtin:
            return (
                f"{_origin(_entry_points(self.group)[name][0])} has a {self.kind} by the name of the built-in {name!r}"
            )
        if name not in self._loaded and name not in self._failures:
            try:
                self._loaded[name] = self._load(name)
            except ValueError as error:
                self._failures[name] = str(error)
        return self._failures.get(name)

    def _load(self, name: str) -> T:
        """Import a plug-in, and check what it gives."""
        first, *others = _entry_points(self.group)[name]
        plugin = _origin(first)
        if others:
            both = f"{plugin} and {_origin(others[0])}"
            raise ValueError(f"{both} both have a {self.kind} {name!r}: uninstall one of them")
        try:
            found = first.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit: a plug-in must not end the program
            raise ValueError(
                f"{plugin}, which has the {self.kind} {name!r}, cannot be imported ({describe(error)}): repair or "
                "uninstall it"
            ) from error
        if (fault := self._find_fault(name, found)) is not None:
            raise ValueError(f"{plugin} gives no {self.kind} by the name {name!r}: {fault}")
        return found  # type: ignore[no-any-return]


def describe(error: BaseException) -> str:
    """Describe an exception of a plug-in in a short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


@cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name, of installed packages and of others on the search path."""
    from importlib.metadata import entry_points  # takes a twentieth of a second

    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: str(_origin(point))):
        found.setdefault(point.name, []).append(point)
    return found


def _origin(point: EntryPoint) -> Plugin:
    name, version = (None, None) if point.dist is None else (point.dist.name, point.dist.version)
    return Plugin(name or "of an unknown name", version or "", point.value.partition(":")[0].partition(".")[0].strip())
