"""Storage and tracking URLs."""

from __future__ import annotations

TRACKING_URI_VARIABLE = "DEELBO_TRACKING_URI"
"""The environment variable that replaces --tracking-uri: its value, unlike an option, is in no list of processes."""


def local_folder(url: str) -> str | None:
    """Return the directory of a storage that is a path or a file:// URL; None for any other URL."""
    scheme, separator, rest = url.partition("://")
    return url if not separator else rest if scheme in ("file", "local") else None
