"""Table 2, table 3 and the overview of the page, by hand on small results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.config.loading import parse_benchmark
from bench.results.frame import to_frame
from bench.results.tables import compute_table2, compute_table3
from bench.trials.record import TrialRecord
from tests.helpers.result_frames import make_frame, overview, trial

Fake = Callable[..., TrialRecord]
UNRECORDED = dict.fromkeys(("evaluate_seconds", "select_seconds", "adapt_seconds"))


def tune(seed: int, rate: float, nll: float, seconds: float, **more: Any) -> dict[str, Any]:
    return trial("map-gs", "tune", nll, seconds, seed=seed, learning_rate=rate) | UNRECORDED | more


def retrain(seed: int, rate: float, accuracy: float, seconds: float, **more: Any) -> dict[str, Any]:
    return trial("map-gs", "retrain", accuracy, seconds, seed=seed, learning_rate=rate) | UNRECORDED | more


def single(seed: int, rate: float, objective: float, accuracy: float, **more: Any) -> dict[str, Any]:
    run = trial("de-elbo", "run", objective, 5.0, seed=seed, learning_rate=rate, test_acc=accuracy)
    return run | UNRECORDED | more


SMALL = make_frame(
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
    """The total is that of all tuning runs and the retraining of the best; the mean is of tuning runs."""
    table = compute_table2(SMALL)
    contract = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds"]
    assert list(table.columns)[:7] == contract
    assert table[contract].to_numpy().tolist() == [
        ["l2-sp", "map-gs", 100, 1, 20.0, 3, 60.0 + 25.0],
        ["l2-sp", "map-gs", 100, 2, 15.0, 2, 30.0 + 15.0],
        ["l2-sp", "de-elbo", 100, 1, 5.0, 2, 10.0],
    ]


def test_table2_has_the_full_cost() -> None:
    """It adds validation of MAP + GS and selection of the DE ELBo, and is missing where not recorded."""
    np.testing.assert_equal(compute_table2(SMALL)["total_seconds_full"].to_numpy(), [60 + 6 + 25 + 4, np.nan, 10 + 12])


def test_other_retrained_runs_do_not_count() -> None:
    """Retraining configurations that are not the best costs the method nothing."""
    more = pd.concat([SMALL, make_frame(retrain(1, 0.1, 0.1, 1000))], ignore_index=True)
    assert compute_table2(more)["total_seconds"].tolist() == compute_table2(SMALL)["total_seconds"].tolist()


def test_table3_is_percent_over_splits() -> None:
    """It has mean, minimum and maximum test accuracy in percent, and the number of splits."""
    table = compute_table3(SMALL)
    assert list(table.columns)[:6] == ["prior", "method", "n", "mean", "min", "max"]
    grid, de_elbo = table.to_dict("records")
    assert (grid["mean"], grid["min"], grid["max"], grid["seeds"]) == (pytest.approx(85), 80, 90, 2)
    assert (de_elbo["mean"], de_elbo["min"], de_elbo["max"], de_elbo["seeds"]) == (60, 60, 60, 1)


def test_a_best_configuration_without_retraining() -> None:
    """Table 2 has no total for it, and table 3 no such split."""
    frame = SMALL[~((SMALL["seed"] == 1) & (SMALL["stage"] == "retrain"))]
    assert np.isnan(compute_table2(frame)["total_seconds"][0])
    assert compute_table2(frame)["mean_run_seconds"][0] == 20
    grid = compute_table3(frame).iloc[0]
    assert (grid["mean"], grid["seeds"]) == (90, 1)


def test_rows_are_in_the_papers_order(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """Rows are sorted by N, then L2-zero, L2-SP, PTYL, and in each MAP + GS, DE ELBo, ELBo."""
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
    """Make results in a cell of the paper, or elsewhere."""
    cell = {"dataset": "CIFAR-10", "backbone": "resnet50", "n": 50000} | where
    return make_frame(*(row | cell for row in rows))


GRID = (tune(1001, 0.1, 1.0, 10), retrain(1001, 0.1, 0.8, 15))


def test_published_numbers_are_columns() -> None:
    """In a cell of the paper its run, runs, total, mean, minimum and maximum are in the same row."""
    (second,) = compute_table2(paper(*GRID)).to_dict("records")
    names = ["total_seconds", "published_run_seconds", "published_runs", "published_total_seconds"]
    assert [second[name] for name in names] == [25, 39 * 60 + 11, 24, 16 * 3600 + 15 * 60]
    (third,) = compute_table3(paper(*GRID)).to_dict("records")
    names = ["mean", "published_mean", "published_min", "published_max"]
    assert [third[name] for name in names] == [80, 97.1, 97.0, 97.1]


@pytest.mark.parametrize(
    ("where", "accuracies"),
    [({"backbone": "vit-b-16"}, 0), ({"dataset": "cifar-10"}, 0), ({"n": 500}, 0), ({"seed": 2001}, 3)],
)
def test_published_numbers_of_other_cells(where: dict[str, Any], accuracies: int) -> None:
    """Another backbone, dataset or N has no published numbers; another split has no times, and the accuracies."""
    frame = paper(*(row | where for row in GRID), **where)
    for table, known in ((compute_table2(frame), 0), (compute_table3(frame), accuracies)):
        printed = table.filter(like="published_")
        assert (printed.shape[1], printed.notna().to_numpy().sum()) == (3, known)


def shown(frame: pd.DataFrame, published: Any = ("",)) -> list[dict[str, Any]]:
    return list(overview(frame, published).to_dict("records"))


def test_overview_has_the_printed_de_elbo() -> None:
    """Beside a published grid without a DE ELBo there is a row of printed numbers only."""
    grid, printed = shown(paper(*GRID))
    assert (grid["method"], grid["mean"], grid["total_seconds"]) == ("map-gs", 80, 25)
    assert (printed["method"], printed["prior"], printed["n"]) == ("de-elbo", "l2-sp", 50000)
    assert (printed["published_mean"], printed["published_total_seconds"]) == (96.8, 2 * 3600 + 36 * 60)
    assert np.isnan([printed[name] for name in ("mean", "min", "max", "seeds", "total_seconds")]).all()


def test_overview_has_no_printed_rows_elsewhere() -> None:
    """No row is added beside a DE ELBo run, in other cells, without a grid, or beside own runs."""
    assert [row["method"] for row in shown(paper(*GRID), published=())] == ["map-gs"]
    ours = single(1001, 0.1, -1.0, 0.7)
    assert [row["method"] for row in shown(paper(*GRID, ours))] == ["map-gs", "de-elbo"]
    assert [row["method"] for row in shown(paper(*GRID, backbone="vit-b-16"))] == ["map-gs"]
    assert [row["method"] for row in shown(paper(ours))] == ["de-elbo"]
    assert [row["method"] for row in shown(paper(GRID[0]))] == []
    plain = single(1001, 0.1, -1.0, 0.7, method="elbo")
    assert [row["method"] for row in shown(paper(plain))] == ["elbo"]
    assert [row["method"] for row in shown(paper(*GRID, plain))] == ["map-gs", "de-elbo", "elbo"]


def test_overview_distinguishes_sources() -> None:
    """Of published sources only those without a DE ELBo get the printed one; other sources do not."""
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


def test_overview_averages_totals() -> None:
    """Its total is the mean over splits of table 2's."""
    rows = {row["method"]: row["total_seconds"] for row in shown(SMALL)}
    assert rows == {"map-gs": ((60 + 25) + (30 + 15)) / 2, "de-elbo": 10}


def test_overview_counts_lost_runs() -> None:
    """It has the numbers of diverged and failed runs, in all splits and stages."""
    more = make_frame(
        tune(1, 0.4, np.nan, 5, status="diverged"),
        tune(2, 0.4, np.nan, 5, status="diverged"),
        single(1, 0.4, np.nan, 0.1, status="failed"),
    )
    lost = {
        row["method"]: (row["diverged"], row["failed"]) for row in shown(pd.concat([SMALL, more], ignore_index=True))
    }
    assert lost == {"map-gs": (2, 0), "de-elbo": (0, 1)}
