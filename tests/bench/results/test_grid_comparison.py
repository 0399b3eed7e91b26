"""The DE ELBo beside the grid: by hand, by a plain loop, and from real objectives."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.results.curves import COLUMNS as CURVE_COLUMNS
from bench.results.grid_comparison import compare_at_equal_compute, compare_regularization
from bench.results.paper import find_paper_de_elbo
from deelbo.groups import make_groups
from deelbo.objectives.elbo import DataEmphasizedELBO
from tests.helpers.result_frames import make_frame

pytestmark = pytest.mark.filterwarnings("error")
CELL: dict[str, Any] = {"dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100, "split_seed": 1, "source": ""}
GRID = ["grid_acc", "grid_k", "grid_hours", "times_as_long"]
PAPER = {"dataset": "CIFAR-10", "backbone": "resnet50", "n": 50000, "split_seed": 1001, "source": "theirs"}


def curve(method: str, hours: list[float], accuracy: list[float], first: int = 1, **cell: Any) -> pd.DataFrame:
    """Make a curve as `bench.results.curves.compute_curves` returns it."""
    found = {"k": range(first, first + len(hours)), "expected_hours": hours, "expected_test_acc": accuracy}
    return pd.DataFrame(found).assign(method=method, **(CELL | {"cost": "train"} | cell)).reindex(columns=CURVE_COLUMNS)


def meet(*curves: pd.DataFrame, published: Sequence[str] = ()) -> dict[str, Any]:
    """Compare curves, and return the single row."""
    (row,) = compare(pd.concat(curves, ignore_index=True), published).to_dict("records")
    return {str(name): value for name, value in row.items()}


def compare(curves: pd.DataFrame, published: Sequence[str] = ()) -> pd.DataFrame:
    return compare_at_equal_compute(curves, find_paper_de_elbo(curves, published))


FOUR = curve("map-gs", [1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize(
    ("grid", "de_elbo", "expected"),
    [
        (FOUR, ([1, 2.5], [0.9, 0.65]), [0.6, 2, 3, 1.2]),
        (FOUR, ([2], [0.7]), [0.6, 2, 3, 1.5]),
        (FOUR, ([5], [0.81]), [0.8, 4, math.inf, math.inf]),
        (FOUR, ([0.5], [0.4]), [math.nan, 0, 1, 2]),
        (curve("map-gs", [1, 2], [0.5, 0.6], first=3), ([1.5], [0.55]), [math.nan] * 4),
        (curve("map-gs", [5, 4, 6, 9], [0.5, 0.8, 0.6, 0.8]), ([6], [0.7]), [0.6, 3, 4, 4 / 6]),
        (curve("map-gs", [1, 2], [0.1, 0.3]), ([1], [0.1 + 0.2]), [0.1, 1, 2, 2]),
    ],
    ids=["between", "equal", "never reached", "none affordable", "unknown", "falling", "rounding"],
)
def test_by_hand(grid: pd.DataFrame, de_elbo: tuple[list[float], list[float]], expected: list[float]) -> None:
    """The most affordable configurations count, and the fewest hours at which the grid's accuracy is no lower."""
    row = meet(grid, curve("de-elbo", *de_elbo))
    assert [row[name] for name in ("de_elbo_from", "de_elbo_hours", "de_elbo_acc")] == [
        "run",
        *(values[-1] for values in de_elbo),
    ]
    np.testing.assert_equal([row[name] for name in GRID], expected)


ACCURACIES = st.integers(0, 5000).map(lambda right: right / 5000)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 9), ACCURACIES), min_size=1, max_size=6),
    st.tuples(st.floats(0.1, 9), ACCURACIES),
)
def test_comparison_agrees_with_a_loop(grid: list[tuple[float, float]], ours: tuple[float, float]) -> None:
    """On any curve the result is that of a plain loop; the order of rows does not matter."""
    acc, k, hours = math.nan, 0, math.inf
    for i, (paid, reached) in enumerate(grid, start=1):
        acc, k = (reached, i) if paid <= ours[0] else (acc, k)
        hours = min(hours, paid) if reached >= ours[1] else hours
    rows = curve("map-gs", [paid for paid, _ in grid], [reached for _, reached in grid])[::-1]
    row = meet(rows, curve("de-elbo", [ours[0]], [ours[1]]))
    np.testing.assert_equal([row[name] for name in GRID], [acc, k, hours, hours / ours[0]])


def test_equal_but_for_rounding_is_equal() -> None:
    """A grid whose accuracy is that of the DE ELBo but for the last bit has reached it."""
    row = meet(curve("map-gs", [1, 2], [0.1, 0.3]), curve("de-elbo", [1], [0.1 + 0.2]))
    assert (row["grid_hours"], row["times_as_long"]) == (2, 2)


