"""All exceptions of this package; each message is a single line."""

from bench.utils.text import single_line


class ConfigError(ValueError):
    """Bad input: what is wrong, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message))  # the message quotes input, which may be anything


class UnreachableError(ConfigError):
    """A server that does not answer; trying again may help."""


class RecordError(ValueError):
    """A storage that cannot be used as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message, max_chars=1000))


class ReportError(ValueError):
    """A report that cannot be drawn."""


class FormatError(RecordError):
    """A record or a storage of an earlier format."""


class StorageError(OSError):
    """A storage behind a URL that cannot be used: the reason and what to do; ``strerror`` is the reason alone."""


class RunAborted(KeyboardInterrupt):
    """A run that cannot go on; the message says why and what to do. Finished trials are kept, as after Ctrl-C.

    Not an Exception, which Ray Tune would treat as the failure of a trial.
    """
