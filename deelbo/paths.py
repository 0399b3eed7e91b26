"""Paths as people write them."""

import os
from pathlib import Path


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path whose leading ``~`` or ``~NAME`` is replaced by that user's home folder, as shells do.

    Raises:
        ValueError: that user has no home folder.
    """
    text = os.path.expanduser(path)  # noqa: PTH111 - pathlib would also replace that of ./~
    if text.startswith("~"):
        raise ValueError(f"{text}: no home folder is known for {text.partition('/')[0]}: give the full path")
    return Path(text)
