"""deelbo: learn the strength of L2 regularisation while a network trains, without a validation set."""

from deelbo.checkpoint import Checkpoint
from deelbo.clock import PhaseClock
from deelbo.fit import FitResult, fit
from deelbo.handover import Handover
from deelbo.learned_l2 import LearnedL2, make_groups
from deelbo.objectives import ELBO, MAP, DataEmphasizedELBO, Group
from deelbo.posterior import IsotropicPosterior
from deelbo.priors import GaussianPrior, Isotropic, LowRank
from deelbo.run import Schedule, evaluate

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
