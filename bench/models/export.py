"""Copy a kept model out of a storage."""

from collections.abc import Sequence
from pathlib import Path

from bench.config.benchmark import Benchmark, make_methods
from bench.config.selection import filter_methods
from bench.exceptions import ConfigError, RecordError
from bench.models.choice import BestTrial, best_trials, pick_trial
from bench.scheduling.queue import split_finished
from bench.storage.models import has_model, read_model
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.utils.text import single_line


def choose(benchmark: Benchmark, records: Sequence[TrialRecord], only: str | None) -> BestTrial:
    """Return the trial whose model is to be exported, of those that ``only`` allows.

    Raises:
        ConfigError: there are several that cannot be compared.
        RecordError: no method has finished a cell with a test result.
    """
    finished = split_finished(filter_methods(make_methods(benchmark), only), records)
    chosen = [t for t in best_trials(finished.records) if t.is_chosen and t.record.status == "completed"]
    if not chosen:
        left = sum(finished.remaining.values())
        raise RecordError(f"no method has chosen a model that can be tested, {left} trials are left: let `run` go on")
    return pick_trial(chosen)


def export(store: RecordStore, record: TrialRecord, folder: Path) -> list[Path]:
    """Write the model of a trial to an empty or new folder, and return its files.

    Raises:
        ConfigError: the folder is not empty.
        RecordError: the model is not in the storage, or damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder: give another --out")
    remedy = f"delete records/{record.key}.json in {store.path()}, and `run` with --set keep=chosen trains it again"
    if not has_model(store, record.key):
        raise RecordError(f"the model of {record.spec.describe()} was not kept: {remedy}")
    try:
        files = read_model(store, record.key)
    except ValueError as error:
        raise RecordError(f"{error}; or {remedy}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        for name in files:
            (folder / name).unlink(missing_ok=True)  # so that the same command can be tried again
        raise ConfigError(
            f"{folder} cannot be written ({single_line(error)}): free space there, or give another --out"
        ) from error
    return [folder / name for name in files]
