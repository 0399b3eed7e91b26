"""Table 2 and table 3: by hand on small results, and against the papers' own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.config.loading import parse_benchmark
from bench.results.frame import COLUMNS, to_frame
from bench.results.paper import TABLE2, TABLE3
from bench.results.tables import compute_table2, compute_table3
from bench.trials.record import TrialRecord
from tests.helpers.result_frames import overview

Fake = Callable[..., TrialRecord]
PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "published"
ROW: dict[str, Any] = {"source": "", "dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100, "status": "completed"}


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
    table = compute_table2(SMALL)
    contract = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds"]
    assert list(table.columns)[:7] == contract
    assert table[contract].to_numpy().tolist() == [
        ["l2-sp", "map-gs", 100, 1, 20.0, 3, 60.0 + 25.0],
        ["l2-sp", "map-gs", 100, 2, 15.0, 2, 30.0 + 15.0],
        ["l2-sp", "de-elbo", 100, 1, 5.0, 2, 10.0],
    ]


def test_table2_shows_the_full_cost_too() -> None:
    """The full total adds validation of MAP + GS and the posterior passes of DE ELBo; it is missing where not kept."""
    np.testing.assert_equal(compute_table2(SMALL)["total_seconds_full"].to_numpy(), [60 + 6 + 25 + 4, np.nan, 10 + 12])


def test_every_retrained_run_counts_once_at_most() -> None:
    """Retraining configurations that did not win costs the method nothing."""
    more = pd.concat([SMALL, results(retrain(1, 0.1, 0.1, 1000))], ignore_index=True)
    assert compute_table2(more)["total_seconds"].tolist() == compute_table2(SMALL)["total_seconds"].tolist()


def test_table3_is_percent_over_splits() -> None:
    """Mean, least and most test accuracy of what each method chose, in percent, and over how many splits."""
    table = compute_table3(SMALL)
    assert list(table.columns)[:6] == ["prior", "method", "n", "mean", "min", "max"]
    grid, de_elbo = table.to_dict("records")
    assert (grid["mean"], grid["min"], grid["max"], grid["seeds"]) == (pytest.approx(85), 80, 90, 2)
    assert (de_elbo["mean"], de_elbo["min"], de_elbo["max"], de_elbo["seeds"]) == (60, 60, 60, 1)


def test_a_choice_without_its_test_is_left_open() -> None:
    """Where the best configuration was not retrained yet, table 2 has no total and table 3 no such split."""
    frame = SMALL[~((SMALL["seed"] == 1) & (SMALL["stage"] == "retrain"))]
    assert np.isnan(compute_table2(frame)["total_seconds"][0])
    assert compute_table2(frame)["mean_run_seconds"][0] == 20
    grid = compute_table3(frame).iloc[0]
    assert (grid["mean"], grid["seeds"]) == (90, 1)


def test_rows_are_in_the_papers_order(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """By N, then L2-zero, L2-SP, PTYL, and in each MAP + GS, DE ELBo, ELBo."""
    content |= {"priors": ["ptyl", "l2-sp", "l2-zero"], "n": [1000, 100]}
    table = compute_table3(to_frame(play(parse_benchmark(content, "x"), fake)))
    methods, priors = ["map-gs", "de-elbo", "elbo"], ["l2-zero", "l2-sp", "ptyl"]
    expected = [[n, prior, method] for n in (100, 1000) for prior in priors for method in methods]
    assert table[["n", "prior", "method"]].to_numpy().tolist() == expected


def test_no_results_give_no_rows() -> None:
    """Tables of nothing are empty, with their columns."""
    nothing = to_frame([])
    assert compute_table2(nothing).empty
    assert list(compute_table3(nothing).columns)[:6] == ["prior", "method", "n", "mean", "min", "max"]
    assert overview(nothing, {""}).empty


def paper(*rows: dict[str, Any], **where: Any) -> pd.DataFrame:
    """Results in a cell of the paper, or elsewhere."""
    cell = {"dataset": "CIFAR-10", "backbone": "resnet50", "n": 50000} | where
    return results(*(row | cell for row in rows))


GRID = (tune(1001, 0.1, 1.0, 10), retrain(1001, 0.1, 0.8, 15))


def test_published_numbers_stand_beside_ours() -> None:
    """In a cell that the paper has, its run, runs, total, mean, least and most stand in the same row."""
    (second,) = compute_table2(paper(*GRID)).to_dict("records")
    names = ["total_seconds", "published_run_seconds", "published_runs", "published_total_seconds"]
    assert [second[name] for name in names] == [25, 39 * 60 + 11, 24, 16 * 3600 + 15 * 60]
    (third,) = compute_table3(paper(*GRID)).to_dict("records")
    names = ["mean", "published_mean", "published_min", "published_max"]
    assert [third[name] for name in names] == [80, 97.1, 97.0, 97.1]


@pytest.mark.parametrize(
    "where",
    [{"backbone": "vit-b-16"}, {"dataset": "Oxford-IIIT_Pet"}, {"dataset": "cifar-10"}, {"n": 500}],
    ids=lambda where: next(iter(where)),
)
def test_published_numbers_are_of_their_cells_alone(where: dict[str, Any]) -> None:
    """Another backbone, dataset or N has no published numbers beside it, and the columns are there all the same."""
    frame = paper(*GRID, **where)
    for table in (compute_table2(frame), compute_table3(frame)):
        printed = [name for name in table.columns if name.startswith("published_")]
        assert len(printed) == 3
        assert table[printed].isna().all(axis=None)


def test_the_papers_times_are_of_its_split() -> None:
    """Table 2 of the paper is of split 1001: another split has no published time, and its published accuracy."""
    frame = paper(tune(2001, 0.1, 1.0, 10), retrain(2001, 0.1, 0.8, 15))
    assert compute_table2(frame)["published_run_seconds"].isna().all()
    assert compute_table3(frame)["published_mean"].tolist() == [97.1]


def shown(frame: pd.DataFrame, published: Any = ("",)) -> list[dict[str, Any]]:
    return list(overview(frame, published).to_dict("records"))


def test_the_overview_has_the_papers_de_elbo_where_a_grid_has_none() -> None:
    """Beside a grid without a DE ELBo stands a row of published numbers alone; ours are missing in it."""
    grid, printed = shown(paper(*GRID))
    assert (grid["method"], grid["mean"], grid["total_seconds"]) == ("map-gs", 80, 25)
    assert (printed["method"], printed["prior"], printed["n"]) == ("de-elbo", "l2-sp", 50000)
    assert (printed["published_mean"], printed["published_total_seconds"]) == (96.8, 2 * 3600 + 36 * 60)
    assert np.isnan([printed[name] for name in ("mean", "min", "max", "seeds", "total_seconds")]).all()


def test_the_overview_adds_nothing_elsewhere() -> None:
    """No row is added where the DE ELBo was run, where the cell is not the paper's, where there is no grid, or beside
    runs of one's own: seconds of two machines make no ratio."""
    assert [row["method"] for row in shown(paper(*GRID), published=())] == ["map-gs"]
    ours = single(1001, 0.1, -1.0, 0.7)
    assert [row["method"] for row in shown(paper(*GRID, ours))] == ["map-gs", "de-elbo"]
    assert [row["method"] for row in shown(paper(*GRID, backbone="vit-b-16"))] == ["map-gs"]
    assert [row["method"] for row in shown(paper(ours))] == ["de-elbo"]
    assert [row["method"] for row in shown(paper(GRID[0]))] == []
    plain = single(1001, 0.1, -1.0, 0.7, method="elbo")
    assert [row["method"] for row in shown(paper(plain))] == ["elbo"]
    assert [row["method"] for row in shown(paper(*GRID, plain))] == ["map-gs", "de-elbo", "elbo"]


