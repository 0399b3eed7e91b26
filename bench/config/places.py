"""Parse and check --storage and --tracking-uri."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from bench.exceptions import ConfigError
from bench.utils.text import has_credentials, redact_url
from bench.utils.urls import local_folder
from deelbo.paths import expand_user

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")  # URLs begin with a bucket


def resolve_storage(storage: str) -> str:
    """Return a storage's canonical form: an absolute path, or a URL without a slash at its end."""
    folder = local_folder(storage)
    if folder is None:
        _check_storage_url(storage)
        return storage.rstrip("/")
    path = Path(expand_storage(storage)).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"--storage {folder} cannot be read as text in the encoding of this terminal's settings: set LC_ALL=C.UTF-8"
        ) from None
    return "/" + os.path.normpath(path).lstrip("/")  # POSIX keeps two slashes


def expand_storage(storage: str) -> str:
    """Return a storage that is a folder as a path, with the home folder in place of a leading tilde; a URL as it is."""
    folder = local_folder(storage)
    return storage if folder is None else str(expand_user(folder))


def _check_storage_url(url: str) -> None:
    scheme, _, rest = url.partition("://")
    bucket, *folders = rest.rstrip("/").split("/")
    expected = f"expected {scheme}://BUCKET/NAME, or the like"
    if not rest.strip("/") or (scheme in BUCKET_SCHEMES and not (bucket and folders)):
        raise ConfigError(f"--storage {redact_url(url)} is incomplete: {expected}")
    if scheme in BUCKET_SCHEMES and {"", ".", ".."} & set(folders):
        raise ConfigError(f"--storage {redact_url(url)} contains //, . or .., invalid in object stores: {expected}")


def check_no_password(storage: str) -> None:
    """Raise ConfigError if a storage URL contains a password, which would be visible on a job's command line."""
    if has_credentials(storage):
        raise ConfigError(
            f"--storage {redact_url(storage)} has a password in it, visible to everybody who lists the cluster's jobs: "
            "give credentials by --env"
        )


def expand_tracking_uri(uri: str) -> str:
    """Return a tracking URI with the home folder in place of a tilde at the start of a sqlite file's path."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{expand_user(path)}"


def check_tracking_uri(uri: str) -> None:
    """Raise ConfigError if the scheme of a tracking URI is not one that MLflow supports."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest or scheme.partition("+")[0] not in TRACKING_SCHEMES:
        raise ConfigError(
            f"--tracking-uri {redact_url(uri)!r}: expected one of {', '.join(TRACKING_SCHEMES)}, followed by "
            ":// and an address"
        )


def check_database(uri: str) -> None:
    """Raise ConfigError if ``uri`` is a sqlite file that cannot be opened: MLflow would retry for minutes."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith("file:"):
        return
    file = Path(path).absolute()
    expected = "expected sqlite:/// and a file in an existing directory"
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"--tracking-uri {uri!r}: {expected}")
    new = not file.exists()
    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("select count(*) from sqlite_master")
    except sqlite3.Error as error:
        raise ConfigError(f"--tracking-uri {uri!r}: {expected}; {file} cannot be used ({error})") from None
    finally:
        if new:
            with suppress(OSError):
                file.unlink()


def check_places(storage: str | None, tracking: str | None) -> str:
    """Check that storage and tracking URI mean the same location on a cluster's nodes; return the resolved storage."""
    if not storage:
        raise ConfigError(
            "no --storage: expected a URL, or a folder that all nodes share, for the records; the job's own folder "
            "is deleted with the job"
        )
    check_no_password(storage)
    storage = expand_storage(storage)
    folder = local_folder(storage)
    resolved = resolve_storage(storage)
    if folder is not None and not Path(folder).is_absolute():
        raise ConfigError(
            f"--storage {folder!r} is relative to this machine, not to the nodes: expected an absolute path that all "
            "nodes share, or a URL"
        )
    if tracking is not None:
        check_tracking_uri(tracking)
        if tracking.startswith("sqlite:///") and not tracking.startswith("sqlite:////"):
            raise ConfigError(
                f"--tracking-uri {tracking!r} is relative to this machine, not to the nodes: expected sqlite:////PATH, "
                "or a server"
            )
    elif folder is None:
        raise ConfigError(f"{storage} is not a directory, which could hold MLflow's database: give --tracking-uri")
    return resolved
