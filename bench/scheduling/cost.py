"""Cost of trials that have not run: images to train on and to evaluate, and hours at a known throughput."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.sections import Training
from bench.exceptions import ConfigError
from bench.utils.text import describe_error
from deelbo.training.schedule import Schedule

FORWARD_SHARE = 1 / 3
"""Cost of a forward pass relative to forward and backward, by the usual count of multiplications."""
PUBLISHED_IMAGES_PER_SECOND = {"resnet50": 320.0}
"""Training throughput of the published runs, on an A100 whose CPU limits the data loader: 5,850 steps of 128 images in
37 min 15 s (PTYL) to 39 min 11 s (L2-SP), by table 2."""


@dataclass(frozen=True)
class Work:
    """Images of one trial: those trained on, and those evaluated (validation, selection, test).

    Where the head alone is trained, all count as evaluated: a step is little more than a forward pass.
    """

    trained: int
    evaluated: int

    def hours(self, images_per_second: float) -> float:
        """Return the hours on one device with this training throughput, without set-up."""
        return (self.trained + FORWARD_SHARE * self.evaluated) / images_per_second / 3600


def count_work(stage: str, n: int, test_size: int, training: Training) -> Work:
    """Count the images of a trial of that stage (see `bench.trials.spec.TrialSpec`) in a cell of N = ``n``."""
    held_out = n // 5 if stage == "tune" else 0
    size = n - held_out
    schedule = Schedule(0.1, steps=training.steps, batch_size=training.batch_size)
    evaluated = min(training.series_points, schedule.epochs(size)) * held_out
    if stage != "tune":
        evaluated += test_size
    if stage == "run":
        evaluated += training.posterior_passes * n + training.predictive_draws * test_size
    trained = schedule.total_steps(size) * schedule.batch(size)
    return Work(trained, evaluated) if training.train == "all" else Work(0, trained + evaluated)


class Throughput:
    """Training images per second of each backbone, method and prior: given, measured, or as published.

    Args:
        given: one number for all.
        measured: files that `speed` wrote, one for each backbone.

    Raises:
        ConfigError: a number is not positive, or a file is not a result of `speed`.
    """

    def __init__(self, given: float | None = None, measured: Sequence[Path] = ()) -> None:
        if given is not None and not 0 < given < float("inf"):
            raise ConfigError(f"--images-per-second must be a positive number, got {given}")
        self.given = given
        self.measured: dict[str, dict[str, float]] = {}
        self._devices: dict[str, str] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        for path in measured:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                throughputs = {str(name): float(number) for name, number in content["images_a_second"].items()}
                self._settings[str(content["backbone"])] = dict(content["setting"]) | dict(
                    content["setting"]["numerics"]
                )
                if not throughputs or not all(0 < number < float("inf") for number in throughputs.values()):
                    raise ValueError("images_a_second must be positive numbers")
                backbone, environment = str(content["backbone"]), content["environment"]
                self._devices[backbone] = str(environment.get("gpu") or environment["cpu"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ConfigError(f"{path}: not a result of `deelbo-bench speed` ({describe_error(error)})") from error
            self.measured[backbone] = throughputs

    def of(self, backbone: str, bayesian: bool, prior: str) -> float | None:
        """Return the throughput, or None if unknown; ``bayesian``: of a method that samples from a posterior."""
        if self.given is not None:
            return self.given
        if backbone in self.measured:
            return self.measured[backbone].get(f"{'de-elbo' if bayesian else 'map'} {prior}")
        return PUBLISHED_IMAGES_PER_SECOND.get(backbone)

    def describe(self, backbone: str, training: Training, image_size: int) -> str:
        """Describe where the throughput of a backbone comes from, and how the measured setting differs."""
        if self.given is not None:
            return f"{self.given:g} images a second, as given"
        if backbone in self.measured:
            slowest, fastest = min(self.measured[backbone].values()), max(self.measured[backbone].values())
            setting = self._settings[backbone]
            here = {"size": image_size, "batch": training.batch_size, "precision": training.precision}
            here |= {"channels_last": training.channels_last, "compile": training.compile}
            other = [
                f"{name} {setting.get(name)} (here {value})"
                for name, value in here.items()
                if setting.get(name) != value
            ]
            where = f"measured on {self._devices[backbone]}" + (f" with {', '.join(other)}" if other else "")
            return f"{slowest:.0f} to {fastest:.0f} images a second, {where}"
        if backbone in PUBLISHED_IMAGES_PER_SECOND:
            return f"{PUBLISHED_IMAGES_PER_SECOND[backbone]:g} images a second, assumed: the published runs' on an A100"
        return "not known: give --images-per-second, or --speed FILE as `speed --out FILE` writes it"
