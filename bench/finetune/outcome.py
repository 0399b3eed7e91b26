"""Result of `finetune`: the chosen trial, its test results, and what a grid search would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.config.benchmark import Benchmark
from bench.exceptions import RecordError
from bench.methods.base import metric_rank
from bench.methods.grid_search import GridSearchSettings
from bench.trials.record import TrialRecord

PARTS = {"lambda": "backbone", "tau": "head"}
"""The parts of a network by the symbol of their prior variance; the backbone may be frozen."""


@dataclass(frozen=True)
class Finetuned:
    """A model that was trained, and what it took.

    Attributes:
        record: of the trial that ended with the model.
        classes: names of the outputs.
        test_size: number of test examples.
        calibration: expected calibration error on the test examples; None if it was not measured.
        train_seconds: training steps of all learning rates.
        run_seconds: training steps of the chosen one, from start to end.
        learning_rates: how many were tried.
        grid_size: configurations of the default grid search with this prior.
    """

    record: TrialRecord
    classes: tuple[str, ...]
    test_size: int
    calibration: float | None
    train_seconds: float
    run_seconds: float
    learning_rates: int
    grid_size: int

    @property
    def grid_seconds(self) -> float:
        """Training seconds of a grid search of runs as long as this one: all of the grid, and the best once more."""
        return (self.grid_size + 1) * self.run_seconds

    def describe_learned(self) -> str:
        """Describe the learned strengths in one line."""
        sigma = self.record.state["sigma"]
        return f"{self.describe_scales(3)}: weight decay {self.describe_weight_decay(2)}; sigma {sigma:.2g}"

    def describe_scales(self, digits: int) -> str:
        """Describe lambda and tau; there is no lambda where the backbone is frozen."""
        found = {name: self.record.state.get(f"scale_{part}") for name, part in PARTS.items()}
        return ", ".join(f"{name} {value:.{digits}g}" for name, value in found.items() if value is not None)

    def describe_weight_decay(self, digits: int) -> str:
        """Describe the weight decay of the parts that are trained."""
        found = {part: self.record.state.get(f"weight_decay_{part}") for part in PARTS.values()}
        return ", ".join(f"{value:.{digits}g} ({part})" for part, value in found.items() if value is not None)

    def describe_test(self) -> str:
        """Describe the test results in one line."""
        metrics = self.record.metrics
        if "test_acc" not in metrics:
            return "not measured, as there is no test set: see --test-share"
        line = f"{metrics['test_acc']:.1%} of {self.test_size:,} test examples (class-balanced)"
        calibration = "" if self.calibration is None else f", calibration error {self.calibration:.3f}"
        return f"{line}, NLL {metrics['test_nll']:.3f}{calibration}"


def choose_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """Return the trial that ended with the model.

    Raises:
        RecordError: there is none, as each learning rate diverged or failed.
    """
    whole = [record for record in records if record.spec.is_tested and record.status == "completed"]
    if not whole:
        raise RecordError(
            "no learning rate gave finite losses: try lower ones, such as "
            "--set methods.deelbo-halving.learning_rates=[0.001,0.0001]"
        )
    return min(whole, key=lambda record: metric_rank(record, "objective"))


def summarize(benchmark: Benchmark, records: Sequence[TrialRecord], classes: Sequence[str]) -> Finetuned:
    """Summarize the trials of a finished `finetune`, as one without test examples."""
    record = choose_trial(records)
    rate = record.spec.learning_rate
    return Finetuned(
        record,
        tuple(classes),
        0,
        None,
        sum(other.seconds["train"] for other in records if other.succeeded),
        sum(other.seconds["train"] for other in records if other.succeeded and other.spec.learning_rate == rate),
        len({other.spec.learning_rate for other in records}),
        GridSearchSettings().size(benchmark.priors[0]),
    )
