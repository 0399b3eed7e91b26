"""Doctor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.cli.console import console
from bench.config.loading import load_benchmark
from bench.doctor.cluster_report import Finding
from bench.doctor.examine import examine
from bench.exceptions import ConfigError
from bench.utils.text import single_line

__all__ = ["doctor", "refuse"]


NARROW = 100
COLORS = {"ok": "green", "note": "yellow", "fail": "bold red"}


def doctor(
    config: str | None,
    address: str | None,
    storage: str | None,
    tracking: str | None,
    overrides: Sequence[str] = (),
    env_names: Sequence[str] = (),
    from_source: bool = False,
    as_json: bool = False,
    install: bool = False,
) -> int:
    """Looks at a cluster and prints what it finds; 1 where a benchmark would fail there, else 0.

    Raises:
        ConfigError: the configuration is wrong, or the cluster cannot be reached.
    """
    if config is None and overrides:
        raise ConfigError(f"--set {overrides[0]}: expected a configuration that it changes: name a preset or a file")
    benchmark = None
    if config is not None:
        from bench.config.validation import check

        benchmark = load_benchmark(config, overrides)
        check(benchmark)
    facts, findings = examine(address, benchmark, storage, tracking, env_names, from_source, install)
    if as_json:
        told = {"facts": asdict(facts), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(told, indent=1))
    else:
        _show(findings)
    return int(any(finding.verdict == "fail" for finding in findings))


def refuse(findings: Sequence[Finding]) -> None:
    """Raises ConfigError with the first failure, if there is one; the others are printed, and the notes."""
    failures = [finding for finding in findings if finding.verdict == "fail"]
    for finding in findings:
        if finding.verdict != "ok" and finding not in failures[:1]:
            console.print(f"{finding.verdict:5} {single_line(finding.describe())}")
    if failures:
        raise ConfigError(failures[0].describe())


def _show(findings: Sequence[Finding]) -> None:
    """The table; as wide as the terminal, or `NARROW` where it is read by a pipe or a file."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", ratio=3, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("what to do", ratio=2, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=COLORS[finding.verdict])
        table.add_row(finding.check, single_line(finding.found), verdict, single_line(finding.todo))
    if not console.is_terminal:
        console.width = NARROW  # no pipe says how wide its reader's page is
    console.print(table, soft_wrap=False)
    failed = sum(finding.verdict == "fail" for finding in findings)
    noted = sum(finding.verdict == "note" for finding in findings)
    console.print(f"{len(findings)} checks: {failed} failed, {noted} to note")
