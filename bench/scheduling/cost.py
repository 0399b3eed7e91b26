"""What trials cost before they are run: images to train on and to look at, and hours at a known speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.sections import Training
from bench.exceptions import ConfigError
from bench.utils.text import describe_error
from deelbo.training.schedule import Schedule

__all__ = ["Throughput", "Work", "work_of"]


FORWARD_SHARE = 1 / 3
"""Forward alone against forward and backward, by the usual count of multiplications."""
PUBLISHED = {"resnet50": 320.0}
"""Training images a second in the published runs, on an A100 behind a loader that its CPU bounds: 5,850 steps of 128
images in 37 min 15 s (PTYL) to 39 min 11 s (L2-SP), by table 2."""


@dataclass(frozen=True)
class Work:
    """Images of one trial: gone through forward and backward, and forward alone (validation, selection, test)."""

    trained: int
    looked_at: int

    def hours(self, rate: float) -> float:
        """Of one device at ``rate`` training images a second, set-up left out."""
        return (self.trained + FORWARD_SHARE * self.looked_at) / rate / 3600


def work_of(stage: str, n: int, test_size: int, training: Training) -> Work:
    """The images of a trial of that stage (see `bench.trials.spec.TrialSpec`) in a cell of N = ``n``."""
    held_out = n // 5 if stage == "tune" else 0
    size = n - held_out
    schedule = Schedule(0.1, steps=training.steps, batch_size=training.batch_size)
    looked_at = min(training.series_points, schedule.epochs(size)) * held_out
    if stage != "tune":
        looked_at += test_size
    if stage == "run":
        looked_at += training.posterior_passes * n
    return Work(schedule.total_steps(size) * schedule.batch(size), looked_at)


class Throughput:
    """Training images a second of each backbone, method and prior: given, measured, or as published.

    Args:
        given: one for all.
        measured: files that `speed` wrote; one for each backbone.

    Raises:
        ConfigError: a rate that is not positive, or a file that is not one of `speed`'s.
    """

    def __init__(self, given: float | None = None, measured: Sequence[Path] = ()) -> None:
        if given is not None and not 0 < given < float("inf"):
            raise ConfigError(f"--images-per-second must be a positive number, got {given}")
        self.given = given
        self.measured: dict[str, dict[str, float]] = {}
        self._where: dict[str, str] = {}
        self._setting: dict[str, dict[str, Any]] = {}
        for path in measured:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                rates = {str(name): float(rate) for name, rate in content["images_a_second"].items()}
                self._setting[str(content["backbone"])] = dict(content["setting"]) | dict(
                    content["setting"]["numerics"]
                )
                if not rates or not all(0 < rate < float("inf") for rate in rates.values()):
                    raise ValueError("images_a_second must be positive numbers")
                backbone, environment = str(content["backbone"]), content["environment"]
                self._where[backbone] = str(environment.get("gpu") or environment["cpu"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ConfigError(f"{path}: not a result of `deelbo-bench speed` ({describe_error(error)})") from error
            self.measured[backbone] = rates

    def of(self, backbone: str, bayesian: bool, prior: str) -> float | None:
        """The rate, or None where nothing is known; ``bayesian``: of a run that draws from a posterior."""
        if self.given is not None:
            return self.given
        if backbone in self.measured:
            return self.measured[backbone].get(f"{'de-elbo' if bayesian else 'map'} {prior}")
        return PUBLISHED.get(backbone)

    def describe(self, backbone: str, training: Training, image_size: int) -> str:
        """Where the rate of that backbone comes from, for people, and in what it was measured otherwise."""
        if self.given is not None:
            return f"{self.given:g} images a second, as given"
        if backbone in self.measured:
            slowest, fastest = min(self.measured[backbone].values()), max(self.measured[backbone].values())
            setting = self._setting[backbone]
            here = {"size": image_size, "batch": training.batch_size, "precision": training.precision}
            here |= {"channels_last": training.channels_last, "compile": training.compile}
            other = [
                f"{name} {setting.get(name)} (here {value})"
                for name, value in here.items()
                if setting.get(name) != value
            ]
            where = f"measured on {self._where[backbone]}" + (f" with {', '.join(other)}" if other else "")
            return f"{slowest:.0f} to {fastest:.0f} images a second, {where}"
        if backbone in PUBLISHED:
            return f"{PUBLISHED[backbone]:g} images a second, assumed: the published runs' on an A100"
        return "not known: give --images-per-second, or --speed FILE as `speed --out FILE` writes it"
