"""Settings of the training loop: length, speed, BatchNorm. This module needs no torch."""

import math
from dataclasses import dataclass

BATCHNORM = ("train", "frozen")
FINAL_BATCHNORM = ("running", "mean")
CLOSING_BATCHNORM = ("running", "draw")
LR_SCHEDULERS = ("cosine", "constant")
VALIDATION_EPOCHS = ("last", "best")
TRAINED = ("all", "head")


@dataclass(frozen=True)
class Schedule:
    """Settings of the training loop.

    Attributes:
        learning_rate: that of the first step.
        steps: nominal number of optimizer steps. Whole epochs are trained, so it is rounded down to a multiple of them.
        batch_size: images per step, or all of them where there are fewer; an epoch's last partial batch is dropped.
        momentum: of SGD with Nesterov's correction.
        clip_norm: maximum norm of the whole gradient, which includes that of the objective's own parameters.
        posterior_passes: passes over the training images, each with its own draw of the weights, that are averaged into
            the final objective.
        predictive_draws: draws from the posterior over which a Bayesian objective's test predictions are averaged, for
            a second set of test metrics; 0: none.
        series_points: number of evaluations during the run, the one after the last step included.
        batchnorm: "train", or "frozen": layers with running statistics (BatchNorm) normalize training batches by the
            pretrained statistics, as in evaluation, and do not change them. Their weights are trained in both cases.
        noise_until: share of the steps, rounded up, in which a Bayesian objective draws from the posterior. In the rest
            it is frozen, see `deelbo.ELBO.freeze`.
        final_batchnorm: statistics of the trained network: "running", as training left them, or "mean", estimated again
            at the posterior mean over at most 5,000 training images, see `deelbo.update_batchnorm`; booked under
            "select". Frozen statistics stay as they are.
        closing_batchnorm: statistics with which the closing objective evaluates a draw from the posterior: "running",
            those of the trained network, or "draw", estimated again for each draw.
        lr_scheduler: learning rate after each step: "cosine" falls to 0 over all steps, "constant" stays the same.
        validation_epoch: epoch whose validation metrics are the run's: the "last", or the "best", that of the lowest
            finite validation NLL in the series. With "best" all validation is booked under "evaluate".
        stop_after: share of the epochs, rounded up, after which training ends. The cosine is that of all epochs.
        train: "all" weights, or "head": the head alone, by linear probing. All other weights are frozen, so the network
            stays in evaluation mode: BatchNorm normalizes by its pretrained statistics, and dropout is off.

    Raises:
        ValueError: a text that is none of these, a ``noise_until`` or ``stop_after`` that is not above 0 and at
            most 1, or statistics that are to be estimated again where only the head is trained.
    """

    learning_rate: float
    steps: int = 6000
    batch_size: int = 128
    momentum: float = 0.9
    clip_norm: float = 1.0
    posterior_passes: int = 10
    series_points: int = 20
    batchnorm: str = "train"
    noise_until: float = 1.0
    final_batchnorm: str = "running"
    closing_batchnorm: str = "running"
    lr_scheduler: str = "cosine"
    validation_epoch: str = "last"
    stop_after: float = 1.0
    train: str = "all"
    predictive_draws: int = 0

    def __post_init__(self) -> None:
        choices = {"batchnorm": BATCHNORM, "final_batchnorm": FINAL_BATCHNORM, "closing_batchnorm": CLOSING_BATCHNORM}
        choices |= {"lr_scheduler": LR_SCHEDULERS, "validation_epoch": VALIDATION_EPOCHS, "train": TRAINED}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.train == "head" and (self.final_batchnorm, self.closing_batchnorm) != ("running", "running"):
            found = f"final_batchnorm {self.final_batchnorm!r} and closing_batchnorm {self.closing_batchnorm!r}"
            raise ValueError(f"with train 'head' statistics stay as pretrained, got {found}: use 'running' for both")
        if not 0 < self.noise_until <= 1:
            raise ValueError(f"noise_until must be a share of the steps, above 0 and at most 1, got {self.noise_until}")
        if not 0 < self.stop_after <= 1:
            raise ValueError(f"stop_after must be a share of the epochs, above 0 and at most 1, got {self.stop_after}")

    def noisy_steps(self, num_examples: int) -> int:
        """Return the number of steps that draw from the posterior."""
        return math.ceil(self.noise_until * self.total_steps(num_examples) - 1e-9)

    def batch(self, num_examples: int) -> int:
        """Images per step."""
        return min(self.batch_size, num_examples)

    def total_steps(self, num_examples: int) -> int:
        """Steps that are trained: whole epochs, unless ``steps`` is less than one epoch."""
        per_epoch = max(num_examples // self.batch_size, 1)
        return self.steps // per_epoch * per_epoch or self.steps

    def steps_per_epoch(self, num_examples: int) -> int:
        """Full batches in one pass over the images, at most `total_steps`."""
        return min(max(num_examples // self.batch_size, 1), self.total_steps(num_examples))

    def epochs(self, num_examples: int) -> int:
        """Epochs that are trained."""
        return self.total_steps(num_examples) // self.steps_per_epoch(num_examples)

    def stop_epoch(self, until: float, num_examples: int) -> int:
        """Number of epochs in the fraction ``until`` of the run, see `stop_epoch`."""
        return stop_epoch(until, self.epochs(num_examples))


def stop_epoch(until: float, epochs: int) -> int:
    """Return ceil(until * epochs), at least 1: the epoch at which the fraction ``until`` of a run is trained."""
    if not 0 < until <= 1:
        raise ValueError(f"until must be a fraction of the run's epochs, above 0 and at most 1, got {until}")
    return max(math.ceil(until * epochs - 1e-9), 1)  # in floating point 0.3 * 10 is more than 3
