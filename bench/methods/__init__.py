"""The methods in the race, each one file. `METHODS` is where a new one is entered."""

from __future__ import annotations

from bench.methods.asha import ASHA
from bench.methods.base import Method, MethodSettings
from bench.methods.bayesian_optimization import BayesianOptimization
from bench.methods.de_elbo import DEELBo
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
from bench.methods.elbo import ELBo
from bench.methods.grid_search import MAPGridSearch
from bench.methods.hypergradient import Hypergradient
from bench.methods.laplace import Laplace
from bench.methods.random_search import RandomSearch

__all__ = ["METHODS", "Method", "MethodSettings", "method_named"]


METHODS: tuple[type[Method], ...] = (
    MAPGridSearch,
    DEELBo,
    ELBo,
    RandomSearch,
    BayesianOptimization,
    ASHA,
    Hypergradient,
    Laplace,
    DEELBoHalving,
    DEELBoLRFree,
)
"""In the order of tables and legends."""


def method_named(name: str) -> type[Method]:
    """The method of that name. Raises ValueError where there is none."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"no method {name!r}: there are {', '.join(method.name for method in METHODS)}")
