"""`sync` and `ui`: rebuild MLflow's runs from the records, and show MLflow's page."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bench.cli.arguments import add_allow_import, add_command, nonempty
from bench.exceptions import ConfigError, RecordError
from bench.utils.text import redact_url, single_line

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers
    from bench.config.benchmark import Benchmark
    from bench.storage.records import RecordStore

T = TypeVar("T")


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands to the command line."""
    text = "rebuild the runs in MLflow from the records, without duplicates"
    sync = add_command(subparsers, "sync", _sync, text)
    sync.add_argument("storage")
    sync.add_argument("--tracking-uri", help="MLflow server or database (default: a sqlite file in the storage)")
    sync.add_argument("--models", action="store_true", help="log the kept models too, for mlflow.pytorch.load_model")
    add_allow_import(sync)
    ui = add_command(subparsers, "ui", _ui, "open the MLflow page of a storage")
    ui.add_argument("storage")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", type=nonempty, default="127.0.0.1", help="loopback by default")


def _sync(options: argparse.Namespace) -> int:
    from bench.cli.console import console
    from bench.storage.lock import Lease
    from bench.storage.records import open_benchmark
    from bench.tracking.client import is_own_database, tracking_uri
    from bench.tracking.sync import sync

    store, benchmark = open_benchmark(options.storage)
    lease = Lease.newest(store)
    if lease is not None and lease.is_in_use(store, console.print):  # else both would make an MLflow run of one trial
        raise RecordError(
            f"{options.storage} is in use by a `run` ({lease.describe()}), which sends its trials: wait for its end"
        )
    uri = tracking_uri(store, options.tracking_uri)
    if is_own_database(store, uri):
        _check_writable(Path(store.path("mlflow.db")))
    with _report_folder(store) as folder:
        try:
            count = send(lambda uri: sync(store, benchmark, uri, folder), uri)
        except KeyboardInterrupt:
            console.print("stopped: what MLflow has stays, and the same command sends the rest")
            raise
    console.print(f"{count} trials of {benchmark.name} are in MLflow")
    return _log_models(options, store, benchmark, uri) if options.models else 0


def _log_models(options: argparse.Namespace, store: RecordStore, benchmark: Benchmark, uri: str) -> int:
    """Log the kept models; return 1 if one of them cannot be logged, which is printed."""
    from bench.cli.console import console
    from bench.tracking.models import log_models
    from bench.utils.imports import add_current_folder

    for package in options.allow_import:
        add_current_folder(package)
    count, problems = send(lambda uri: log_models(store, benchmark, uri, options.allow_import), uri)
    console.print(f"{count} models of {benchmark.name} are in MLflow")
    for line in problems:
        print(f"not in MLflow: {line}", file=sys.stderr)
    return 1 if problems else 0


def _check_writable(file: Path) -> None:
    """Raise PermissionError if a file cannot be written or made: MLflow would retry for a minute."""
    place = file if file.exists() else file.parent
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def send(call: Callable[[str], T], uri: str) -> T:
    """Send something to MLflow; raise RecordError with one line if MLflow does not take it."""
    try:
        return call(uri)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of MLflow or its database
        message = f"MLflow at {uri} takes nothing ({single_line(error)}): see --tracking-uri, and call this again"
        raise RecordError(redact_url(message)) from error


def _ui(options: argparse.Namespace) -> NoReturn:
    """Serve the MLflow page of a storage until Ctrl-C."""
    from bench.cli.console import command, console, quoted
    from bench.storage.records import open_benchmark
    from bench.tracking.client import tracking_uri

    storage, host, port = options.storage, options.host, options.port
    store, benchmark = open_benchmark(storage)
    uri, database = tracking_uri(store), Path(store.path("mlflow.db"))
    if not database.exists():
        raise RecordError(
            f"{storage} has no mlflow.db: `{command()} sync {quoted(store.url)}` makes it from the records"
        )
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing can listen on {host}:{port} ({error}): give another --port or --host") from None
    console.print(f"MLflow on http://{host}:{port}/{_trials_view(database, benchmark.name)} (Ctrl-C ends it)")
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    artifacts = Path(store.path("mlartifacts")).as_uri()
    server += ["--backend-store-uri", uri, "--serve-artifacts", "--artifacts-destination", artifacts]
    sys.stdout.flush()
    os.chdir(store.root)  # the server's processes import modules from their current folder
    os.execv(sys.executable, server)  # noqa: S606 - becomes the server, so that a signal ends both or none


def _trials_view(database: Path, name: str) -> str:
    """Return the path of the page with a benchmark's trials; "" if the database has no such view."""
    from bench.tracking.views import PREFIX, TRIALS, link

    query = "select experiment_id from experiments join experiment_tags using (experiment_id) where name = ? and key=?"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (name, f"{PREFIX}{TRIALS}")).fetchone()
    except sqlite3.Error:  # of another version of MLflow, or locked: the server reports it
        return ""
    return "" if row is None else link(str(row[0]), TRIALS)


@contextmanager
def _report_folder(store: RecordStore) -> Iterator[Path | None]:
    """The folder of the report in the storage, a temporary copy for a storage behind a URL; None without a report."""
    if store.local:
        folder = Path(store.path("report"))
        yield folder if folder.is_dir() else None
        return
    with TemporaryDirectory(prefix="deelbo-report-") as copy:
        for name, content in store.read_files(store.names("report")):
            Path(copy, Path(name).name).write_bytes(content)
        yield Path(copy) if any(Path(copy).iterdir()) else None
