"""Helpers for storage URLs."""

from __future__ import annotations

__all__ = ["local_folder"]


def local_folder(url: str) -> str | None:
    """Return the directory of a storage that is a path or a file:// URL; None for any other URL."""
    scheme, separator, rest = url.partition("://")
    return url if not separator else rest if scheme in ("file", "local") else None
