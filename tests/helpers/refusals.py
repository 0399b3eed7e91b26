"""Inputs that must be refused, and the one line of their error."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def refusal_of(call: Callable[..., object], *arguments: Any, **settings: Any) -> str:
    """Return the message of the ValueError that a call raises, which must be one short printable line."""
    with pytest.raises(ValueError, match=r"\S") as error:
        call(*arguments, **settings)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 900
    return str(error.value)
