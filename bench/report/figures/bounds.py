"""Figure 1: ELBo and DE ELBo against lambda = tau, at the q of a run trained by each; from what their records keep.

For groups g of D_g weights, priors N(mu_g, s Sigma_g), s = lambda = tau, and q = N(theta_bar, sigma^2 I):

    KL(s) = 1/2 sum_g [ (sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g) / s - D_g + D_g log s + log|Sigma_g|
                        - D_g log sigma^2 ]
    bound(s) / (kappa N) = -(mean NLL under q) - KL(s) / (kappa N),      kappa = 1 or D/N.

Source: Harvey, Petrov, Hughes 2024, figure 1. No weights are needed, so nothing is trained again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.report.figures.style import METHOD_COLORS, label, panels, tidy
from bench.results.configurations import CELL, PROBLEM, configurations
from bench.results.frame import iterate_groups, sort_rows

__all__ = ["bound", "figure1", "pairs"]


Array = NDArray[np.float64]
GROUPS = ("backbone", "head")
NEEDED = [
    f"state_{what}_{group}" for what in ("dim", "squared_distance", "trace_precision", "log_det") for group in GROUPS
]
NEEDED += ["state_sigma", "state_kappa", "nll_under_q"]
LINES: dict[str, Any] = {"elbo": (0, (5, 1.5)), "de-elbo": "-"}


def bound(run: pd.Series, scale: Array, kappa: float) -> Array:
    """The ELBo whose likelihood counts kappa times, divided by kappa N, at lambda = tau = ``scale``; higher is better.

    Args:
        run: a row of `RecordStore.frame` of an ELBo or a DE ELBo: its q, whatever kappa it was trained with.
        scale: s, any shape; > 0.
        kappa: how often the likelihood counts here; D/N gives the DE ELBo.
    """
    variance = run["state_sigma"] ** 2
    kl = np.zeros_like(scale)
    for group in GROUPS:
        dim, log_det = run[f"state_dim_{group}"], run[f"state_log_det_{group}"]
        kl += 0.5 * (_spread(run, group) / scale - dim + dim * np.log(scale / variance) + log_det)
    bounds: Array = -run["nll_under_q"] - kl / (kappa * run["n"])
    return bounds


def data_emphasis(run: pd.Series) -> float:
    """D/N of a run."""
    return float(sum(run[f"state_dim_{group}"] for group in GROUPS) / run["n"])


def best_scale(run: pd.Series) -> float:
    """The s at which every bound of this q is highest: [sum_g sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g] / D."""
    return float(sum(_spread(run, group) for group in GROUPS) / sum(run[f"state_dim_{group}"] for group in GROUPS))


def _spread(run: pd.Series, group: str) -> float:
    """sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g of a run's q."""
    trace = run["state_sigma"] ** 2 * run[f"state_trace_precision_{group}"]
    return float(trace + run[f"state_squared_distance_{group}"])


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """The chosen runs of cells that have both a run with kappa = 1 and one with kappa = D/N; rows of ``frame``.

    Empty where there is no such cell. A diverged run has no q.
    """
    if not set(NEEDED) <= set(frame.columns):
        return frame.iloc[:0]
    rows = [found.judged[0] for cell, found in configurations(frame) if cell["method"] in LINES]
    runs = frame.loc[rows].dropna(subset=NEEDED)
    runs = runs[(runs["status"] == "completed") & ~runs[NEEDED].isin([np.inf, -np.inf]).any(axis=1)]
    if runs.empty:
        return runs
    emphasis = runs.apply(data_emphasis, axis=1)
    asked = np.where(runs["method"] == "elbo", 1.0, emphasis)
    runs = runs[np.isclose(runs["state_kappa"], asked, rtol=1e-6)]
    return runs[runs.groupby(CELL)["method"].transform("nunique") == 2]


def figure1(runs: pd.DataFrame) -> Figure:
    """Left the ELBo, right the DE ELBo, at the same two q: dashed the one trained by the ELBo, solid by the DE ELBo.

    A row for each dataset, backbone, N, prior and source; a line for each split seed; a dot at the best lambda = tau.

    Args:
        runs: as `pairs` gives, not empty.
    """
    rows = list(iterate_groups(sort_rows(runs, "seed"), PROBLEM))
    figure, axes = panels(len(rows), 2, (3.0, 1.9), (0.75, 0.75), 0.8)
    best = runs.apply(best_scale, axis=1)
    decades = np.log10([best.min(), best.max()])
    scale = np.logspace(math.floor(decades[0]) - 1.5, math.ceil(decades[1]) + 1.5, 300)
    for (left, right), (name, of) in zip(axes, rows, strict=True):
        for axis, emphasised in ((left, False), (right, True)):
            _draw(axis, of, scale, emphasised)
        words = [dataset_name(name["dataset"]), f"N = {name['n']:,}", PRIOR_NAMES.get(name["prior"], name["prior"])]
        words += [name[column] for column in ("backbone", "source") if runs[column].nunique() > 1]
        place = left.get_position()
        above = place.y1 + 0.28 / figure.get_size_inches()[1]
        figure.text(place.x0, above, f"{', '.join(words)}; {_accuracies(of)}", fontsize=9)
        left.set_title("ELBo (kappa = 1)", fontsize=9, loc="left")
        right.set_title(f"DE ELBo (kappa = D/N = {data_emphasis(of.iloc[0]):,.0f})", fontsize=9, loc="left")
        left.set_ylabel("ELBo / N, higher is better", fontsize=8.5)
        right.set_ylabel("DE ELBo / D, higher is better", fontsize=8.5)
    label(figure, "lambda = tau, the scale of the prior's variance", "", list(_legend()), 2)
    return figure


def _draw(axis: Axes, runs: pd.DataFrame, scale: Array, emphasised: bool) -> None:
    highest = []
    for _, run in runs.iterrows():
        kappa = data_emphasis(run) if emphasised else 1.0
        look: dict[str, Any] = {"color": METHOD_COLORS[run["method"]]}
        axis.plot(scale, bound(run, scale, kappa), linestyle=LINES[run["method"]], linewidth=1.4, alpha=0.9, **look)
        top = np.array([best_scale(run)])
        highest += bound(run, top, kappa).tolist()
        axis.plot(top, highest[-1:], marker="o", markersize=5, markeredgecolor="white", **look)
    room = max(max(highest) - min(highest), 0.05 * abs(max(highest)), 0.1)
    axis.set_ylim(min(highest) - 1.5 * room, max(highest) + 0.35 * room)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axis.xaxis.set_minor_locator(NullLocator())
    tidy(axis)


def _accuracies(runs: pd.DataFrame) -> str:
    """Test accuracies of what each method chose, in percent: one, or least and most."""
    words = []
    for method in LINES:
        accuracy = 100 * runs.loc[runs["method"] == method, "test_acc"]
        span = dict.fromkeys((f"{accuracy.min():.1f}", f"{accuracy.max():.1f}"))
        words.append(f"{method_name(method)} {'-'.join(span)} %")
    return f"test accuracy: {', '.join(words)}"


def _legend() -> Iterator[Line2D]:
    for method, line in LINES.items():
        look: dict[str, Any] = {"color": METHOD_COLORS[method], "linestyle": line, "marker": "o"}
        yield Line2D([], [], markeredgecolor="white", label=f"q of the {method_name(method)}'s run", **look)
