"""Urls."""

from __future__ import annotations

from typing import Optional

__all__ = ["local_folder"]


def local_folder(url: str) -> Optional[str]:  # noqa: UP045
    """The folder that a storage is; None where it is none."""
    scheme, separator, rest = url.partition("://")
    return url if not separator else rest if scheme in ("file", "local") else None
