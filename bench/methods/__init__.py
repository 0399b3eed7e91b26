"""The methods that compete, one file each; `METHODS` registers them."""

from bench.methods.asha import ASHA
from bench.methods.base import Method
from bench.methods.bayesian_optimization import BayesianOptimization
from bench.methods.de_elbo import DEELBo
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
from bench.methods.elbo import ELBo
from bench.methods.grid_search import MAPGridSearch
from bench.methods.hypergradient import Hypergradient
from bench.methods.laplace import Laplace
from bench.methods.random_search import RandomSearch

# in the order of tables and legends
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


def method_named(name: str) -> type[Method]:
    """Return the class of the method of that name; raise ValueError if there is none."""
    methods = {method.name: method for method in METHODS}
    if name not in methods:
        raise ValueError(f"no method {name!r}: expected one of {', '.join(methods)}")
    return methods[name]
