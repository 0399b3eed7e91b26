"""What a plug-in may give as a method, and what is refused."""

from __future__ import annotations

import pytest

from bench.methods import _find_fault
from bench.methods.base import Method
from bench.methods.elbo import ELBo


class Settings(ELBo.Settings):
    method: str = "mine"


class Mine(ELBo):
    name, title, Settings = "mine", "Mine", Settings


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (Mine, None),
        (Mine.title, "it is 'Mine', expected a subclass of bench.methods.base.Method"),
        (int, "it is <class 'int'>, expected a subclass"),
        (ELBo, "ELBo.name is 'elbo', expected 'mine', the name of its entry point"),
        (type("Other", (Mine,), {"Settings": ELBo.Settings}), "Other.Settings.method is 'elbo', expected 'mine'"),
        (type("Other", (Mine,), {"Settings": dict}), "Other.Settings is <class 'dict'>, expected a subclass"),
        (type("Other", (Mine,), {"title": None}), "Other.title is None"),
        (type("Other", (Method,), {}), "Other lacks initial_trials"),
    ],
)
def test_what_a_plugin_gives(found: object, problem: str | None) -> None:
    """A method is a class whose name, settings and title fit its entry point."""
    fault = _find_fault("mine", found)
    assert fault == problem if problem is None else fault is not None and fault.startswith(problem)
