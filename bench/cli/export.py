"""`export`: copy the model that a method chose out of a storage."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command, add_only, to_path

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "export", _export, "write the model that a method chose to a folder")
    parser.add_argument("storage")
    parser.add_argument("--out", type=to_path, required=True, help="new folder, which deelbo.load_model reads")
    add_only(parser)


def _export(options: argparse.Namespace) -> int:
    from bench.cli.console import console
    from bench.models.export import choose, export
    from bench.storage.records import open_benchmark
    from bench.utils.text import short

    store, benchmark = open_benchmark(options.storage)
    chosen = choose(benchmark, list(store.records([])), options.only)
    metrics = chosen.record.metrics
    files = export(store, chosen.record, options.out)
    size = sum(file.stat().st_size for file in files)
    console.print(f"{chosen.record.spec.describe()}: {chosen.criterion} {chosen.value:.4g}, by which it was chosen")
    if "test_acc" in metrics:
        console.print(f"test accuracy {metrics['test_acc']:.2%} (class-balanced), NLL {metrics['test_nll']:.4g}")
    console.print(f"{short(options.out)}  {size / 2**20:.1f} MiB, for deelbo.load_model")
    return 0
