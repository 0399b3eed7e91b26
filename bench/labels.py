"""Display names of methods, priors and datasets, and their order in tables."""

from bench.methods import METHODS, REGISTRY

METHOD_NAMES: dict[str, str] = {method.name: method.title for method in METHODS}
PRIOR_NAMES = {"l2-zero": "L2-zero", "l2-sp": "L2-SP", "ptyl": "PTYL"}
PAPER_METHODS = ("map-gs", "de-elbo", "elbo")
"""Methods that the papers compare, the subject of figure 2."""
REPLAY_SUFFIX = " (replayed)"
"""Suffix of a method whose trials were replayed on a finished grid."""


def dataset_name(name: str) -> str:
    """Return the display name of a dataset; names in published files have underscores."""
    return name.replace("_", " ")


def method_name(entry: str) -> str:
    """Return the display name of an entry: its method's title if the entry has the method's name, else its own name."""
    name = entry.removesuffix(REPLAY_SUFFIX)
    titles = METHOD_NAMES | {method.name: method.title for method in REGISTRY.loaded().values()}
    return titles.get(name, name) + entry[len(name) :]
