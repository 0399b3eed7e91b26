"""Table 2 and table 3: by hand on small results, and against the papers' own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.config import parse_benchmark
from bench.records import COLUMNS, frame_of
from bench.tables import for_people, markdown, table2, table3
from bench.trials import TrialRecord

Fake = Callable[..., TrialRecord]
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "published"
ROW: dict[str, Any] = {"dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100, "status": "completed"}


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Results in the schema of the records, from the few columns that matter."""
    filled = [dict.fromkeys(COLUMNS) | ROW | {"key": str(i)} | row for i, row in enumerate(rows)]
    frame = pd.DataFrame(filled)
    for name, kind in COLUMNS.items():
        frame[name] = frame[name].astype("object" if kind == "str" else "float64")
    return frame.astype({"n": "int64", "seed": "int64"})


def tune(seed: int, rate: float, nll: float, seconds: float, **more: Any) -> dict[str, Any]:
    shared = {"method": "map-gs", "stage": "tune", "seed": seed, "learning_rate": rate}
    return shared | {"val_nll": nll, "train_seconds": seconds, **more}


def retrain(seed: int, rate: float, accuracy: float, seconds: float, **more: Any) -> dict[str, Any]:
    shared = {"method": "map-gs", "stage": "retrain", "seed": seed, "learning_rate": rate}
    return shared | {"test_acc": accuracy, "train_seconds": seconds, **more}


def single(seed: int, rate: float, objective: float, accuracy: float, **more: Any) -> dict[str, Any]:
    shared = {"method": "de-elbo", "stage": "run", "seed": seed, "learning_rate": rate}
    return shared | {"objective": objective, "test_acc": accuracy, "train_seconds": 5.0, **more}


SMALL = results(
    tune(1, 0.1, 2.0, 10, evaluate_seconds=1),
    tune(1, 0.2, 1.0, 20, evaluate_seconds=2),
    tune(1, 0.3, 3.0, 30, evaluate_seconds=3),
    retrain(1, 0.2, 0.8, 25, evaluate_seconds=4),
    tune(2, 0.1, 1.0, 10),
    tune(2, 0.2, 2.0, 20),
    retrain(2, 0.1, 0.9, 15),
    single(1, 0.1, -1.0, 0.7, select_seconds=6),
    single(1, 0.2, -2.0, 0.6, select_seconds=6),
)


def test_table2_counts_all_runs_and_the_best_retraining() -> None:
    """Total = all tuning runs + the retraining of the best; the mean is of the runs that are judged."""
    table = table2(SMALL)
    contract = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds"]
    assert list(table.columns)[:7] == contract
    assert table[contract].to_numpy().tolist() == [
        ["l2-sp", "map-gs", 100, 1, 20.0, 3, 60.0 + 25.0],
        ["l2-sp", "map-gs", 100, 2, 15.0, 2, 30.0 + 15.0],
        ["l2-sp", "de-elbo", 100, 1, 5.0, 2, 10.0],
    ]


def test_table2_shows_the_full_cost_too() -> None:
    """The full total adds validation of MAP + GS and the posterior passes of DE ELBo; it is missing where not kept."""
    np.testing.assert_equal(table2(SMALL)["total_seconds_full"].to_numpy(), [60 + 6 + 25 + 4, np.nan, 10 + 12])


def test_every_retrained_run_counts_once_at_most() -> None:
    """Retraining configurations that did not win costs the method nothing."""
    more = pd.concat([SMALL, results(retrain(1, 0.1, 0.1, 1000))], ignore_index=True)
    assert table2(more)["total_seconds"].tolist() == table2(SMALL)["total_seconds"].tolist()


