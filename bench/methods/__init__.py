"""The methods in the race, each one file. `METHODS` is where a new one is entered."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from bench.methods.asha import ASHA
from bench.methods.base import Method, MethodSettings
from bench.methods.bayesian import BayesianOptimisation
from bench.methods.de_elbo import DEELBo
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.elbo import ELBo
from bench.methods.grid_search import MAPGridSearch
from bench.methods.hypergradient import Hypergradient
from bench.methods.laplace import Laplace
from bench.methods.lr_free import DEELBoFree
from bench.methods.random_search import RandomSearch
from bench.trials import Cell

if TYPE_CHECKING:
    from bench.benchmark import Benchmark

__all__ = ["METHODS", "Method", "MethodSettings", "make_methods", "method_named"]

METHODS: tuple[type[Method], ...] = (
    MAPGridSearch,
    DEELBo,
    ELBo,
    RandomSearch,
    BayesianOptimisation,
    ASHA,
    Hypergradient,
    Laplace,
    DEELBoHalving,
    DEELBoFree,
)
"""In the order of tables and legends."""


def method_named(name: str) -> type[Method]:
    """The method of that name. Raises ValueError where there is none."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"no method {name!r}: there are {', '.join(method.name for method in METHODS)}")


def make_methods(benchmark: Benchmark) -> list[Method]:
    """Every entry of the benchmark, once for each of the cells that it runs in."""
    sizes = [(dataset, n) for dataset, sizes in benchmark.datasets.items() for n in sizes]
    where = product(sizes, benchmark.backbones, benchmark.priors, benchmark.seeds)
    cells = [Cell(dataset, backbone, prior, n, seed) for (dataset, n), backbone, prior, seed in where]
    return [
        method_named(settings.method)(benchmark, cell, settings, name)
        for cell in cells
        for name, settings in benchmark.methods.items()
        if settings.runs_on(cell.prior)
    ]
