"""Exceptions."""

from __future__ import annotations

from bench.utils.text import single_line

__all__ = ["ConfigError", "RecordError", "RunAborted", "StorageError", "UnreachableError"]


class ConfigError(ValueError):
    """Bad input, in one short line: what came, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message))  # whatever the input, names and values of which are in it


class UnreachableError(ConfigError):
    """Nobody answers, which may pass."""


LONGEST = 1000


class RecordError(ValueError):
    """A storage that cannot be used as it is, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message, LONGEST))


class StorageError(OSError):
    """A storage behind a URL that cannot be used: what it said, and what to do, in one line.

    ``strerror`` is the first of the two.
    """


class RunAborted(KeyboardInterrupt):
    """A run that cannot go on; its words say why, and what to do. It stops as Ctrl-C stops it, and keeps what it has.

    No Exception, which Ray Tune would take for a failed trial's.
    """
