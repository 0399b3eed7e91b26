"""Where a report's results come from: a storage, or the authors' files. One table of runs, and what to say of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from bench.config.benchmark import make_methods
from bench.config.loading import parse_benchmark
from bench.exceptions import RecordError
from bench.results.frame import to_frame
from bench.results.missing import find_missing
from bench.results.paper import unlike_paper
from bench.results.published import read_published
from bench.scheduling.queue import split_finished
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.utils.text import single_line

__all__ = ["Results", "from_published", "from_storage", "gather", "labels"]


MOST_NAMED = 20


@dataclass(frozen=True)
class Results:
    """Results of one origin.

    Attributes:
        label: what to call them beside others; the frame's column ``source``.
        title: what to call them alone.
        frame: one row a run, in the schema of `bench.results.frame.COLUMNS`.
        left_out: input that could not be used, and why, a line each.
        notes: what is missing for want of runs.
        about: what ran, when, on what.
        config: the configuration as YAML, or empty.
        published: whether these are the paper's own.
        unfinished: how many trials are left to run.
    """

    label: str
    title: str
    frame: pd.DataFrame
    left_out: list[str]
    notes: list[str]
    about: list[str]
    config: str = ""
    published: bool = False
    unfinished: int = 0


def from_storage(store: RecordStore, label: str = "") -> Results:
    """The records of a storage, as far as they can be compared.

    Only trials that the storage's configuration asks for count, and only where a method is done with a cell: half a
    grid is not a grid's result.

    Raises:
        RecordError: the storage holds no benchmark, or no trial that could be reported.
    """
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished or interrupted `run`")
    damaged: list[str] = []
    records = list(store.records(damaged))
    benchmark = parse_benchmark(content, store.path("benchmark.json"))
    kept, left, held = split_finished(make_methods(benchmark), records)
    frame = to_frame(kept, label, records)
    counts = Counter(record.status for record in records)
    if not frame["status"].isin(["completed", "diverged"]).any():
        raise RecordError(
            f"{store.url}: no method can be reported yet ({len(records)} trials have a record, "
            f"{counts['failed']} of them failed, {sum(left.values())} are left): let `run` go on"
            f"{f'; {damaged[0]}' if damaged else ''}"
        )
    notes = [*filter(None, [unlike_paper(benchmark)]), *find_missing(frame)]
    if untimed := sum(not record.timed for record in kept):
        notes.insert(
            0,
            f"{untimed} of {len(kept)} trials ran with timed: false: their seconds are no measurement, and not to be "
            "compared.",
        )
    if unused := len(records) - len(kept) - held:
        notes.insert(0, f"{unused} of {len(records)} records are not asked for by benchmark.json, and not shown.")
    if left:
        where = [f"{method} {c.dataset} {c.backbone} {c.prior} N = {c.n} seed {c.seed}" for method, c in left]
        more = f"; and {len(where) - MOST_NAMED} more" if len(where) > MOST_NAMED else ""
        notes.insert(
            0, f"Unfinished, {sum(left.values())} trials left, and not shown: {'; '.join(where[:MOST_NAMED])}{more}."
        )
    about = [f"{len(records)} trials: {', '.join(f'{count} {status}' for status, count in counts.most_common())}."]
    about += [*_hardware(records), _versions(records)]
    about += [single_line(run["account"]) for run in store.runs(damaged) if "account" in run]
    damaged += [
        f"failed: {record.describe_failure()}; not counted and never chosen: let `run` try again"
        for record in kept
        if record.status == "failed"
    ]
    config = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    return Results(label, benchmark.name, frame, damaged, notes, about, config, unfinished=sum(left.values()))


def from_published(pairs: Sequence[tuple[Path, Path]], label: str = "") -> Results:
    """The authors' result files, pairs of (tuned, retrained), a pair for each dataset. A pair that cannot be read is
    left out where another can.

    Raises:
        ValueError: as `read_published` does, where no pair can be read.
    """
    frames: dict[str, pd.DataFrame] = {}
    left_out, about = [], []
    notes = ["The published files hold no runs of the DE ELBo: what is shown of it is as the paper prints it."]
    for tuned, retrained in pairs:
        try:
            frame, problems, remarks = read_published(tuned, retrained, source=label)
            if (name := str(frame["dataset"].iloc[0])) in frames:
                raise ValueError(f"{tuned}: there is another pair of files for {name}: report them apart")
        except ValueError as error:
            left_out.append(single_line(error))
            continue
        frames[name] = frame
        left_out += problems
        notes += remarks
        about.append(f"{tuned.name}, {retrained.name}: {len(frame)} runs.")
    if not frames:
        raise ValueError(left_out[0])
    frame = pd.concat(frames.values(), ignore_index=True)
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())
    about.append(f"{len(frame)} runs: {counts}. Their times are those of training steps alone, on one A100.")
    about.append("The files name no backbone: they are taken as the paper's, ResNet-50.")
    return Results(label, "published results", frame, left_out, [*notes, *find_missing(frame)], about, published=True)


def gather(storages: Sequence[str], pairs: Sequence[tuple[Path, Path]]) -> tuple[list[Results], list[str]]:
    """All that can be read of several origins, side by side; and a line for each that cannot be read at all.

    Raises:
        ValueError: nothing can be read, or a storage is given twice.
    """
    stores = [RecordStore(storage) for storage in storages]
    urls = [os.path.realpath(store.url) if store.local else store.url for store in stores]
    names = labels(urls + ["published"] * bool(pairs))
    if len(names) == 1:
        names = [""]
    found, failed = [], []
    for store, label in zip(stores, names, strict=False):
        try:
            found.append(from_storage(store, label))
        except (ValueError, OSError, ImportError) as error:  # ImportError: fsspec's word for a URL that it cannot open
            failed.append(single_line(error))
    if pairs:
        try:
            found.append(from_published(pairs, names[-1]))
        except ValueError as error:
            failed.append(single_line(error))
    if not found:
        raise ValueError(failed[0])
    return found, failed


def labels(storages: Sequence[str]) -> list[str]:
    """A short name for each storage: as much of the end of its path as tells it from the others."""
    parts = [storage.rstrip("/").split("/") for storage in storages]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a storage is given twice: {', '.join(storages)}: give each once")


def _hardware(records: Sequence[TrialRecord]) -> list[str]:
    """What the trials ran on, a line for each kind of machine; nodes are counted, not named."""
    kinds: dict[str, list[TrialRecord]] = {}
    for record in records:
        facts = record.hardware
        words = [str(facts[name]) for name in ("gpu", "cpu") if name in facts] or [str(facts.get("device", "unknown"))]
        words += [f"{facts['threads']} thread{'s' * (facts['threads'] != 1)} a trial"] if "threads" in facts else []
        kinds.setdefault(", ".join(words), []).append(record)
    lines = []
    for kind, group in kinds.items():
        nodes = len({str(record.hardware.get("node")) for record in group})
        slots = sorted({record.concurrency for record in group})
        first, last = (np.datetime64(int(when), "s") for when in _span(group))
        at_once = "-".join(map(str, dict.fromkeys((slots[0], slots[-1]))))
        lines.append(
            f"{kind}: {len(group)} trials on {nodes} node{'s' * (nodes != 1)}, at most {at_once} at once, "
            f"{str(first).replace('T', ' ')} to {str(last).replace('T', ' ')} UTC."
        )
    return lines


def _span(records: Sequence[TrialRecord]) -> tuple[float, float]:
    return min(record.started for record in records), max(record.finished for record in records)


def _versions(records: Sequence[TrialRecord]) -> str:
    """Versions of what touched the results; several of one are all named."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        for name, version in record.versions.items():
            found.setdefault(name, Counter())[str(version)] += 1
    words = [
        f"{name} "
        + (next(iter(counts)) if len(counts) == 1 else " and ".join(f"{v} ({c} trials)" for v, c in counts.items()))
        for name, counts in found.items()
    ]
    return f"Versions: {', '.join(words)}." if words else "Versions were not kept."
