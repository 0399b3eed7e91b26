"""What a run takes up in its storage: whole records of this very benchmark; or, by ``--fork``, one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from bench.config.benchmark import Benchmark
from bench.config.loading import flatten_settings, parse_benchmark
from bench.exceptions import ConfigError, RecordError
from bench.execution.run_trial import start_fingerprint
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from deelbo.pretrained.embedded import Pretrained

__all__ = [
    "OtherBenchmarkError",
    "check_same_inputs",
    "check_settings",
    "copy_compatible_records",
    "fork_of",
    "load_for_resume",
]


FORKS = 1000


class OtherBenchmarkError(RecordError):
    """A storage whose trials are another benchmark's: what differs."""


def load_for_resume(
    store: RecordStore, benchmark: Benchmark, say: Callable[[str], object]
) -> tuple[list[TrialRecord], list[str]]:
    """The whole records of a storage. Damaged files are set aside and named; the keys of their trials come second.

    Only for who holds the storage's lock.

    Raises:
        OtherBenchmarkError: the storage is another benchmark's.
        RecordError: there is something else in it.
    """
    try:
        _benchmark_of(store)
    except (RecordError, ConfigError) as error:
        if not store.exists("benchmark.json"):
            raise
        say(f"{error}: set aside as {store.set_aside('benchmark.json')}, written again from the configuration")
    check_settings(store, benchmark)
    records, damaged = store.whole_records()
    for line in damaged.values():
        say(line)
    done = {f"checkpoints/{record.key}.pt" for record in records if record.succeeded}
    for name in done.intersection(store.names("checkpoints")):
        store.remove(name)
    return records, list(damaged)


def _benchmark_of(store: RecordStore) -> Benchmark | None:
    content = store.read_benchmark()
    return None if content is None else parse_benchmark(content, store.path("benchmark.json"))


def check_settings(store: RecordStore, benchmark: Benchmark) -> None:
    """Raises OtherBenchmarkError where the storage's benchmark has other settings of those that bind; each is named."""
    there = _benchmark_of(store)
    if there is None:
        return
    before = dict(flatten_settings(there.settings_that_bind()))
    now = dict(flatten_settings(benchmark.settings_that_bind()))
    changed = [f"{name} was {before[name]!r} and is now {now[name]!r}" for name in now if now[name] != before[name]]
    if changed:
        raise _other(store, "holds another benchmark", "; ".join(changed))


def check_same_inputs(
    store: RecordStore, records: Iterable[TrialRecord], data: Mapping[str, str], starts: Mapping[str, Pretrained]
) -> None:
    """Raises OtherBenchmarkError where a trial saw other images, or started from other weights, than those at hand.

    Args:
        store: whose records these are.
        records: those that would be continued.
        data: hash of the images at hand, by dataset; one that is not read is not compared.
        starts: pretrained weights at hand, by backbone; as for ``data``.
    """
    for record in records:
        if record.succeeded and (reason := _foreign(record, data, starts)) is not None:
            raise _other(store, "holds trials that", reason)


def fork_of(
    store: RecordStore, benchmark: Benchmark, data: Mapping[str, str], starts: Mapping[str, Pretrained]
) -> RecordStore:
    """The storage itself where it is this benchmark's; else the first of STORAGE-fork-1, -2, ... that is, or is new."""
    for candidate in _candidates(store):
        try:
            check_settings(candidate, benchmark)
            check_same_inputs(candidate, candidate.records([]), data, starts)
        except OtherBenchmarkError:
            continue
        return candidate
    raise RecordError(f"{store.url} has {FORKS} forks, none of this benchmark: choose another --storage")


def copy_compatible_records(
    store: RecordStore,
    origin: RecordStore,
    benchmark: Benchmark,
    data: Mapping[str, str],
    starts: Mapping[str, Pretrained],
) -> int:
    """Copies into a new fork those records of its origin that hold for this benchmark; how many."""
    there = _benchmark_of(origin)
    if there is None:
        return 0
    before, now = there.settings_that_bind(), benchmark.settings_that_bind()
    if before | {"name": ""} != now | {"name": ""}:
        return 0
    count = 0
    for record in origin.records([]):
        if record.succeeded and _foreign(record, data, starts) is None:
            for name in (f"series/{record.key}.json", f"records/{record.key}.json"):  # in the order of `write`
                if (content := origin.read_file(name)) is not None:
                    store.write_file(name, content)
            part = f"rungs/{record.spec.kept_as(record.spec.until)}.pt"
            if record.spec.until < 1 and (content := origin.read_file(part)) is not None:
                store.write_file(part, content)
            count += 1
    return count


def _candidates(store: RecordStore) -> Iterator[RecordStore]:
    yield store
    for number in range(1, FORKS + 1):
        yield RecordStore(f"{store.url}-fork-{number}")


def _foreign(record: TrialRecord, data: Mapping[str, str], starts: Mapping[str, Pretrained]) -> str | None:
    """What of a record does not fit what is at hand, and how to set it back."""
    spec, versions = record.spec, record.versions
    found, here = versions.get("data"), data.get(spec.dataset)
    if found is not None and here is not None and found != here:
        return f"saw other images of {spec.dataset}: {found}, here {here}, so `data` was changed"
    start = starts.get(spec.backbone)
    if start is None or (spec.prior == "ptyl" and start.factor is None):
        return None  # not read in this call, which runs a part without it
    fingerprint = start_fingerprint(spec.prior, start)
    # a record of version 0.1 names all that its network has, whatever its prior needs
    if versions.get("pretrained", fingerprint) in (fingerprint, start.fingerprint):
        return None
    return (
        f"started from pretrained weights {versions['pretrained']}, here they are {fingerprint}: "
        f"another file in backbones.{spec.backbone}, another torch, or another machine"
    )


def _other(store: RecordStore, what: str, difference: str) -> OtherBenchmarkError:
    return OtherBenchmarkError(
        f"{store.url} {what} ({difference}): set it back, choose another --storage, or run with --fork, "
        "which leaves this one as it is and goes on beside it"
    )
