"""Results to report: the records of a storage, or the authors' files, as a table of trials with remarks."""

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
from bench.results.paper import describe_differences_to_paper
from bench.results.published import read_published
from bench.scheduling.queue import FinishedCells, split_finished
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.utils.text import describe_denied, single_line

MAX_CELLS_NAMED = 20


@dataclass(frozen=True)
class Results:
    """Results of one source: its trials in the columns of `bench.results.frame.COLUMNS`, and remarks, a line each.

    ``label`` is its name in reports of several sources, ``title`` its name alone; ``left_out`` is input that could not
    be used, ``notes`` results that are missing, ``about`` what ran; ``config`` is the configuration as YAML, or empty;
    ``published`` is True for the paper's own files; ``unfinished`` counts the trials that remain to run.
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


def load_storage(store: RecordStore, label: str = "") -> Results:
    """Load the cells of a storage that a method has finished: half a grid is not the result of a grid.

    Raises:
        RecordError: the storage holds no benchmark, or no trial that could be reported.
    """
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished or interrupted `run`")
    left_out: list[str] = []
    records = list(store.records(left_out))
    benchmark = parse_benchmark(content, store.path("benchmark.json"))
    finished = split_finished(make_methods(benchmark), records)
    frame = to_frame(finished.records, label, records)
    counts = Counter(record.status for record in records)
    unfinished = sum(finished.remaining.values())
    if not frame["status"].isin(["completed", "diverged"]).any():
        raise RecordError(
            f"{store.url}: no method can be reported yet ({len(records)} trials have a record, "
            f"{counts['failed']} of them failed, {unfinished} are left): let `run` go on"
            f"{f'; {left_out[0]}' if left_out else ''}"
        )
    about = [f"{len(records)} trials: {', '.join(f'{count} {status}' for status, count in counts.most_common())}."]
    about += [*_describe_hardware(records), _describe_versions(records)]
    about += [single_line(run["account"]) for run in store.runs(left_out) if "account" in run]
    left_out += [
        f"failed: {record.describe_failure()}; not counted and never chosen: let `run` try again"
        for record in finished.records
        if record.status == "failed"
    ]
    return Results(
        label,
        benchmark.name,
        frame,
        left_out,
        [
            *_describe_unused_records(records, finished),
            *filter(None, [describe_differences_to_paper(benchmark)]),
            *find_missing(frame),
        ],
        about,
        yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100),
        unfinished=unfinished,
    )


def load_published(groups: Sequence[Sequence[Path]], label: str = "") -> Results:
    """Load the authors' result files, each group as `read_published` takes it; unreadable groups are left out."""
    frames: dict[tuple[str, int], pd.DataFrame] = {}
    left_out, about = [], []
    notes = ["The published files hold no runs of the DE ELBo: what is shown of it is as the paper prints it."]
    for files in groups:
        names = ", ".join(path.name for path in files)
        try:
            frame, problems, remarks = read_published(*files, source=label)
            place = " with ".join(frame[["dataset", "backbone"]].iloc[0])
            if (place, len(files)) in frames:
                raise ValueError(f"{names}: other files are of {place}, too: report them apart")
        except ValueError as error:
            left_out.append(single_line(error))
            continue
        frames[place, len(files)] = frame
        left_out += problems
        notes += remarks
        about.append(f"{names}: {len(frame)} runs.")
    if not frames:
        raise ValueError(left_out[0])
    frame = pd.concat(frames.values(), ignore_index=True)
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())
    about.append(f"{len(frame)} runs: {counts}. Their times are those of training steps alone, on the authors' GPUs.")
    return Results(label, "published results", frame, left_out, [*notes, *find_missing(frame)], about, published=True)