def test_printed_numbers_replace_runs() -> None:
    """For the paper's files, CIFAR-10, N = 50000, seed 1001, the printed 2 h 36 min and 96.8 % are used."""
    row = meet(curve("map-gs", [1, 2, 3], [0.96, 0.967, 0.969], **PAPER), published=["theirs"])
    assert [row[name] for name in ("de_elbo_from", "de_elbo_hours", "de_elbo_acc")] == ["paper", 2.6, 0.968]
    assert [row[name] for name in GRID] == [0.967, 2, 3, pytest.approx(3 / 2.6)]
    row = meet(curve("map-gs", [1], [0.9], **PAPER, prior="ptyl"), published=["theirs"])
    assert row["de_elbo_hours"] == pytest.approx(2 + 39 / 60)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "CIFAR-100"},
        {"backbone": "resnet18"},
        {"n": 1000},
        {"prior": "l2-zero"},
        {"split_seed": 2001},
        {"cost": "full"},
        {"source": "ours"},
    ],
)
def test_printed_numbers_are_used_nowhere_else(other: dict[str, Any]) -> None:
    """They are not used for another cell, cost or source."""
    assert compare(curve("map-gs", [1, 2], [0.5, 0.6], **(PAPER | other)), ["theirs"]).empty


def test_runs_are_preferred_to_printed_numbers() -> None:
    """If the cell has a DE ELBo run, the printed one is not used."""
    row = meet(curve("map-gs", [1], [0.5], **PAPER), curve("de-elbo", [3], [0.6], **PAPER), published=["theirs"])
    assert (row["de_elbo_from"], row["de_elbo_hours"]) == ("run", 3)


@pytest.mark.parametrize("other", [{"dataset": "e"}, {"n": 10}, {"split_seed": 2}, {"source": "s"}, {"cost": "full"}])
def test_only_the_same_cell_is_compared(other: dict[str, Any]) -> None:
    """A DE ELBo of another cell, source or cost gives no row, nor does one method alone."""
    ours = curve("de-elbo", [1], [0.9], **other)
    assert compare(pd.concat([FOUR, ours], ignore_index=True)).empty
    assert compare(ours).empty
    assert compare(pd.concat([FOUR, curve("elbo", [1], [0.9])], ignore_index=True)).empty


