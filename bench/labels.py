"""What people call the things that records name by a key, and the order in which tables list them."""

from __future__ import annotations

from bench.methods import METHODS

__all__ = ["METHOD_NAMES", "PAPER_METHODS", "PRIOR_NAMES", "REPLAY_SUFFIX", "dataset_name", "method_name"]


METHOD_NAMES: dict[str, str] = {method.name: method.title for method in METHODS}
PRIOR_NAMES = {"l2-zero": "L2-zero", "l2-sp": "L2-SP", "ptyl": "PTYL"}
PAPER_METHODS = ("map-gs", "de-elbo", "elbo")
"""What the papers compare: figure 2 and the first sentences are about these alone."""
REPLAY_SUFFIX = " (replayed)"
"""What stands behind a method's name where its trials were taken from a finished grid."""


def dataset_name(name: str) -> str:
    """A dataset's name in a title: published files say Oxford-IIIT_Pet."""
    return name.replace("_", " ")


def method_name(entry: str) -> str:
    """What to call an entry under ``methods``: its method's title where it has the method's name, else as it is."""
    name = entry.removesuffix(REPLAY_SUFFIX)
    return METHOD_NAMES.get(name, name) + entry[len(name) :]