def load_results(storages: Sequence[str], published: Sequence[Sequence[Path]]) -> tuple[list[Results], list[str]]:
    """Load storages and published files to show side by side, and a line for each that cannot be read at all.

    Raises:
        ValueError: no source can be read, or a storage is given twice.
    """
    stores = [RecordStore(storage) for storage in storages]
    urls = [os.path.realpath(store.url) if store.local else store.url for store in stores]
    names = label_sources(urls + ["published"] * bool(published))
    if len(names) == 1:
        names = [""]
    results, failed = [], []
    for store, label in zip(stores, names, strict=False):
        try:
            results.append(load_storage(store, label))
        except (ValueError, OSError, ImportError) as error:  # fsspec raises ImportError for a URL without a driver
            failed.append(describe_denied(error) or single_line(error))
    if published:
        try:
            results.append(load_published(published, names[-1]))
        except ValueError as error:
            failed.append(single_line(error))
    if not results:
        raise ValueError(failed[0])
    return results, failed


def label_sources(urls: Sequence[str]) -> list[str]:
    """Return short unique names: as much of the end of each path as distinguishes it from the others."""
    parts = [url.rstrip("/").split("/") for url in urls]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a storage is given twice: {', '.join(urls)}: give each once")


def _describe_unused_records(records: Sequence[TrialRecord], finished: FinishedCells) -> list[str]:
    """Describe cells that are not finished, records of other trials, and seconds that were not measured."""
    lines = []
    if finished.remaining:
        cells = [
            f"{method} {c.dataset} {c.backbone} {c.prior} N = {c.n} seed {c.seed}" for method, c in finished.remaining
        ]
        more = f"; and {len(cells) - MAX_CELLS_NAMED} more" if len(cells) > MAX_CELLS_NAMED else ""
        count, named = sum(finished.remaining.values()), "; ".join(cells[:MAX_CELLS_NAMED])
        lines.append(f"Unfinished, {count} trials left, and not shown: {named}{more}.")
    shown = finished.records
    if unused := len(records) - len(shown) - finished.num_unfinished_records:
        lines.append(f"{unused} of {len(records)} records are not asked for by benchmark.json, and not shown.")
    if untimed := sum(not record.timed for record in shown):
        lines.append(
            f"{untimed} of {len(shown)} trials ran with timed: false: their seconds are not measurements and cannot be "
            "compared."
        )
    return lines


def _describe_hardware(records: Sequence[TrialRecord]) -> list[str]:
    """Describe the machines of the trials, a line for each kind; nodes are counted, not named."""
    kinds: dict[str, list[TrialRecord]] = {}
    for record in records:
        facts = record.hardware
        names = [str(facts[name]) for name in ("gpu", "cpu") if name in facts] or [str(facts.get("device", "unknown"))]
        names += [f"{facts['threads']} thread{'s' * (facts['threads'] != 1)} a trial"] if "threads" in facts else []
        kinds.setdefault(", ".join(names), []).append(record)
    lines = []
    for kind, group in kinds.items():
        nodes = len({str(record.hardware.get("node")) for record in group})
        slots = [record.concurrency for record in group]
        at_once = "-".join(dict.fromkeys(map(str, (min(slots), max(slots)))))
        span = min(record.started for record in group), max(record.finished for record in group)
        first, last = (str(np.datetime64(int(when), "s")).replace("T", " ") for when in span)
        lines.append(
            f"{kind}: {len(group)} trials on {nodes} node{'s' * (nodes != 1)}, at most {at_once} at once, "
            f"{first} to {last} UTC."
        )
    return lines


def _describe_versions(records: Sequence[TrialRecord]) -> str:
    """Describe the versions of software that the trials used; if there are several, all with their counts."""
    versions: dict[str, Counter[str]] = {}
    for record in records:
        for name, version in record.versions.items():
            versions.setdefault(name, Counter())[str(version)] += 1
    names = []
    for name, counts in versions.items():
        several = [f"{version} ({count} trials)" if len(counts) > 1 else version for version, count in counts.items()]
        names.append(f"{name} {' and '.join(several)}")
    return f"Versions: {', '.join(names)}." if names else "Versions were not recorded."