def test_table3_is_percent_over_splits() -> None:
    """Mean, least and most test accuracy of what each method chose, in percent, and over how many splits."""
    table = table3(SMALL)
    assert list(table.columns)[:6] == ["prior", "method", "n", "mean", "min", "max"]
    grid, de_elbo = table.to_dict("records")
    assert (grid["mean"], grid["min"], grid["max"], grid["seeds"]) == (pytest.approx(85), 80, 90, 2)
    assert (de_elbo["mean"], de_elbo["min"], de_elbo["max"], de_elbo["seeds"]) == (60, 60, 60, 1)


def test_a_choice_without_its_test_is_left_open() -> None:
    """Where the best configuration was not retrained yet, table 2 has no total and table 3 no such split."""
    frame = SMALL[~((SMALL["seed"] == 1) & (SMALL["stage"] == "retrain"))]
    assert np.isnan(table2(frame)["total_seconds"][0])
    assert table2(frame)["mean_run_seconds"][0] == 20
    grid = table3(frame).iloc[0]
    assert (grid["mean"], grid["seeds"]) == (90, 1)


def test_rows_are_in_the_papers_order(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """By N, then L2-zero, L2-SP, PTYL, and in each MAP + GS, DE ELBo, ELBo."""
    content |= {"priors": ["ptyl", "l2-sp", "l2-zero"], "n": [1000, 100]}
    table = table3(frame_of(play(parse_benchmark(content, "x"), fake)))
    methods, priors = ["map-gs", "de-elbo", "elbo"], ["l2-zero", "l2-sp", "ptyl"]
    expected = [[n, prior, method] for n in (100, 1000) for prior in priors for method in methods]
    assert table[["n", "prior", "method"]].to_numpy().tolist() == expected


def test_people_read_the_papers_names() -> None:
    """For people the names are those of the papers, accuracies have one decimal, and what is missing is a dash."""
    frame = SMALL[~((SMALL["seed"] == 1) & (SMALL["stage"] == "retrain"))]
    assert "| L2-SP | MAP + GS | 100 | 90.0 | 90.0 | 90.0 |" in markdown(table3(frame))
    rows = for_people(table2(frame)).astype(str).to_numpy().tolist()
    assert rows[0][:7] == ["L2-SP", "MAP + GS", "100", "1", "20.0", "3", "-"]


def test_markdown_is_a_table() -> None:
    """Every line of the Markdown has a cell for every column, and there is a line for every row."""
    lines = markdown(table2(SMALL)).splitlines()
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {len(table2(SMALL).columns) + 1}


def test_no_results_give_no_rows() -> None:
    """Tables of nothing are empty, with their columns."""
    assert table2(frame_of([])).empty
    assert list(table3(frame_of([])).columns)[:6] == ["prior", "method", "n", "mean", "min", "max"]


def test_published_numbers_come_out() -> None:
    """From the published CIFAR-10 runs, L2-SP at N = 50000: 39 min 11 s a run, and 16 h 15 min 55 s in all."""
    files = {stage: PUBLISHED / f"{stage}_CIFAR-10.csv" for stage in ("tuned", "retrained")}
    if not all(file.exists() for file in files.values()):
        pytest.skip(f"{PUBLISHED} is not here")
    rows = []
    for stage, make in (("tuned", tune), ("retrained", retrain)):
        runs = pd.read_csv(files[stage])
        runs = runs[(runs["method"] == "l2-sp") & (runs["n"] == 50000) & (runs["random_state"] == 1001)]
        assert len(runs) == 24
        for run in runs.to_dict("records"):
            fields = dict(word.split("=") for word in run["model_name"].split("_") if "=" in word and word[0] != "n")
            settings = {"weight_decay": float(fields["tau"]), "head_weight_decay": float(fields["tau"])}
            judged = run["val_nll" if make is tune else "test_acc"]
            rows.append(make(1001, float(fields["0"]), judged, run["runtime"], **settings))
    (row,) = table2(results(*rows)).to_dict("records")
    assert row["num_runs"] == 24
    assert round(row["mean_run_seconds"]) == 39 * 60 + 11
    assert round(row["total_seconds"]) == 16 * 3600 + 15 * 60 + 55
