"""The methods in the race, each one file. `METHODS` is where a new one is entered."""

from __future__ import annotations

from itertools import product

from bench.benchmark import Benchmark
from bench.methods.base import Method
from bench.methods.de_elbo import DEELBo
from bench.methods.elbo import ELBo
from bench.methods.grid_search import MAPGridSearch
from bench.trials import Cell

__all__ = ["METHODS", "Method", "make_methods"]

METHODS: tuple[type[Method], ...] = (MAPGridSearch, DEELBo, ELBo)


def make_methods(benchmark: Benchmark) -> list[Method]:
    """Every method that the benchmark names, once for each of its cells."""
    sizes = [(dataset, n) for dataset, sizes in benchmark.datasets.items() for n in sizes]
    where = product(sizes, benchmark.backbones, benchmark.priors, benchmark.seeds)
    cells = [Cell(dataset, backbone, prior, n, seed) for (dataset, n), backbone, prior, seed in where]
    named = [(method, getattr(benchmark.methods, method.name.replace("-", "_"))) for method in METHODS]
    return [method(benchmark, cell, settings) for cell in cells for method, settings in named if settings is not None]
