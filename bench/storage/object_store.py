"""Open the file system of a storage URL."""

from __future__ import annotations

from typing import Any

import fsspec

from bench.storage.retry import describe_cause, storage_error
from bench.utils.text import redact_url

__all__ = ["open_filesystem"]


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        StorageError: fsspec cannot open it.
    """
    # one request a file: otherwise s3fs asks for its size first, to read large files in parallel
    options = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        advice = "pip install 'deelbo[s3]', on all nodes" if url.startswith("s3") else "install it, on all nodes"
        reason = f"{redact_url(url)} needs a package that is not installed ({describe_cause(error)})"
        raise storage_error(reason, advice) from error
    except Exception as error:
        expected = "expected a folder, or a URL that fsspec knows, such as s3://BUCKET/NAME"
        raise storage_error(f"{redact_url(url)} cannot be opened ({describe_cause(error)})", expected) from error
    return fs, str(root).rstrip("/")
