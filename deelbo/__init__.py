"""deelbo: learn the strength of L2 regularization while a network trains, without a validation set.

Names are imported on first use (PEP 562), so ``import deelbo`` itself loads nothing, and `LearnedL2` loads torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deelbo.groups import Group, make_groups
    from deelbo.learned_l2 import LearnedL2
    from deelbo.objectives.elbo import ELBO, DataEmphasizedELBO
    from deelbo.objectives.map import MAP
    from deelbo.posterior import IsotropicPosterior
    from deelbo.priors import GaussianPrior, Isotropic, LowRank
    from deelbo.saved_model import SavedModel, load_model, save_model
    from deelbo.training.batchnorm import update_batchnorm
    from deelbo.training.checkpoint import Checkpoint, Handover
    from deelbo.training.clock import PhaseClock
    from deelbo.training.evaluation import evaluate
    from deelbo.training.fit import FitResult, fit
    from deelbo.training.schedule import Schedule

__all__ = [
    "ELBO",
    "MAP",
    "Checkpoint",
    "DataEmphasizedELBO",
    "FitResult",
    "GaussianPrior",
    "Group",
    "Handover",
    "Isotropic",
    "IsotropicPosterior",
    "LearnedL2",
    "LowRank",
    "PhaseClock",
    "SavedModel",
    "Schedule",
    "evaluate",
    "fit",
    "load_model",
    "make_groups",
    "save_model",
    "update_batchnorm",
]
__version__ = "0.1.0"

_MODULES = {
    "groups": ("Group", "make_groups"),
    "learned_l2": ("LearnedL2",),
    "objectives.elbo": ("ELBO", "DataEmphasizedELBO"),
    "objectives.map": ("MAP",),
    "posterior": ("IsotropicPosterior",),
    "priors": ("GaussianPrior", "Isotropic", "LowRank"),
    "saved_model": ("SavedModel", "load_model", "save_model"),
    "training.batchnorm": ("update_batchnorm",),
    "training.checkpoint": ("Checkpoint", "Handover"),
    "training.clock": ("PhaseClock",),
    "training.evaluation": ("evaluate",),
    "training.fit": ("FitResult", "fit"),
    "training.schedule": ("Schedule",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"deelbo.{module}"), name)
            return value
    raise AttributeError(f"module 'deelbo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
