"""`plan`: print what a benchmark would run, method by method or trial by trial, and how long it would take."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command, add_config, add_only, add_set

if TYPE_CHECKING:
    from rich.table import Table

    from bench.cli.arguments import Subparsers
    from bench.config.benchmark import Benchmark
    from bench.methods.base import Method
    from bench.scheduling.cost import Throughput

__all__ = ["add_parser"]


STAGES = ("tune", "retrain", "run")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "plan", _plan, "show what would run, method by method, and how long it takes; runs nothing"
    )
    add_config(parser)
    parser.add_argument("--trials", action="store_true", help="list every trial")
    parser.add_argument("--images-per-second", type=float, metavar="R", help="training images a second, for the hours")
    parser.add_argument(
        "--speed", type=Path, nargs="+", default=[], metavar="FILE", help="results of `speed --out FILE`, for the hours"
    )
    add_set(parser)
    add_only(parser)


def _plan(options: argparse.Namespace) -> int:
    """Print how many trials each method takes in each cell, and their hours; or every trial, one a line."""
    from bench.cli.console import console
    from bench.config.benchmark import make_methods
    from bench.config.loading import load_benchmark
    from bench.config.selection import filter_methods
    from bench.config.validation import check
    from bench.scheduling.cost import Throughput
    from deelbo.data import crop_size

    benchmark = load_benchmark(options.config, options.set)
    check(benchmark)
    rates = Throughput(options.images_per_second, options.speed)
    methods = filter_methods(make_methods(benchmark), options.only)
    if options.trials:
        for line in _listed(methods):
            print(line)
        return 0
    console.print(_table(benchmark, methods, rates))
    console.print(_sentence(methods))
    for backbone in dict.fromkeys(method.cell.backbone for method in methods):
        sizes = {crop_size(method.cell.dataset, benchmark.training.image_size) for method in methods}
        origin = rates.describe(backbone, benchmark.training, max(sizes))
        console.print(f"{_hours_word(benchmark)} of {backbone}: {origin}")
    console.print("An image that is only looked at (validation, selection, test) counts a third of one trained on.")
    if any(method.adaptive for method in methods):
        console.print(
            "Results decide how many trials a search or a halving takes: these are the most, and the hours of it."
        )
    if learning := sorted(
        {method.name for method in methods if method.settings.method in ("laplace", "hypergradient")}
    ):
        console.print(f"What {' and '.join(learning)} spend on their strengths beside the steps is not in the hours.")
    return 0


def _listed(methods: Iterable[Method]) -> Iterable[str]:
    """Every trial; the one that is chosen by others' results by what it is."""
    for method in methods:
        first = list(method.initial_trials())
        for spec in first:
            yield f"{spec.key}  {spec.describe()}"
        cell, more = method.cell, method.stages()["retrain"] - sum(spec.stage == "retrain" for spec in first)
        for _ in range(0 if method.adaptive else more):
            where = f"{cell.dataset} {cell.backbone} {cell.prior} n={cell.n} seed={cell.seed}"
            yield f"{'(chosen later)':20}  {where} {method.name} retrain the best of {len(first)}"
        later = method.stages() - Counter(spec.stage for spec in first)
        for stage, count in later.items() if method.adaptive else ():
            where = f"{cell.dataset} {cell.backbone} {cell.prior} n={cell.n} seed={cell.seed}"
            yield f"{'(chosen later)':20}  {where} {method.name} {stage}, {count} at most"


def _table(benchmark: Benchmark, methods: Sequence[Method], rates: Throughput) -> Table:
    """Build a table with a block for each dataset, N and backbone, and in it a line for each prior and method."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from bench.labels import PRIOR_NAMES, dataset_name, method_name
    from bench.scheduling.cost import work_of
    from deelbo.data import TASKS

    blocks: dict[tuple[str, int, str], dict[tuple[str, str], Counter[str]]] = {}
    shares: dict[tuple[tuple[str, int, str], str, str], dict[str, float]] = {}
    bayesian: dict[str, bool] = {}
    for method in methods:
        cell = method.cell
        place = cell.dataset, cell.n, cell.backbone
        blocks.setdefault(place, {}).setdefault((cell.prior, method.name), Counter()).update(method.stages())
        so_far = shares.setdefault((place, cell.prior, method.name), {})
        for stage, share in method.run_equivalents().items():
            so_far[stage] = so_far.get(stage, 0.0) + share
        bayesian[method.name] = method.bayesian
    seeds = sorted({method.cell.seed for method in methods})
    table = Table(
        title=f"{benchmark.name}: seeds {', '.join(map(str, seeds))}; {benchmark.training.steps} steps a trial",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    table.add_column("method", min_width=8)
    for name in (*STAGES, _hours_word(benchmark)):
        table.add_column(name, justify="right", min_width=max(len(name), 6))
    total, everything = Counter[str](), list[float | None]()
    for place, block in blocks.items():
        dataset, n, backbone = place
        table.add_section()
        table.add_row(*(Text(text, style="bold") for text in (f"{dataset_name(dataset)}, N = {n}", backbone)))
        for (prior, name), stages in block.items():
            rate, hours = rates.of(backbone, bayesian[name], prior), None
            if rate is not None:
                works = {stage: work_of(stage, n, TASKS[dataset].test_size, benchmark.training) for stage in stages}
                hours = sum(count * works[stage].hours(rate) for stage, count in shares[place, prior, name].items())
            table.add_row(PRIOR_NAMES[prior], method_name(name), *_numbers(stages), _hours(hours))
            total.update(stages)
            everything.append(hours)
    known = [hours for hours in everything if hours is not None]
    table.add_section()
    in_all = sum(known) if len(known) == len(everything) else None
    at_most = "at most" if any(method.adaptive for method in methods) else "all"
    table.add_row(f"{at_most} {total.total():,} trials", "", *_numbers(total), _hours(in_all))
    return table


def _hours_word(benchmark: Benchmark) -> str:
    return "GPU-hours" if benchmark.resources.gpus_per_trial else "hours"


def _numbers(stages: Counter[str]) -> list[str]:
    return [f"{stages[stage]:,}" if stages[stage] else "" for stage in STAGES]


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def _sentence(methods: Sequence[Method]) -> str:
    from bench.labels import method_name

    cells = {(method.cell.dataset, method.cell.n, method.cell.seed) for method in methods}
    counts: Counter[str] = Counter()
    for method in methods:
        names = {
            "tune": "tuning run",
            "retrain": "retraining",
            "run": f"{method_name(method.name)} run",
        }
        counts.update({names[stage]: count for stage, count in method.stages().items()})
    words = [f"{count:,} {name}{'s' * (count > 1)}" for name, count in counts.items()]
    return f"{len(cells)} cell{'s' * (len(cells) > 1)} of (dataset, N, seed): {', '.join(words)}."
