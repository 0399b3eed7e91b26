"""Keep the models that methods choose during a run, and remove the others."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from bench.models.choice import best_trials
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.storage.models import model_keys, remove_model
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec


class ChosenModels(RunCallback):
    """Keep one model for each method and cell: that of the best trial among those tested so far.

    Those that rank behind it always will, so the model of the trial that the method chooses is never removed. A model
    that cannot be removed takes space and does no harm.

    Args:
        store: storage of the models.
        say: prints a line for the user.
        keep_all: nothing is removed but what a killed run has left.
    """

    def __init__(self, store: RecordStore, say: Callable[[str], object], keep_all: bool = False) -> None:
        self._store, self._say, self._keep_all = store, say, keep_all
        self._reused: Sequence[TrialRecord] = ()
        self._num_seen = 0  # of the reused records, which the queue finds as it goes
        self._records: dict[tuple[str, Cell], list[TrialRecord]] = defaultdict(list)
        self._keys: set[str] = set()  # of the models in the storage
        self._has_warned = False

    def on_run_start(self, queue: TrialQueue, slots: int) -> None:
        with suppress(Exception):
            self._keys = set(model_keys(self._store))
            for key in [key for key in self._keys if not self._store.exists(f"records/{key}.json")]:
                self._remove(key)  # of a trial that was killed and runs again
        self._reused = queue.reused
        self._take()
        self._remove_others([record for records in self._records.values() for record in records])

    def on_trial_end(self, record: TrialRecord) -> None:
        self._take(record)
        if record.spec.is_tested:
            self._keys.add(record.key)
        self._remove_others(self._records[record.spec.method, record.spec.cell])

    def on_model_lost(self, spec: TrialSpec, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._say(f"the model of {spec.describe()} is not kept ({reason}); its record counts, as do those to come")

    def _take(self, *records: TrialRecord) -> None:
        """Take records, without what the order of configurations does not depend on."""
        new = self._reused[self._num_seen :]
        self._num_seen += len(new)
        for record in (*new, *records):
            slim = replace(record, state={}, hardware={}, versions={}, error=None)
            self._records[record.spec.method, record.spec.cell].append(slim)

    def _remove_others(self, records: Sequence[TrialRecord]) -> None:
        """Remove the models of trials that rank behind the best tested one of their method and cell."""
        if self._keep_all or len({record.key for record in records if record.spec.is_tested} & self._keys) < 2:
            return
        for best in best_trials(records):
            for key in best.worse & self._keys:
                self._remove(key)

    def _remove(self, key: str) -> None:
        with suppress(Exception):
            remove_model(self._store, key)
            self._keys.discard(key)
