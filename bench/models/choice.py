"""The trials that methods choose, by the order of `bench.results.configurations`, and the choice among them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.exceptions import ConfigError
from bench.methods.base import metric_rank
from bench.results.configurations import iterate_configurations
from bench.results.frame import to_frame
from bench.trials.record import TrialRecord

DEFAULT_METHOD = "de-elbo"
CHOICES = ("dataset", "backbone", "prior", "n", "method")
MAX_VALUES = 8


class BestTrial(NamedTuple):
    """The best tested trial of a method in a cell.

    Attributes:
        record: of that trial.
        criterion, value: the metric that its method chooses by, of which less is better: of the tuning trial if it was
            tuned before.
        is_chosen: whether no configuration is better, tested or not.
        worse: keys of the tested trials that rank behind it, which no later record changes. One that was retrained
            before it was tuned has no rank yet.
    """

    record: TrialRecord
    criterion: str
    value: float
    is_chosen: bool
    worse: frozenset[str]


def best_trials(records: Sequence[TrialRecord]) -> Iterator[BestTrial]:
    """Yield the best tested trial of each method and cell that has any."""
    frame, by_key = to_frame(list(records)), {record.key: record for record in records}
    keys = frame["key"].tolist()
    for _, tried in iterate_configurations(frame):
        ranked = [
            (place, by_key[keys[judged]], by_key[keys[tested]])
            for place, (judged, tested) in enumerate(zip(tried.selection_rows, tried.test_rows, strict=True))
            if tested >= 0 and by_key[keys[tested]].spec.is_tested
        ]
        if ranked:
            place, judge, record = ranked[0]
            criterion = "val_nll" if judge.spec.stage == "tune" else "objective"
            worse = frozenset(other.key for _, _, other in ranked[1:])
            yield BestTrial(record, criterion, metric_rank(judge, criterion)[1], place == 0, worse)


def pick_trial(trials: Sequence[BestTrial]) -> BestTrial:
    """Return one of the trials, never by its test accuracy.

    Of several methods it is `DEFAULT_METHOD`. Of several seeds, whose cells are alike, it is the best by the method's
    own criterion. Of anything else there must be one.

    Raises:
        ConfigError: there are several; one line with what there is.
    """
    if any(trial.record.spec.method == DEFAULT_METHOD for trial in trials):
        trials = [trial for trial in trials if trial.record.spec.method == DEFAULT_METHOD]
    values = {key: list(dict.fromkeys(str(getattr(t.record.spec, key)) for t in trials)) for key in CHOICES}
    if several := {key: found for key, found in values.items() if len(found) > 1}:
        listed = "; ".join(
            f"{key} {', '.join(found[:MAX_VALUES])}{', ...' * (len(found) > MAX_VALUES)}"
            for key, found in several.items()
        )
        example = ",".join(f"{key}={found[0]}" for key, found in several.items())
        raise ConfigError(f"there are chosen models of {listed}: choose by --only, such as --only {example}")
    return min(trials, key=lambda trial: (trial.value, trial.record.spec.seed))
