"""Places."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from bench.exceptions import ConfigError
from bench.utils.text import has_credentials, redact_url

__all__ = ["TRACKING", "check_no_password", "check_places", "check_scheme", "check_url"]


TRACKING = "DEELBO_TRACKING_URI"
"""The variable that stands for --tracking-uri where none is given: no command line shows what is in it."""
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def check_scheme(uri: str) -> tuple[str, str]:
    """The scheme of a tracking URI and what follows it; raises ConfigError where it is none that MLflow takes."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest or scheme.partition("+")[0] not in SCHEMES:
        raise ConfigError(
            f"--tracking-uri {redact_url(uri)!r}: expected one of {', '.join(SCHEMES)}, then :// and where it is"
        )
    return scheme, rest


def _check_database(uri: str, file: Path) -> None:
    """Raises ConfigError where there can be no database: MLflow would try for minutes."""
    problem = "expected sqlite:/// and a file in a folder that exists"
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"--tracking-uri {uri!r}: {problem}")
    new = not file.exists()
    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("select count(*) from sqlite_master")
    except sqlite3.Error as error:
        raise ConfigError(f"--tracking-uri {uri!r}: {problem}, {file} cannot be used ({error})") from None
    finally:
        if new:
            with suppress(OSError):
                file.unlink()


def check_places(storage: str | None, tracking: str | None) -> str:
    """The storage, where it and the tracking URI mean the same place on a cluster as here.

    Raises:
        ConfigError: they do not, or there is no place.
    """
    if not storage:
        raise ConfigError(
            "no --storage: expected a URL, or a folder that all nodes share, for the records; the job's own folder "
            "goes away with it"
        )
    check_no_password(storage)
    scheme, found, rest = storage.partition("://")
    if found and scheme in ("file", "local"):  # a folder by another name is the same storage
        storage, found = rest, ""
    if found and not rest.strip("/"):
        raise ConfigError(f"--storage {storage!r} names no place: expected {scheme}://BUCKET/NAME, or the like")
    if found:
        try:
            check_url(storage)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if not found and not os.path.isabs(storage):
        raise ConfigError(
            f"--storage {storage!r} is a path from here, where no node is: expected an absolute path that all nodes "
            "share, or a URL"
        )
    if tracking is None and found:
        raise ConfigError(f"{storage} is no folder, so MLflow needs a place of its own: give --tracking-uri")
    if tracking is not None:
        check_scheme(tracking)
        if tracking.startswith("sqlite:///") and not tracking.startswith("sqlite:////"):
            raise ConfigError(
                f"--tracking-uri {tracking!r} is a path from here, where no node is: expected sqlite:////PATH, or a "
                "server"
            )
    return storage.rstrip("/") if found else os.path.normpath(f"/{storage.lstrip('/')}")


def check_no_password(storage: str) -> None:
    """Raises ConfigError where a storage's URL has one, which would be on a job's command line."""
    if has_credentials(storage):
        raise ConfigError(
            f"--storage {redact_url(storage)} has a password in it, which everybody would see who lists the "
            "cluster's jobs: "
            "give credentials by --env"
        )


BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
"""Schemes of object stores, whose URLs begin with a bucket and whose names know no folder above."""


def check_url(url: str) -> None:
    """Raises ValueError where a URL names no place of its own: one line."""
    scheme, _, rest = url.partition("://")
    bucket, *folders = rest.rstrip("/").split("/")
    expected = f"expected {scheme}://BUCKET/NAME, or the like"
    url = redact_url(url)
    if not rest.strip("/") or (scheme in BUCKETS and not (bucket and folders)):
        raise ValueError(f"storage {url} names no place: {expected}")
    if scheme in BUCKETS and {"", ".", ".."} & set(folders):
        raise ValueError(f"storage {url} has // or . or .. in it, which no object store knows: {expected}")
