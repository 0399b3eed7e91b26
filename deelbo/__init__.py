"""deelbo: learn the strength of L2 regularization while a network trains, without a validation set."""

from deelbo.groups import Group, make_groups
from deelbo.learned_l2 import LearnedL2
from deelbo.objectives.elbo import ELBO, DataEmphasizedELBO
from deelbo.objectives.map import MAP
from deelbo.posterior import IsotropicPosterior
from deelbo.priors import GaussianPrior, Isotropic, LowRank
from deelbo.training.checkpoint import Checkpoint
from deelbo.training.clock import PhaseClock
from deelbo.training.evaluation import evaluate
from deelbo.training.fit import FitResult, fit
from deelbo.training.handover import Handover
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
    "Schedule",
    "evaluate",
    "fit",
    "make_groups",
]
__version__ = "0.1.0"
