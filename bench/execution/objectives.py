"""Make the objective of a trial."""

import torch
from torch import nn

from bench.methods import method_named
from bench.trials.spec import TrialSpec
from deelbo._vectors import flatten
from deelbo.groups import make_groups, split_at_head
from deelbo.objectives.base import Objective
from deelbo.objectives.elbo import ELBO, DataEmphasizedELBO
from deelbo.objectives.map import MAP
from deelbo.pretrained.embedded import Pretrained
from deelbo.priors import GaussianPrior, LowRank

POSTERIOR_STREAM = 1_000_003  # added to a trial's seed for the posterior's noise; the seed itself orders the data


def make_objective(
    spec: TrialSpec, model: nn.Module, head: str, pretrained: Pretrained, num_examples: int
) -> Objective:
    """Return the objective of a trial's method and prior; ``num_examples`` is the number of its training images."""
    prior: str | GaussianPrior = spec.prior
    if spec.prior == "ptyl":
        if pretrained.variance is None or pretrained.factor is None:
            raise ValueError(f"prior ptyl needs the variance and factor of {spec.backbone}, got its mean alone")
        mean = flatten(split_at_head(model, head)[0])
        prior = LowRank(mean, pretrained.variance.to(mean), pretrained.factor.to(mean))
    groups = make_groups(model, head, prior, spec.groups)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(spec.seed + POSTERIOR_STREAM)
    if spec.learner is not None:
        return method_named(spec.learner).objective(spec, groups, num_examples)
    if spec.stage != "run" or spec.head_weight_decay is not None:
        backbone = spec.weight_decay if spec.prior_scale is None else 1 / (num_examples * spec.prior_scale)
        given = {"backbone": backbone, "head": spec.head_weight_decay}
        parts = dict.fromkeys(group.part or group.name for group in groups)  # the head alone, if only that is trained
        strengths = {part: value for part in parts if (value := given[part]) is not None}
        if len(strengths) < len(parts):
            raise ValueError(f"MAP needs a strength for {' and '.join(parts)}, got {spec}")
        return MAP(groups, num_examples, strengths)
    if spec.kappa is None:
        dim = sum(group.prior.dim for group in groups)
        kappa = None if spec.kappa_share == 1 else spec.kappa_share * dim / num_examples
        return DataEmphasizedELBO(groups, num_examples, kappa, spec.sigma, generator, spec.start_alpha)
    return ELBO(groups, num_examples, spec.kappa, spec.sigma, generator, spec.start_alpha)