def test_every_cell_has_its_own_row() -> None:
    """There is one row per cell, source and cost, each from its own two curves, in order."""
    cells = [
        {"prior": prior, "source": source, "cost": cost}
        for prior in ("l2-zero", "l2-sp")
        for source in ("x", "y")
        for cost in ("full", "train")
    ]
    parts = []
    for i, cell in enumerate(cells):
        parts += [curve("map-gs", [1 + i, 2 + i], [0.1, 0.9], **cell), curve("de-elbo", [1.5 + i], [0.5], **cell)]
    table = compare(pd.concat(parts[::-1], ignore_index=True))
    assert table[["prior", "source", "cost"]].to_dict("records") == cells
    assert table["de_elbo_hours"].tolist() == [1.5 + i for i in range(8)]
    assert table["grid_hours"].tolist() == [2 + i for i in range(8)]


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Make a table of trials with N = 200."""
    return make_frame(*rows, n=200, train_seconds=1.0)


def learned(prior: str = "l2-sp", kappa: float | None = None, seed: int = 0) -> tuple[DataEmphasizedELBO, nn.Module]:
    """Make a DE ELBo over a small network whose weights have moved since they were pretrained."""
    torch.manual_seed(seed)
    net = nn.Sequential(OrderedDict(body=nn.Linear(3, 4), head=nn.Linear(4, 2))).double()
    objective = DataEmphasizedELBO(make_groups(net, "head", prior), num_examples=200, kappa=kappa, sigma=0.05)
    with torch.no_grad():
        for weights in net.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return objective, net


def single(objective: DataEmphasizedELBO, value: float, **more: Any) -> dict[str, Any]:
    """Make a run of an objective with a final value."""
    state = {f"state_{name}": number for name, number in objective.describe().items()}
    return {"method": "de-elbo", "stage": "run", "objective": value, "learning_rate": 0.1} | state | more


def tune(rate: float, nll: float, **more: Any) -> dict[str, Any]:
    return {"method": "map-gs", "stage": "tune", "learning_rate": rate, "val_nll": nll} | more


@pytest.mark.parametrize(("prior", "kappa"), [("l2-zero", None), ("l2-sp", None), ("l2-sp", 3.0)])
def test_learned_regularization(prior: str, kappa: float | None) -> None:
    """lambda* = sigma^2+|d|^2/D_w, tau* = sigma^2+|v|^2/D_v, alpha = 1/(kappa N lambda*), beta = 1/(kappa N tau*)."""
    objective, net = learned(prior, kappa)
    (row,) = compare_regularization(results(single(objective, 1.0))).to_dict("records")
    numbers = np.concatenate([weights.detach().numpy().ravel() for weights in net.parameters()])
    start = objective.groups[0].prior.mean.numpy()
    scales = [0.05**2 + np.mean((numbers[:16] - start) ** 2), 0.05**2 + np.mean(numbers[16:] ** 2)]
    strength = 26 if kappa is None else kappa * 200
    assert [row["learned_lambda"], row["learned_tau"]] == pytest.approx(scales, rel=1e-12)
    assert [row["learned_alpha"], row["learned_beta"]] == pytest.approx([1 / (strength * s) for s in scales], rel=1e-12)
    assert [row["learned_sigma"], row["learned_rate"]] == pytest.approx([0.05, 0.1], rel=1e-12)
    assert row["learned_kappa"] == pytest.approx(strength / 200)


def test_regularization_of_the_grid() -> None:
    """It is that of the lowest validation NLL; retrained, diverged and failed runs do not count."""
    rows = [
        tune(0.1, 2.0, weight_decay=0.3, head_weight_decay=0.4),
        tune(0.2, 1.0, weight_decay=0.5, head_weight_decay=0.6),
        tune(0.3, 0.1, weight_decay=0.7, head_weight_decay=0.8, status="diverged"),
        tune(0.4, 0.1, weight_decay=0.7, head_weight_decay=0.8, status="failed"),
        tune(0.2, 0.1, weight_decay=0.5, head_weight_decay=0.6, stage="retrain"),
    ]
    (row,) = compare_regularization(results(*rows)).to_dict("records")
    assert [row[f"grid_{name}"] for name in ("alpha", "beta", "rate")] == [0.5, 0.6, 0.2]
    assert math.isnan(row["grid_lambda"])
    assert all(math.isnan(row[f"learned_{name}"]) for name in ("alpha", "beta", "lambda", "tau", "sigma", "rate"))


def test_lambda_of_ptyl_as_weight_decay() -> None:
    """PTYL's grid has lambda in place of alpha: alpha = 1/(N lambda) = 1/(200 x 0.5)."""
    row = tune(0.1, 1.0, prior="ptyl", prior_scale=0.5, head_weight_decay=0.6)
    (found,) = compare_regularization(results(row)).to_dict("records")
    assert [found[f"grid_{name}"] for name in ("alpha", "lambda", "beta")] == [pytest.approx(0.01), 0.5, 0.6]


def test_the_run_with_the_lowest_objective_is_shown() -> None:
    """It is the DE ELBo's run with the lowest objective; a diverged one is not chosen."""
    objectives = [learned(seed=seed)[0] for seed in range(3)]
    rows = [single(one, value, test_acc=value) for one, value in zip(objectives, (3.0, 1.0, 2.0), strict=True)]
    rows.append(single(learned(seed=3)[0], 0.0, status="diverged"))
    (row,) = compare_regularization(results(*rows)).to_dict("records")
    assert row["learned_lambda"] == objectives[1].scales()["backbone"]


def test_a_diverged_run_has_learned_nothing() -> None:
    """If every run diverged, the learned strengths are missing."""
    (row,) = compare_regularization(results(single(learned()[0], 1.0, status="diverged"))).to_dict("records")
    assert all(math.isnan(row[f"learned_{name}"]) for name in ("alpha", "beta", "lambda", "tau", "sigma"))


def test_both_methods_share_a_row() -> None:
    """A cell's two methods share a row; sources, seeds and N do not; the ELBo has none."""
    objective, _ = learned()
    rows = [tune(0.1, 1.0, weight_decay=0.3), single(objective, 1.0), single(objective, 1.0, method="elbo")]
    rows += [
        tune(0.1, 1.0, weight_decay=0.4, source="s"),
        single(objective, 1.0, seed=2),
        single(objective, 1.0, n=300),
    ]
    table = compare_regularization(results(*rows, single(objective, 1.0, method="elbo", n=400)))
    assert table["n"].tolist() == [200, 200, 200, 300]
    assert list(zip(table["split_seed"], table["source"], strict=True)) == [(1, ""), (2, ""), (1, "s"), (1, "")]
    assert table["grid_alpha"].notna().tolist() == [True, False, True, False]
    assert table["learned_alpha"].notna().tolist() == [True, True, False, True]
