"""`plan`: print what a benchmark would run, method by method or trial by trial, and how long it would take."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.cli.arguments import (
    Subparsers,
    add_allow_import,
    add_command,
    add_config,
    add_json,
    add_only,
    add_set,
    to_path,
)

if TYPE_CHECKING:
    from rich.table import Table

    from bench.config.benchmark import Benchmark
    from bench.methods.base import Method
    from bench.scheduling.cost import Throughput

STAGES = ("tune", "retrain", "run")


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "plan", _plan, "show what would run, method by method, and how long it takes; runs nothing"
    )
    add_config(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--trials", action="store_true", help="list every trial")
    add_json(shape)
    parser.add_argument("--images-per-second", type=float, metavar="R", help="training images a second, for the hours")
    parser.add_argument(
        "--speed",
        type=to_path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="results of `speed --out FILE`, for the hours",
    )
    add_set(parser)
    add_allow_import(parser)
    add_only(parser)


def _plan(options: argparse.Namespace) -> int:
    from bench.cli.console import notes_console, print_json
    from bench.config.benchmark import make_methods
    from bench.config.loading import load_benchmark
    from bench.config.selection import filter_methods
    from bench.config.validation import check
    from bench.methods.base import Method
    from bench.scheduling.cost import Throughput
    from deelbo.data import crop_size

    with notes_console(options.json) as console:
        benchmark = load_benchmark(options.config, options.set)
        benchmark = check(benchmark, None if options.trials else console.print, allow_import=options.allow_import)
    throughput = Throughput(options.images_per_second, options.speed)
    methods = filter_methods(make_methods(benchmark), options.only)
    if options.trials:
        for line in _list_trials(methods):
            print(line)
        return 0
    if options.json:
        print_json(_to_json(benchmark, methods, throughput))
        return 0
    unit = "GPU-hours" if benchmark.resources.gpus_per_trial else "hours"
    console.print(_table(benchmark, methods, throughput, unit))
    console.print(_summary(methods))
    for backbone in dict.fromkeys(method.cell.backbone for method in methods):
        datasets = {method.cell.dataset for method in methods}
        size = max(crop_size(name, benchmark.training.image_size, benchmark.source(name)) for name in datasets)
        console.print(f"{unit} of {backbone}: {throughput.describe(backbone, benchmark.training, size)}")
    console.print("An example that is only evaluated (validation, selection, test) counts a third of one trained on.")
    if benchmark.training.train == "head":
        console.print("With training.train = head all do, as a step is little more than a forward pass.")
    if any(method.adaptive for method in methods):
        console.print("A search or a halving may take fewer trials, depending on results: these are upper bounds.")
    if names := sorted({method.name for method in methods if type(method).objective is not Method.objective}):
        console.print(f"The time in which {' and '.join(names)} learn strengths is not in the hours.")
    return 0


def _list_trials(methods: Iterable[Method]) -> Iterable[str]:
    """Yield a line for every trial; those that depend on results have no key yet."""
    for method in methods:
        initial = list(method.initial_trials())
        for spec in initial:
            yield f"{spec.key}  {spec.describe()}"
        cell = method.cell
        line = f"{'(chosen later)':20}  {cell.dataset} {cell.backbone} {cell.prior} n={cell.n} seed={cell.seed}"
        for stage, count in (method.stages() - Counter(spec.stage for spec in initial)).items():
            if method.adaptive:
                yield f"{line} {method.name} {stage}, {count} at most"
            else:
                yield from [f"{line} {method.name} {stage} the best of {len(initial)}"] * count


def _to_json(benchmark: Benchmark, methods: Sequence[Method], throughput: Throughput) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/api.md lists the keys."""
    from bench.config.validation import find_tasks

    tests = {name: task.test_size for name, task in find_tasks(benchmark).items()}
    rows = []
    for method in methods:
        stages, hours = method.stages(), _hours(method, benchmark, throughput, tests)
        row = asdict(method.cell) | {"method": method.name} | {stage: stages[stage] for stage in STAGES}
        rows.append(row | {"at_most": method.adaptive, "hours": None if math.isnan(hours) else hours})
    total, known = _count_trials(methods), [row["hours"] for row in rows if row["hours"] is not None]
    return {
        "benchmark": benchmark.name,
        "steps": benchmark.training.steps,
        "trials": total.total(),
        **{stage: total[stage] for stage in STAGES},
        "at_most": any(method.adaptive for method in methods),
        "hours": sum(known) if len(known) == len(rows) else None,
        "gpus_per_trial": benchmark.resources.gpus_per_trial,
        "methods": rows,
    }


