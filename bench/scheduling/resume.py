"""Resume a benchmark: validate stored records and load those still usable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from bench.config.benchmark import Benchmark
from bench.config.loading import flatten_settings, parse_benchmark
from bench.exceptions import ConfigError, FormatError, RecordError
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord

if TYPE_CHECKING:
    from deelbo.pretrained.embedded import Pretrained


def load_for_resume(
    store: RecordStore, benchmark: Benchmark, say: Callable[[str], object]
) -> tuple[list[TrialRecord], list[str]]:
    """Load the valid records of a storage and quarantine damaged files. The caller must hold the storage's lock.

    Returns:
        the valid records, and the keys of the trials of which a file was quarantined; each such file is reported by
        ``say``.

    Raises:
        RecordError: the storage holds another benchmark, or something else.
    """
    try:
        _read_benchmark(store)
    except (RecordError, ConfigError) as error:
        if isinstance(error, FormatError) or not store.exists("benchmark.json"):
            raise
        moved = store.quarantine("benchmark.json")
        say(f"{error}: moved to {moved}, written again from the configuration")
    check_settings(store, benchmark)
    records, damaged = store.recover_records()
    for line in damaged.values():
        say(line)
    done = {f"checkpoints/{record.key}.pt" for record in records if record.succeeded}
    for name in done.intersection(store.names("checkpoints")):
        store.remove(name)
    return records, list(damaged)


def check_settings(store: RecordStore, benchmark: Benchmark) -> None:
    """Raise RecordError, naming each difference, if the storage's benchmark has other identity settings."""
    stored = _read_benchmark(store)
    if stored is None:
        return
    before = dict(flatten_settings(stored.identity_settings()))
    now = dict(flatten_settings(benchmark.identity_settings()))
    changed = [f"{name} was {old!r} and is now {now[name]!r}" for name, old in before.items() if now[name] != old]
    if changed:
        raise _refusal(store, "holds another benchmark", "; ".join(changed))


def check_same_inputs(
    store: RecordStore, records: Iterable[TrialRecord], data: Mapping[str, str], starts: Mapping[str, Pretrained]
) -> None:
    """Raise RecordError if a trial used other data or other pretrained weights than those available locally.

    Args:
        store: storage of the records.
        records: records that this run would reuse.
        data: hash of the local data by dataset.
        starts: local pretrained weights by backbone. Datasets and backbones that are not available are not compared.
    """
    for record in records:
        if record.succeeded and (difference := _incompatibility(record, data, starts)) is not None:
            raise _refusal(store, "holds trials that", difference)


def _incompatibility(record: TrialRecord, data: Mapping[str, str], starts: Mapping[str, Pretrained]) -> str | None:
    spec, versions = record.spec, record.versions
    recorded, local = versions.get("data"), data.get(spec.dataset)
    if recorded is not None and local is not None and recorded != local:
        return f"saw other data of {spec.dataset}: {recorded}, here {local}, so `data` or its files were changed"
    start = starts.get(spec.backbone)
    if start is None or (spec.prior == "ptyl" and start.factor is None):
        return None  # this run covers a subset of the benchmark and did not read these weights
    fingerprint = start.fingerprint_for(spec.prior)
    if versions.get("pretrained", fingerprint) == fingerprint:
        return None
    return (
        f"started from pretrained weights {versions['pretrained']}, here they are {fingerprint}: "
        f"another file in backbones.{spec.backbone}, another torch, or another machine"
    )


def _read_benchmark(store: RecordStore) -> Benchmark | None:
    content = store.read_benchmark()
    return None if content is None else parse_benchmark(content, store.path("benchmark.json"))


def _refusal(store: RecordStore, problem: str, difference: str) -> RecordError:
    return RecordError(f"{store.url} {problem} ({difference}): change that back, or take another --storage")
