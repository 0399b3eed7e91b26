"""Random search: random configurations of the grid, tuned as grid search tunes them (Bergstra and Bengio 2012)."""

from collections.abc import Iterable
from typing import Literal

from bench.methods.sequential import SequentialMethod, SequentialSettings, derived_rng
from bench.trials.spec import Cell, TrialSpec


class RandomSearchSettings(SequentialSettings):
    """``trials`` configurations, 12 by default, sampled without replacement from the grid."""

    method: Literal["random"] = "random"

    def find_problem(self, prior: str) -> str | None:
        if self.trials > (size := self.size(prior)):
            return (
                f"trials = {self.trials} drawn from a grid of {size} with prior {prior}, each once: set trials to "
                f"{size} or fewer, or make the grid larger"
            )
        return super().find_problem(prior)


def sample_configurations(settings: SequentialSettings, cell: Cell) -> list[dict[str, float]]:
    """Return the first configurations of a shuffle of the whole grid, each as fields of `TrialSpec`."""
    points = list(settings.points(cell.prior))
    derived_rng(settings.seed, cell).shuffle(points)
    return points[: settings.configurations(cell.prior)]


class RandomSearch(SequentialMethod):
    """All tuning trials may run at once; their numbers define the first k configurations of a budget of k."""

    name = "random"
    title = "Random search"
    Settings = RandomSearchSettings
    settings: RandomSearchSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [
            self.spec("tune", number=i, **point)
            for i, point in enumerate(sample_configurations(self.settings, self.cell))
        ]
