"""Object store."""

from __future__ import annotations

from typing import Any

import fsspec

from bench.storage.retry import _error, _said
from bench.utils.text import redact_url

__all__ = ["opened"]


def opened(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises StorageError where it is none that fsspec can open."""
    # a file is asked for by one request: s3fs would ask for its size first, to read what is large in parallel
    options = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise _error(f"{redact_url(url)} needs a package that is not there ({_said(error)})", _install(url)) from error
    except Exception as error:
        expected = "expected a folder, or a URL that fsspec knows, such as s3://BUCKET/NAME"
        raise _error(f"{redact_url(url)} cannot be opened ({_said(error)})", expected) from error
    return fs, str(root).rstrip("/")


def _install(url: str) -> str:
    return "pip install 'deelbo[s3]', on all nodes" if url.startswith("s3") else "install it, on all nodes"
