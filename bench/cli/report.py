"""The commands that show what ran: the report, and MLflow. They train nothing and need no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.cli.console import console, short
from bench.cli.mlflow import send
from bench.exceptions import ConfigError
from bench.storage.records import RecordStore, open_benchmark

__all__ = ["report"]


MANY = 20


def report(
    storages: list[str],
    published: list[list[Path]],
    out: Path | None,
    tracking: str | None,
    subsamples: int | None,
    seed: int,
    slots: int | None,
) -> int:
    """Draws the report of storages and of the authors' result files, side by side, and names its files."""
    from bench.report.build import write_report
    from bench.results.sources import load_results
    from bench.tracking.client import tracking_uri
    from bench.tracking.sync import log_report

    if tracking is not None and len(storages) != 1:
        raise ConfigError(f"--tracking-uri needs one storage, whose run takes the report; got {len(storages)}")
    uri = None if tracking is None else tracking_uri(RecordStore(storages[0]), tracking)
    found, left_out = load_results(storages, [(tuned, retrained) for tuned, retrained in published])
    alone = RecordStore(storages[0]) if len(storages) == 1 and not published else None
    folder = out or Path(alone.path("report") if alone and alone.local else "report")
    files = write_report(found, folder, subsamples, seed, slots, left_out)
    for name, path in sorted(files.items()):
        console.print(f"{name:22} {short(path)}")
    left_out += [line for one in found for line in one.left_out]
    for line in left_out[:MANY]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > MANY:
        print(f"left out: {len(left_out) - MANY} more, see {short(files['report.html'])}", file=sys.stderr)
    if uri is not None:
        store, benchmark = open_benchmark(storages[0])
        send(lambda uri: log_report(store, benchmark, uri, files.values()), uri)
    return 1 if left_out else 0
