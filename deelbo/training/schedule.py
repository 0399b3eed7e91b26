"""Schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        learning_rate: where the cosine starts; it ends at 0, one value a step.
        steps: nominal number of steps; whole epochs are run, so it is rounded down to a multiple of them.
        batch_size: at most this many images a step; the last partial batch of an epoch is dropped.
        momentum: of SGD with Nesterov's correction.
        clip_norm: largest norm of the whole gradient, the objective's own parameters included.
        posterior_passes: passes over the training images, each at its own draw, that average the final objective.
        series_points: how many times the run is looked at, the last step included.
    """

    learning_rate: float
    steps: int = 6000
    batch_size: int = 128
    momentum: float = 0.9
    clip_norm: float = 1.0
    posterior_passes: int = 10
    series_points: int = 20

    def batch(self, num_examples: int) -> int:
        """Images a step."""
        return min(self.batch_size, num_examples)

    def total_steps(self, num_examples: int) -> int:
        """Steps that are run: whole epochs, unless the nominal number is less than one."""
        an_epoch = max(num_examples // self.batch_size, 1)
        return self.steps // an_epoch * an_epoch or self.steps

    def steps_an_epoch(self, num_examples: int) -> int:
        """Steps until every image was seen, the last partial batch left out; at most those that are run."""
        return min(max(num_examples // self.batch_size, 1), self.total_steps(num_examples))

    def epochs(self, num_examples: int) -> int:
        """Epochs that are run."""
        return self.total_steps(num_examples) // self.steps_an_epoch(num_examples)

    def stop_epoch(self, until: float, num_examples: int) -> int:
        """The epoch after which a run stops that trains the share ``until`` of its epochs: ceil(until * epochs).

        Raises:
            ValueError: a share that is not above 0 and at most 1.
        """
        if not 0 < until <= 1:
            raise ValueError(f"until is the share of a run's epochs, above 0 and at most 1, got {until}")
        return max(math.ceil(until * self.epochs(num_examples) - 1e-9), 1)  # 0.3 * 10 is more than 3
