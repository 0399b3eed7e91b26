"""Where MLflow is, how long it is waited for, and what its errors mean."""

from __future__ import annotations

import os
from typing import Any

from bench.config.places import check_database, check_tracking_uri
from bench.exceptions import ConfigError
from bench.storage.records import RecordStore
from bench.utils.text import redact_url

__all__ = ["PATIENCE", "connect", "is_gone", "is_refusal", "redact_url", "tracking_uri"]


PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # who asks tries again, and knows then that a run may be there twice
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds, of a connection and of an answer
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a trial, and a request for them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # a traceback a try is no help; what failed is told once, in a line
}
"""Settings of MLflow's client, as it reads them from the environment; what is set there already wins."""


def tracking_uri(store: RecordStore, uri: str | None = None) -> str:
    """The given URI, or by default a sqlite file in the storage folder.

    Raises:
        ConfigError: the storage is not a local folder and no URI was given, or the URI is none that MLflow takes.
    """
    if uri is None:
        if not store.local:
            raise ConfigError(
                f"{store.url} is no local folder, so MLflow needs a place of its own: give --tracking-uri"
            )
        if taken := sorted(set("?%#") & set(store.root)):
            raise ConfigError(
                f"{store.url} has {' and '.join(taken)} in its name, which the URI of a database takes for something "
                "else: give --tracking-uri, or choose another --storage"
            )
        return f"sqlite:///{store.path('mlflow.db')}"
    check_tracking_uri(uri)
    check_database(uri)
    return uri


def connect(uri: str) -> Any:
    """A client that does not wait long for a server that does not answer."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds, and only who tracks should wait for it

    return MlflowClient(uri)


def is_gone(error: Exception) -> bool:
    """Whether a run or experiment is no longer there: deleted in the page, or the server has another database."""
    code = getattr(error, "error_code", None)
    deleted = code == "INVALID_PARAMETER_VALUE" and "Current state is deleted" in str(error)
    return deleted or code == "RESOURCE_DOES_NOT_EXIST"


def is_refusal(error: Exception) -> bool:
    """Whether what was sent is at fault, so that trying again is in vain; anything else may pass."""
    if isinstance(error, OSError):
        return False
    refused = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
    return refused or isinstance(error, ArithmeticError | AttributeError | LookupError | TypeError | ValueError)
