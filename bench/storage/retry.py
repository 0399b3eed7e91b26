"""Storages behind a URL: which URLs are good ones, how long an outage is waited for, and what went wrong, in a line."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from bench.exceptions import StorageError
from bench.utils.text import redact_url, single_line

__all__ = ["OUTAGE", "Patience", "asked", "http_status"]


T = TypeVar("T")
OUTAGE = 60.0
"""Seconds that a storage may be unreachable during a run: less than `bench.storage.lease.STALE_SECONDS`."""
PAUSE = 2.0
IN_VAIN = (ImportError, PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
IN_VAIN_TOO = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EROFS)


class Patience:
    """How long a storage that does not answer is waited for, by all who ask it at the same time.

    Args:
        seconds: from the first answer that did not come to the last try, until something answers again.
        say: told once an outage that there is one.
    """

    def __init__(self, seconds: float, say: Callable[[str], object] | None = None) -> None:
        self._seconds, self._say = seconds, say
        self._changing = threading.Lock()
        self._since: float | None = None
        self._over = threading.Event()

    def waits(self, words: str) -> bool:
        """What was asked did not answer, in these words: waits a while; False where nobody is waited for any more."""
        with self._changing:
            if self._over.is_set():
                return False
            now = time.monotonic()
            if self._since is None:
                self._since = now
                if self._say is not None:
                    self._say(words)
            if now - self._since >= self._seconds:
                return False
        return not self._over.wait(PAUSE)

    def answered(self) -> None:
        """The outage is over, if there was one."""
        self._since = None

    def end(self) -> None:
        """Who waits stops at once, and nobody will."""
        self._over.set()


def asked(url: str, patience: Patience | None, call: Callable[..., T], *arguments: Any) -> T:
    """What a file system answers; one that does not answer is asked again as long as ``patience`` says.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file or folder.
        StorageError: it cannot be used, or was away for longer.
    """
    while True:
        try:
            answer = call(*arguments)
        except Exception as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and not _no_bucket(error):
                if patience is not None:
                    patience.answered()
                raise
            words = f"{redact_url(url)} does not answer ({_said(error)}): waiting for it, for a minute at most"
            if patience is None or _in_vain(error) or not patience.waits(words):
                raise _error(*_words(redact_url(url), error)) from error
        else:
            if patience is not None:
                patience.answered()
            return answer


def _in_vain(error: Exception) -> bool:
    """Whether trying again is: anything else may pass."""
    if isinstance(error, OSError):
        return isinstance(error, IN_VAIN) or error.errno in NUMBERS
    return isinstance(error, (*IN_VAIN, *IN_VAIN_TOO)) or _unknown(error)


def _no_bucket(error: Exception) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return bool(response.get("Error", {}).get("Code") == "NoSuchBucket")


def http_status(error: BaseException | None) -> int | None:
    """Return the status of the answer that caused an error of s3fs; None if there is none."""
    response = getattr(getattr(error, "__cause__", None), "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _unknown(error: Exception) -> bool:
    """Whether there are no credentials at all: botocore's error of its own."""
    return "Credentials" in type(error).__name__


def _said(error: Exception) -> str:
    return single_line(redact_url(str(error)), 200) or type(error).__name__


def _words(url: str, error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do."""
    if isinstance(error, FileNotFoundError):
        return f"{url} is in no bucket that there is ({_said(error)})", "make the bucket, or choose another --storage"
    if isinstance(error, PermissionError) or _unknown(error):
        todo = (
            "give credentials that may read, write, list and delete there, in the environment (AWS_ACCESS_KEY_ID, ...)"
        )
        return f"{url} lets nobody in like this ({_said(error)})", f"{todo} or by the machine's role"
    if type(error).__name__ == "ParamValidationError":  # botocore's, of a name that cannot be
        return f"{url} cannot be asked for ({_said(error)})", "expected s3://BUCKET/NAME"
    todo = "see that its address (AWS_ENDPOINT_URL, where it is not Amazon's) is right and it is up"
    return (
        f"{url} does not answer as it should ({_said(error)})",
        f"{todo}; what is kept stays, and the same command works",
    )


def _error(reason: str, todo: str) -> StorageError:
    error = StorageError(f"{reason}: {todo}")
    error.strerror = reason
    return error
