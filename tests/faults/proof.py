"""Checks of what must hold after a fault; each raises AssertionError with what was violated."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from bench.config.loading import parse_benchmark
from bench.results.configurations import selected_trials
from bench.storage.records import RecordStore
from bench.tracking.conversion import round_digits, run_content
from bench.tracking.runs import CHOSEN, COST
from bench.trials.record import TrialRecord

Point = tuple[str, float, int, int]


def same_results(storage: Path, reference: Path, seeds: int) -> int:
    """The storage has the records that the undisturbed one has for those seeds, to the last bit; how many."""
    found, expected = _results(storage), _results(reference)
    wanted = {1001 + 1000 * i for i in range(seeds)}
    expected = {key: result for key, result in expected.items() if result["spec"]["seed"] in wanted}
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"{len(missing)} of {len(expected)} trials have no record"
    assert not more, f"{len(more)} records that the undisturbed run has not"
    other = [key for key in expected if found[key] != expected[key]]
    assert not other, f"{len(other)} records differ from the undisturbed run's, the first {other[0]}"
    return len(found)


def _results(storage: Path) -> dict[str, dict[str, Any]]:
    """Each trial's outcome by key: all but seconds and machines. JSON has every digit of a float."""
    results = {}
    for file in (storage / "records").glob("*.json"):
        record = json.loads(file.read_text())
        rows = json.loads((storage / "series" / file.name).read_text())
        series = [{name: value for name, value in row.items() if name != "train_seconds"} for row in rows]
        parts = {name: record[name] for name in ("spec", "status", "metrics", "state")}
        results[file.stem] = parts | {"series": series}
    return results


def contents(storage: Path) -> dict[str, bytes]:
    """Every record and series, byte for byte; only those series that have a record."""
    names = [file.name for file in (storage / "records").glob("*.json")]
    files = [storage / folder / name for folder in ("records", "series") for name in names]
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def unchanged(before: dict[str, bytes], storage: Path) -> int:
    """Check that files are the same byte for byte, so no finished trial ran again; return their number."""
    after = contents(storage)
    changed = [name for name, content in before.items() if after.get(name) != content]
    assert not changed, f"{len(changed)} of {len(before)} files changed or went, the first {changed[0]}"
    return len(before)


def attempts(storage: Path) -> tuple[int, int, float]:
    """Count the trials with more than one attempt, the failed attempts, and the seconds of these.

    Each record must say what the files in ``attempts`` say.
    """
    again, vain, lost = 0, 0, 0.0
    for file in (storage / "records").glob("*.json"):
        record = json.loads(file.read_text())
        earlier = record["attempt"] - 1
        notes = [storage / "attempts" / f"{file.stem}.{number + 1}.json" for number in range(earlier)]
        moments = [json.loads(note.read_text()) for note in notes]
        assert all("ended" in moment for moment in moments), f"an attempt at {file.stem} was never closed"
        seconds = sum(max(moment["ended"] - moment["started"], 0) for moment in moments)
        assert abs(record["lost_seconds"] - seconds) < 1e-6, (
            f"{file.stem}: lost_seconds {record['lost_seconds']}, its attempts say {seconds}"
        )
        again, vain, lost = again + (earlier > 0), vain + earlier, lost + seconds
    return again, vain, lost


def mlflow_runs(database: Path, storage: Path) -> list[tuple[str, str, str]]:
    """Read a storage's MLflow runs: id, status, and key of the trial ("" for the benchmark's run)."""
    words = """
        select runs.run_uuid, runs.status, coalesce(key.value, '')
        from runs
        join tags as place on place.run_uuid = runs.run_uuid and place.key = 'deelbo.storage_id' and place.value = ?
        left join tags as key on key.run_uuid = runs.run_uuid and key.key = 'deelbo.key'
        where runs.lifecycle_stage = 'active'
    """
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return list(connection.execute(words, ((storage / "id").read_text(),)))


def in_mlflow(database: Path, storage: Path) -> int:
    """Check that each record is one FINISHED run with every point once, and choices are marked; count the points."""
    runs = mlflow_runs(database, storage)
    keys = {file.stem for file in (storage / "records").glob("*.json")}
    counts = Counter(key for _, _, key in runs)
    assert counts == Counter({"": 1} | dict.fromkeys(keys, 1)), (
        f"{len(runs)} runs in MLflow for {len(keys)} records: {len(keys - counts.keys())} missing, "
        f"{len(counts.keys() - keys - {''})} of no record, {sum(n > 1 for n in counts.values())} more than once, "
        f"{counts['']} of the benchmark"
    )
    states = Counter(status for _, status, _ in runs)
    assert set(states) == {"FINISHED"}, f"runs in MLflow are {dict(states)}"
    store, total = RecordStore(str(storage)), 0
    costs = selected_trials(parse_benchmark(store.read_benchmark() or {}, "benchmark.json"), list(store.records()))
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for run, _, key in runs:
            found = Counter(
                connection.execute("select key, value, timestamp, step from metrics where run_uuid = ?", (run,))
            )
            if not key:
                assert all(name in ("wall_seconds", "busy", "slots") for name, *_ in found), f"{found}"
                continue
            record = TrialRecord.from_json((storage / "records" / f"{key}.json").read_text())
            rows = json.loads((storage / "series" / f"{key}.json").read_text())
            series = [{name: float(value) for name, value in row.items()} for row in rows]
            expected = Counter[Point](run_content(record, series).metrics)
            marks = sorted((when, value) for name, value, when, _ in found if name == COST)  # anew, where it changed
            marked = connection.execute("select 1 from tags where run_uuid = ? and key = ?", (run, CHOSEN)).fetchone()
            cost = marks[-1][1] if marked and marks else None
            right = round_digits(costs[key]) if key in costs else None
            assert cost == right, f"{key} is marked as chosen at {cost} s in MLflow, by the records at {right}"
            found = Counter({point: count for point, count in found.items() if point[0] != COST})
            wrong = (expected - found).total(), (found - expected).total()
            assert wrong == (0, 0), f"metrics of {key} in MLflow: {wrong[0]} points missing, {wrong[1]} too many"
            total += found.total()
    return total
