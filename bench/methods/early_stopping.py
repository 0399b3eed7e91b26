"""Early stopping: no strengths; select learning rate and epoch on a validation fifth, then retrain on all images."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from bench.methods.base import Method, TunedRateSettings, metric_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec


class EarlyStoppingSettings(TunedRateSettings):
    """Settings of runs without weight decay, alpha = beta = 0.

    Attributes:
        lr_scheduler: "cosine", whose rate is still high where a run stops early, or "constant".
    """

    method: Literal["early-stopping"] = "early-stopping"
    lr_scheduler: Literal["cosine", "constant"] = "cosine"

    def find_problem(self, prior: str) -> str | None:
        if prior != "ptyl":
            return None
        return "it trains without strengths, so without PTYL's prior: name it for l2-zero and l2-sp alone by its priors"

    def max_trials(self, prior: str) -> int:
        return super().max_trials(prior) + 1


class EarlyStopping(Method):
    """Take the learning rate and epoch of the lowest validation NLL, and retrain on all images until there.

    Epochs are those of the series. The retraining stops after the same share of its epochs, which has the same number
    of steps up to rounding; a cosine keeps the length of the whole run.
    """

    name = "early-stopping"
    title = "Early stopping"
    Settings = EarlyStoppingSettings
    settings: EarlyStoppingSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        self._tuned: dict[str, TrialRecord] = {}
        fields = {"weight_decay": 0.0, "head_weight_decay": 0.0, "lr_scheduler": self.settings.lr_scheduler}
        return [self.spec("tune", rate, validation_epoch="best", **fields) for rate in self.settings.learning_rates]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if record.spec.stage != "tune":
            return ()
        self._tuned[record.key] = record
        if len(self._tuned) < len(self.settings.learning_rates):
            return ()
        best = min(self._tuned.values(), key=lambda tuned: (metric_rank(tuned), tuned.key))
        if best.status == "failed" or "best_share" not in best.state:
            return ()
        return [self.retraining(replace(best.spec, validation_epoch="last", stop_after=best.state["best_share"]))]

    def stages(self) -> Counter[str]:
        return Counter(tune=len(self.settings.learning_rates), retrain=1)
