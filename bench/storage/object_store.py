"""Open the file system of a storage URL, retry its calls during an outage, and describe its errors in one line."""

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from bench.exceptions import StorageError
from bench.utils.text import redact_url, single_line

T = TypeVar("T")
MAX_OUTAGE_SECONDS = 60.0
"""How long a storage may be unreachable during a run: less than `bench.storage.lock.STALE_SECONDS`."""
RETRY_SECONDS = 2.0
PERMANENT_OS_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
PROGRAM_ERRORS = (ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError)
PERMANENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EROFS)


class OutageTimer:
    """Limits how long an unreachable storage is waited for; all threads that call it share one.

    Args:
        seconds: from the first failed call to the last retry, unless a call succeeds in between.
        say: prints a line once per outage.
    """

    def __init__(self, seconds: float, say: Callable[[str], object] | None = None) -> None:
        self._seconds, self._say = seconds, say
        self._lock = threading.Lock()
        self._since: float | None = None
        self._cancelled = threading.Event()

    def wait(self, message: str) -> bool:
        """Wait until the next retry; return False if there should be none."""
        with self._lock:
            if self._cancelled.is_set():
                return False
            if self._since is None:
                self._since = time.monotonic()
                if self._say is not None:
                    self._say(message)
            if time.monotonic() - self._since >= self._seconds:
                return False
        return not self._cancelled.wait(RETRY_SECONDS)

    def reset(self) -> None:
        """End the outage, as a call was answered."""
        self._since = None

    def cancel(self) -> None:
        """Stop all waiting, now and later."""
        self._cancelled.set()


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it. Raises StorageError if fsspec cannot open it."""
    # one request a file: otherwise s3fs asks for its size first, to read large files in parallel
    options = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = "pip install 'deelbo[s3]'" if url.startswith("s3") else "install it"
        raise _error(url, error, "needs a package that is not installed", f"{package}, on all nodes") from error
    except Exception as error:
        expected = "expected a folder, or a URL that fsspec knows, such as s3://BUCKET/NAME"
        raise _error(url, error, "cannot be opened", expected) from error
    return fs, str(root).rstrip("/")


def call_with_retry(url: str, timer: OutageTimer, call: Callable[..., T], *arguments: Any) -> T:
    """Call a method of a file system; retry while it is unreachable and the timer allows it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file or folder.
        StorageError: it cannot be used, or was unreachable for too long.
    """
    while True:
        try:
            answer = call(*arguments)
        except Exception as error:
            has_bucket = _response(error).get("Error", {}).get("Code") != "NoSuchBucket"
            if isinstance(error, FileNotFoundError | NotADirectoryError) and has_bucket:
                timer.reset()
                raise
            message = f"{redact_url(url)} does not answer ({_cause(error)}): retrying for up to a minute"
            if _is_permanent(error) or not timer.wait(message):
                raise _error(url, error, *_describe(error)) from error
        else:
            timer.reset()
            return answer


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that caused an error of s3fs; None if there is none."""
    status: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _response(error: BaseException | None) -> dict[str, Any]:
    return getattr(getattr(error, "__cause__", None), "response", None) or {}


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, PERMANENT_OS_ERRORS) or error.errno in PERMANENT_ERRNOS
    return isinstance(error, PROGRAM_ERRORS) or _lacks_credentials(error)


def _lacks_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__  # botocore's own errors


def _cause(error: Exception) -> str:
    return single_line(redact_url(str(error)), 200) or type(error).__name__


def _error(url: str, cause: Exception, problem: str, advice: str) -> StorageError:
    """Return an error whose ``strerror`` is the reason alone."""
    reason = f"{redact_url(url)} {problem} ({_cause(cause)})"
    error = StorageError(f"{reason}: {advice}")
    error.strerror = reason
    return error


def _describe(error: Exception) -> tuple[str, str]:
    """Return the problem and what to do."""
    if isinstance(error, FileNotFoundError):
        return "is in a bucket that does not exist", "make the bucket, or choose another --storage"
    if isinstance(error, PermissionError) or _lacks_credentials(error):
        return "denies access", (
            "give credentials that may read, write, list and delete there, in the environment (AWS_ACCESS_KEY_ID, ...) "
            "or by the machine's role"
        )
    if type(error).__name__ == "ParamValidationError":  # botocore's, of an invalid name
        return "is not a valid address", "expected s3://BUCKET/NAME"
    return "does not answer as expected", (
        "check that its address (AWS_ENDPOINT_URL, if it is not Amazon's) is right and that it is up; all records are "
        "kept, and the same command works again"
    )