def _table(benchmark: Benchmark, methods: Sequence[Method], throughput: Throughput, unit: str) -> Table:
    """Build a table with a block for each dataset, N and backbone, and in it a row for each prior and method."""
    from rich.text import Text

    from bench.cli.console import make_table
    from bench.config.validation import find_tasks
    from bench.labels import PRIOR_NAMES, dataset_name, method_name

    tests = {name: task.test_size for name, task in find_tasks(benchmark).items()}
    blocks: dict[tuple[str, int, str], dict[tuple[str, str], list[Method]]] = {}
    for method in methods:
        cell = method.cell
        block = blocks.setdefault((cell.dataset, cell.n, cell.backbone), {})
        block.setdefault((cell.prior, method.name), []).append(method)

    def numbers(group: Sequence[Method]) -> list[str]:
        stages = _count_trials(group)
        hours = sum(_hours(method, benchmark, throughput, tests) for method in group)
        shown = "" if math.isnan(hours) else f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"
        return [*(f"{stages[stage]:,}" if stages[stage] else "" for stage in STAGES), shown]

    seeds = ", ".join(map(str, sorted({method.cell.seed for method in methods})))
    table = make_table(f"{benchmark.name}: seeds {seeds}; {benchmark.training.steps} steps a trial")
    table.add_column("", no_wrap=True)
    table.add_column("method", min_width=8)
    for name in (*STAGES, unit):
        table.add_column(name, justify="right", min_width=max(len(name), 6))
    for (dataset, n, backbone), block in blocks.items():
        table.add_section()
        table.add_row(*(Text(text, style="bold") for text in (f"{dataset_name(dataset)}, N = {n}", backbone)))
        for (prior, name), group in block.items():
            table.add_row(PRIOR_NAMES[prior], method_name(name), *numbers(group))
    table.add_section()
    bound = "at most" if any(method.adaptive for method in methods) else "all"
    table.add_row(f"{bound} {_count_trials(methods).total():,} trials", "", *numbers(methods))
    return table


def _count_trials(methods: Iterable[Method]) -> Counter[str]:
    return sum((method.stages() for method in methods), Counter[str]())


def _hours(method: Method, benchmark: Benchmark, throughput: Throughput, tests: Mapping[str, int]) -> float:
    """Return the hours of a method in its cell, with ``tests`` test images by dataset; nan without a throughput."""
    from bench.scheduling.cost import count_work

    cell = method.cell
    rate = throughput.of(cell.backbone, method.bayesian, cell.prior)
    if rate is None:
        return math.nan
    works = {stage: count_work(stage, cell.n, tests[cell.dataset], benchmark.training) for stage in STAGES}
    return sum(count * works[stage].hours(rate) for stage, count in method.run_equivalents().items())


def _summary(methods: Sequence[Method]) -> str:
    from bench.labels import method_name

    cells = {(method.cell.dataset, method.cell.n, method.cell.seed) for method in methods}
    counts: Counter[str] = Counter()
    for method in methods:
        names = {"tune": "tuning run", "retrain": "retraining", "run": f"{method_name(method.name)} run"}
        counts.update({names[stage]: count for stage, count in method.stages().items()})
    parts = [f"{count:,} {name}{'s' * (count > 1)}" for name, count in counts.items()]
    return f"{len(cells)} cell{'s' * (len(cells) > 1)} of (dataset, N, seed): {', '.join(parts)}."
