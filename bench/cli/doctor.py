"""`doctor`: check that a benchmark can run on a cluster or on this machine, before a GPU is paid for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bench.cli.arguments import add_address, add_command, add_job_arguments, nonempty
from bench.exceptions import ConfigError
from bench.utils.text import single_line

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers
    from bench.doctor.cluster_report import CheckResult


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    text = "check that a benchmark can run, before a GPU is paid for"
    parser = add_command(subparsers, "doctor", _doctor, text)
    parser.add_argument("config", nargs="?", help="a preset's name, or a YAML file (default: the machines alone)")
    add_address(parser, "; or auto or HOST:PORT of Ray itself, on one of its machines; without any, this machine")
    parser.add_argument("--storage", type=nonempty, help="URL, or folder that all nodes share")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_job_arguments(parser)


def _doctor(options: argparse.Namespace) -> int:
    """Print the results of all checks; return 1 if one failed.

    Raises:
        ConfigError: the configuration is wrong, or the cluster cannot be reached.
    """
    import json
    from dataclasses import asdict

    from bench.cli.console import console
    from bench.config.loading import load_benchmark
    from bench.config.validation import check
    from bench.doctor.cluster_report import DoctorRequest
    from bench.doctor.examine import examine

    benchmark = None
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if options.config is not None:
        benchmark = load_benchmark(options.config, options.set)
        images_here = not (address or "").startswith(("http://", "https://"))
        check(benchmark, images_here=images_here, allow_import=options.allow_import)
    elif options.set:
        raise ConfigError(f"--set {options.set[0]}: expected a configuration that it changes: name a preset or a file")
    install = options.install is not None
    request = DoctorRequest(benchmark, options.storage, options.tracking_uri, options.from_source, install)
    report, results = examine(address, request, options.env)
    if options.json:
        findings = [{("verdict" if k == "status" else k): v for k, v in asdict(result).items()} for result in results]
        print(json.dumps({"facts": asdict(report), "findings": findings}, indent=1))
    else:
        _print_results(results)
        failed, noted = (sum(result.status == status for result in results) for status in ("fail", "note"))
        console.print(f"{len(results)} checks: {failed} failed, {noted} to note")
    return int(any(result.status == "fail" for result in results))


def raise_first_failure(results: Sequence[CheckResult]) -> None:
    """Raise ConfigError with the first failure, if there is one; print the other failures and the notes."""
    failures = [result for result in results if result.status == "fail"]
    _print_results(result for result in results if result.status != "ok" and result not in failures[:1])
    if failures:
        raise ConfigError(failures[0].describe())


def _print_results(results: Iterable[CheckResult]) -> None:
    from bench.cli.console import console

    for result in results:
        console.print(f"{result.status:5} {single_line(result.describe())}")
