"""The methods that compete, one file each; `METHODS` registers them, and `REGISTRY` finds those of plug-ins, too."""

from inspect import isabstract

from bench.methods.asha import ASHA
from bench.methods.base import Method, MethodSettings
from bench.methods.bayesian_optimization import BayesianOptimization
from bench.methods.de_elbo import DEELBo, DEELBoBest
from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
from bench.methods.early_stopping import EarlyStopping
from bench.methods.elbo import ELBo
from bench.methods.grid_search import MAPGridSearch
from bench.methods.hoag import HOAG
from bench.methods.hypergradient import Hypergradient
from bench.methods.laplace import Laplace
from bench.methods.maid import MAID
from bench.methods.random_search import RandomSearch
from bench.methods.stn import STN
from deelbo.plugins import Registry

# in the order of tables and legends
METHODS: tuple[type[Method], ...] = (
    MAPGridSearch,
    DEELBo,
    DEELBoBest,
    ELBo,
    RandomSearch,
    BayesianOptimization,
    ASHA,
    Hypergradient,
    HOAG,
    STN,
    MAID,
    Laplace,
    EarlyStopping,
    DEELBoHalving,
    DEELBoLRFree,
)


def _find_fault(name: str, found: object) -> str | None:
    """Return what is wrong with the class that a plug-in gives for the method ``name``."""
    if not isinstance(found, type) or not issubclass(found, Method):
        return f"it is {found!r}, expected a subclass of bench.methods.base.Method"
    if isabstract(found):
        return f"{found.__name__} lacks {', '.join(sorted(found.__abstractmethods__))}"
    settings = getattr(found, "Settings", None)
    if not isinstance(settings, type) or not issubclass(settings, MethodSettings):
        return f"{found.__name__}.Settings is {settings!r}, expected a subclass of MethodSettings"
    given = {"name": getattr(found, "name", None), "Settings.method": settings.model_fields["method"].default}
    wrong = next((key for key, value in given.items() if value != name), None)
    if wrong is not None:
        return f"{found.__name__}.{wrong} is {given[wrong]!r}, expected {name!r}, the name of its entry point"
    title = getattr(found, "title", None)
    return None if isinstance(title, str) else f"{found.__name__}.title is {title!r}, expected its name in tables"


REGISTRY = Registry[type[Method]]("method", {method.name: method for method in METHODS}, _find_fault)


def method_named(name: str) -> type[Method]:
    """Return the class of the method of that name; raise ValueError if there is none."""
    return REGISTRY.find(name)
