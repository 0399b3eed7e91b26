"""The table of test results against kappa / (D/N): which methods are a sweep, and which of their runs count."""

import math
from typing import Any

import pandas as pd
import pytest

from bench.results.kappa_sweep import COLUMNS, compute_kappa_sweep
from tests.helpers.result_frames import make_frame, trial

D = 500.0
SHARES = {"de-elbo": 1.0, "half": 0.5, "large": 3.0}


def run(method: str, share: float, n: int = 100, accuracy: float = 0.9, objective: float = 1.0, **more: Any) -> Any:
    """Make a run with kappa = ``share`` D/N."""
    state = {"state_kappa": share * D / n, "state_dim_backbone": D - 20, "state_dim_head": 20.0}
    shown = {"test_acc": accuracy, "test_nll": 1 - accuracy, "n": n, "noise_until": 1.0}
    return trial(method, "run", objective, 1.0, **(state | shown | more))


def sweep(**more: Any) -> list[Any]:
    return [run(method, share, **more) for method, share in SHARES.items()]


def test_a_row_per_method_and_split() -> None:
    """It has the ratio to D/N and the results of the run with the lowest objective, sorted by N and split."""
    runs = [one for n in (100, 300) for seed in (2, 1) for one in sweep(n=n, seed=seed, accuracy=0.5 + seed / 10)]
    better = run("half", 0.5, accuracy=0.8, objective=0.5, seed=1, learning_rate=0.01)
    table = compute_kappa_sweep(make_frame(*runs, better))
    assert list(table) == COLUMNS
    assert table[["n", "method", "split_seed"]].to_numpy().tolist() == [
        [n, method, seed] for n in (100, 300) for method in SHARES for seed in (1, 2)
    ]
    assert table["kappa_ratio"].tolist() == [share for _ in range(2) for share in SHARES.values() for _ in range(2)]
    chosen = table[(table["n"] == 100) & (table["method"] == "half")]
    assert chosen["test_acc"].tolist() == [0.8, 0.7]
    assert chosen["test_nll"].tolist() == pytest.approx([0.2, 0.3])


def test_the_elbo_is_kappa_1() -> None:
    """The ELBo counts as the value N/D, and is one of the three."""
    rows = [run("elbo", 100 / D), *sweep()[:2]]
    assert sorted(compute_kappa_sweep(make_frame(*rows))["kappa_ratio"]) == [0.2, 0.5, 1.0]


def test_d_is_the_heads_where_that_alone_is_trained() -> None:
    rows = [row | {"state_dim_head": D} for row in sweep()]
    for row in rows:
        del row["state_dim_backbone"]
    assert sorted(compute_kappa_sweep(make_frame(*rows))["kappa_ratio"]) == [0.5, 1.0, 3.0]


@pytest.mark.parametrize(
    "change",
    [
        {"noise_until": 0.85},
        {"groups": "layer"},
        {"final_batchnorm": "mean"},
        {"start_alpha": 0.01},
        {"optimizer": "prodigy"},
        {"since": 0.5},
        {"number": 0},
        {"state_kappa": math.nan},
        {"prior": "l2-zero"},
        {"backbone": "other"},
        {"test_nll": math.inf},
    ],
)
def test_methods_of_a_sweep_differ_in_kappa_alone(change: dict[str, Any]) -> None:
    """A method with another setting, or whose run is a part or diverged, does not count for the three values."""
    rows = sweep()
    assert len(compute_kappa_sweep(make_frame(*rows))) == 3
    assert compute_kappa_sweep(make_frame(*rows[:2], rows[2] | change)).empty
    assert len(compute_kappa_sweep(make_frame(*rows, run("other", 10.0) | change))) == 3


def test_sweeps_of_other_settings_are_apart() -> None:
    """Each has its settings in a column."""
    other = [row | {"method": f"{row['method']}-late", "noise_until": 0.85} for row in sweep()]
    table = compute_kappa_sweep(make_frame(*sweep(), *other))
    assert table.groupby("settings").size().to_dict() == {"": 3, "noise_until 0.85": 3}


def test_no_sweep() -> None:
    """There is none without a (DE) ELBo, without states, and with two values."""
    assert compute_kappa_sweep(make_frame(trial("map-gs", "tune", 1.0, 1.0))).empty
    assert compute_kappa_sweep(make_frame(*sweep()).drop(columns="state_kappa")).empty
    assert compute_kappa_sweep(make_frame(*sweep()[:2], *sweep(n=300)[1:])).empty
    assert isinstance(compute_kappa_sweep(make_frame()), pd.DataFrame)
