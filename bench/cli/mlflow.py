"""Mlflow."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, TypeVar

from bench.cli.console import command, console
from bench.exceptions import ConfigError, RecordError
from bench.storage.lease import Lease
from bench.storage.records import RecordStore, open_benchmark
from bench.tracking.views import PREFIX, TRIALS, link
from bench.utils.text import redact_url, single_line

__all__ = ["sync", "ui"]


T = TypeVar("T")


def sync(storage: str, tracking: str | None) -> int:
    """Sends all records to MLflow."""
    from bench.tracking.client import tracking_uri
    from bench.tracking.sync import sync as send_records

    store, benchmark = open_benchmark(storage)
    lease = Lease.newest(store)
    if lease is not None and lease.is_in_use(store, console.print):  # else both would make an MLflow run of one trial
        raise RecordError(
            f"{storage} is in use by a `run` ({lease.describe()}), which sends its trials: wait for its end"
        )
    uri = tracking_uri(store, tracking)
    with _report_of(store) as folder:
        try:
            count = send(lambda uri: send_records(store, benchmark, uri, folder), uri)
        except KeyboardInterrupt:
            console.print("stopped: what MLflow has stays, and the same command sends the rest")
            raise
    console.print(f"{count} trials of {benchmark.name} are in MLflow")
    return 0


def send(what: Callable[[str], T], uri: str) -> T:
    """Sends to MLflow, and says in one line where it cannot."""
    try:
        return what(uri)
    except (ValueError, OSError):
        raise
    except Exception as error:  # MLflow's own, or its database's
        words = redact_url(
            f"MLflow at {uri} takes nothing ({single_line(error)}): see --tracking-uri, and call this again"
        )
        raise RecordError(words) from error


def ui(storage: str, host: str, port: int) -> NoReturn:
    """Serves the MLflow page of a storage until Ctrl-C."""
    from bench.tracking.client import tracking_uri

    store, benchmark = open_benchmark(storage)
    uri, database = tracking_uri(store), Path(store.path("mlflow.db"))
    if not database.exists():
        raise RecordError(f"{storage} has no mlflow.db: `{command()} sync {storage}` makes it from the records")
    _check_port(host, port)
    console.print(f"MLflow on http://{host}:{port}/{_first_look(database, benchmark.name)} (Ctrl-C ends it)")
    server = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    server += ["--default-artifact-root", Path(store.path("mlartifacts")).as_uri(), "--workers", "1"]
    sys.stdout.flush()
    os.execv(sys.executable, server)  # noqa: S606 - becomes the server, so that a signal ends both or none


def _first_look(database: Path, name: str) -> str:
    """Where the page shows a benchmark's trials, the most accurate first; its front page where that view is not there,
    as in a database that an earlier version made."""
    query = "select experiment_id from experiments join experiment_tags using (experiment_id) where name = ? and key=?"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (name, f"{PREFIX}{TRIALS}")).fetchone()
    except sqlite3.Error:  # of another version of MLflow, or locked: the page itself can still say what it is
        return ""
    return "" if row is None else link(str(row[0]), TRIALS)


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing can listen on {host}:{port} ({error}): give another --port or --host") from None


@contextmanager
def _report_of(store: RecordStore) -> Iterator[Path | None]:
    """The folder of the report that `run` left in the storage; of one behind a URL a copy, for the time being."""
    if store.local:
        folder = Path(store.path("report"))
        yield folder if folder.is_dir() else None
        return
    with TemporaryDirectory(prefix="deelbo-report-") as copy:
        for name, content in store.read_files(store.names("report")):
            Path(copy, Path(name).name).write_bytes(content)
        yield Path(copy) if any(Path(copy).iterdir()) else None
