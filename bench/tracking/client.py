"""Connect to MLflow, and classify its errors."""

import os
from pathlib import Path
from typing import Any

from bench.config.places import check_database, check_tracking_uri, expand_tracking_uri
from bench.exceptions import ConfigError
from bench.storage.records import RecordStore

MLFLOW_CLIENT_ENV = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the caller retries, and then looks for what the failed request did
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines and one request for each trial
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # no traceback for each retry
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",  # else a new database names the current folder
}
"""Settings of MLflow's client, read from the environment; values that are set there already win."""


def tracking_uri(store: RecordStore, uri: str | None = None) -> str:
    """Return the given URI, or by default that of a sqlite file in the storage directory.

    Raises:
        ConfigError: the storage is not local and no URI was given, or MLflow does not support the URI.
    """
    if uri is None:
        if not store.local:
            raise ConfigError(
                f"{store.url} is not a local directory, where MLflow's database could be: give --tracking-uri"
            )
        if reserved := sorted(set("?%#") & set(store.root)):
            raise ConfigError(
                f"{store.url} has {' and '.join(reserved)} in its name, which a database URI cannot contain: "
                "give --tracking-uri, or choose another --storage"
            )
        return f"sqlite:///{store.path('mlflow.db')}"
    uri = expand_tracking_uri(uri)
    check_tracking_uri(uri)
    check_database(uri)
    return uri


def is_own_database(store: RecordStore, uri: str) -> bool:
    """Return True if a URI is that of the database in the storage, which moves and is copied with it."""
    path = uri.removeprefix("sqlite:///")
    return path != uri and store.local and Path(path).resolve() == Path(store.path("mlflow.db")).resolve()


def connect(uri: str) -> Any:
    """Return an MLflow client with short time-outs."""
    for name, value in MLFLOW_CLIENT_ENV.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds

    return MlflowClient(uri)


def is_gone(error: Exception) -> bool:
    """Tell whether a run or an experiment no longer exists: it was deleted, or the server has another database."""
    code = getattr(error, "error_code", None)
    deleted = code == "INVALID_PARAMETER_VALUE" and "Current state is deleted" in str(error)
    return deleted or code == "RESOURCE_DOES_NOT_EXIST"


def is_refusal(error: Exception) -> bool:
    """Tell whether the request itself is at fault, so that a retry is futile; other errors may pass."""
    if isinstance(error, OSError):
        return False
    refused = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
    return refused or isinstance(error, ArithmeticError | AttributeError | LookupError | TypeError | ValueError)