def test_the_overview_tells_sources_apart() -> None:
    """Of published sources with the same grid, the one without a DE ELBo alone gets the paper's; other sources do
    not."""
    frame = pd.concat(
        [
            paper(*GRID, source="a"),
            paper(*GRID, single(1001, 0.1, -1.0, 0.7), source="b"),
            paper(*GRID, source="mine"),
        ],
        ignore_index=True,
    )
    rows = {(row["source"], row["method"]): row["mean"] for row in shown(frame, {"a", "b"})}
    assert set(rows) == {("mine", "map-gs"), *((source, method) for source in "ab" for method in ("map-gs", "de-elbo"))}
    assert np.isnan(rows["a", "de-elbo"])
    assert rows["b", "de-elbo"] == 70


def test_the_overview_means_totals_over_splits() -> None:
    """Its total is the mean over splits of table 2's."""
    rows = {row["method"]: row["total_seconds"] for row in shown(SMALL)}
    assert rows == {"map-gs": ((60 + 25) + (30 + 15)) / 2, "de-elbo": 10}


def test_the_overview_counts_lost_runs() -> None:
    """How many of a method's runs diverged, and how many failed, in all splits and stages."""
    more = results(
        tune(1, 0.4, np.nan, 5, status="diverged"),
        tune(2, 0.4, np.nan, 5, status="diverged"),
        single(1, 0.4, np.nan, 0.1, status="failed"),
    )
    lost = {
        row["method"]: (row["diverged"], row["failed"]) for row in shown(pd.concat([SMALL, more], ignore_index=True))
    }
    assert lost == {"map-gs": (2, 0), "de-elbo": (0, 1)}


def test_the_papers_tables_are_whole() -> None:
    """Table 2 has four rows; table 3 has six methods at four N, none twice, each mean between its least and most."""
    assert len(TABLE2) == 4
    assert len(TABLE3) == 6 * 4
    assert not TABLE3.duplicated(["prior", "method", "n"]).any()
    assert (TABLE3["published_min"] <= TABLE3["published_mean"]).all()
    assert (TABLE3["published_mean"] <= TABLE3["published_max"]).all()


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
    (row,) = compute_table2(results(*rows)).to_dict("records")
    assert row["num_runs"] == 24
    assert round(row["mean_run_seconds"]) == 39 * 60 + 11
    assert round(row["total_seconds"]) == 16 * 3600 + 15 * 60 + 55
