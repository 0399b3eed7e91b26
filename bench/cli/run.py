"""`run`: run or continue a benchmark."""

from __future__ import annotations

import argparse
import math
import shlex
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.arguments import (
    Subparsers,
    add_allow_import,
    add_command,
    add_config,
    add_json,
    add_only,
    add_set,
    add_tracking_uri,
    nonempty,
)
from bench.exceptions import RecordError
from bench.utils.text import format_duration, redact_url, short

if TYPE_CHECKING:
    from rich.console import Console

    from bench.session.run import RunOutcome

STARTED = time.time()  # of the process, about: the command line imports this module early


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "run", _run, "run or continue a benchmark, then draw its report")
    add_config(parser)
    parser.add_argument(
        "--storage", type=nonempty, help="folder or fsspec URL for the records (default: ./deelbo-runs/NAME)"
    )
    add_tracking_uri(
        parser, "MLflow server or database (default: $DEELBO_TRACKING_URI, or a sqlite file in the storage)"
    )
    parser.add_argument("--address", type=nonempty, help="a Ray cluster (default: one on this machine, for this run)")
    add_set(parser)
    add_allow_import(parser)
    add_only(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    from bench.cli.console import notes_console, print_json
    from bench.session.run import RunOptions, run

    request = RunOptions(
        options.config,
        options.storage,
        options.only,
        options.address,
        options.tracking_uri,
        overrides=options.set,
        allow_import=options.allow_import,
    )
    with notes_console(options.json) as console:
        outcome = run(request, console, STARTED)
        print_end(outcome, console, options.tracking_uri)
    if options.json:
        print_json(_to_json(outcome))
    return outcome.exit_code


def _to_json(outcome: RunOutcome) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/api.md lists the keys."""
    from bench.api import Result
    from bench.results.frame import to_rows

    summary = outcome.summary
    result = Result(outcome.store, outcome.benchmark, summary.failures)
    return {
        "exit_status": outcome.exit_code,
        "benchmark": outcome.benchmark.name,
        "storage": redact_url(result.storage),
        "report": None if outcome.report is None else str(outcome.report),
        "trials": {name: getattr(summary, name) for name in ("ran", "reused", "failed", "left")},
        "seconds": time.time() - STARTED,
        "table3": to_rows(result.table3()),
        "chosen": to_rows(result.chosen()),
        "failures": result.failures,
    }


def print_end(outcome: RunOutcome, console: Console, tracking_uri: str | None) -> None:
    """Print what was done and where it is.

    Raises:
        RecordError: the run could not go on.
    """
    from bench.cli.console import command, quoted

    store, summary = outcome.store, outcome.summary
    console.print(summary.describe())
    if outcome.mlflow_problem is not None:
        again = f"{command()} sync {quoted(redact_url(store.url))}"
        again += f" --tracking-uri {shlex.quote(redact_url(tracking_uri))}" if tracking_uri else ""
        console.print(f"MLflow did not take everything ({outcome.mlflow_problem}): `{again}` will")
    if (report := outcome.report) is not None:
        _print_table3(report / "table3.csv", console)
        place = report if store.local else f"{redact_url(store.url)}/report"
        console.print(f"report  {short(f'{place}/report.html')}")
        if (report / "figure2.png").exists():
            console.print(f"figure  {short(f'{place}/figure2.png')}")
    shown = f"{command()} ui {quoted(store.url)}" if tracking_uri is None else redact_url(tracking_uri)
    console.print(f"MLflow  {shown}")
    print_failures(outcome, console)
    if summary.ran and summary.stop_reason is None:
        seconds = time.time() - STARTED
        share = summary.utilization * summary.wall_seconds / seconds
        console.print(
            f"the whole command took {format_duration(seconds)}; its slots were inside trials for {share:.0%} of that"
        )


def print_failures(outcome: RunOutcome, console: Console) -> None:
    """Print the trials that failed, and what is left of a run that was stopped.

    Raises:
        RecordError: the run could not go on.
    """
    summary = outcome.summary
    for line in summary.failures:
        console.print(f"failed  {line}")
    if summary.stop_reason:
        raise RecordError(summary.stop_reason)
    if summary.stop_reason is not None:
        console.print(f"stopped with {summary.left} trials left: the same command continues")


def _print_table3(file: Path, console: Console) -> None:
    import pandas as pd

    from bench.cli.console import make_table
    from bench.labels import PRIOR_NAMES, dataset_name, method_name

    third = pd.read_csv(file)
    varying = [name for name in ("dataset", "backbone") if third[name].nunique() > 1]
    published = bool(third["published_mean"].notna().any())
    table = make_table("test accuracy (%, class-balanced), mean (min-max)")
    for name in [*varying, "N", "Model", "method", "here", *["published"] * published]:
        table.add_column(name, justify="right" if name in ("N", "here", "published") else "left", no_wrap=True)
    previous: list[str] = []
    for row in third.to_dict("records"):
        place = [*(dataset_name(str(row[name])) for name in varying), str(row["n"])]
        if previous and place != previous:
            table.add_section()
        cells = [PRIOR_NAMES[row["prior"]], method_name(row["method"]), _spread(row, "")]
        table.add_row(*place, *cells, *[_spread(row, "published_")] * published)
        previous = place
    console.print(table)


def _spread(row: Mapping[Hashable, Any], prefix: str) -> str:
    mean, low, high = (float(row[f"{prefix}{name}"]) for name in ("mean", "min", "max"))
    return f"{mean:.1f} ({low:.1f}-{high:.1f})" if math.isfinite(mean) else "-"
