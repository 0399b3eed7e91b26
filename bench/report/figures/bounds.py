"""Figure 1: ELBo and DE ELBo against lambda = tau, at the posteriors q of a run trained by each, from their records.

For groups g of D_g weights, priors N(mu_g, s Sigma_g), s = lambda = tau, and q = N(theta_bar, sigma^2 I):

    KL(s) = 1/2 sum_g [ (sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g) / s - D_g + D_g log s + log|Sigma_g|
                        - D_g log sigma^2 ]
    bound(s) / (kappa N) = -(mean NLL under q) - KL(s) / (kappa N),      kappa = 1 or D/N.

Source: Harvey, Petrov, Hughes 2024, figure 1. The records have all terms, so nothing is trained again.
"""

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
from bench.report.figures.style import METHOD_COLORS, label_figure, make_panels, style_axes
from bench.results.configurations import CELL, PROBLEM, iterate_configurations
from bench.results.frame import iterate_groups, sort_rows

Array = NDArray[np.float64]
GROUPS = ("backbone", "head")
PARTS = [
    f"state_{what}_{group}" for what in ("dim", "squared_distance", "trace_precision", "log_det") for group in GROUPS
]
NEEDED = [name for name in PARTS if name.endswith("_head")] + ["state_sigma", "state_kappa", "nll_under_q"]
LINES: dict[str, Any] = {"elbo": (0, (5, 1.5)), "de-elbo": "-"}


def compute_bound(run: pd.Series, scale: Array, kappa: float) -> Array:
    """Compute the ELBo with likelihood weight kappa, divided by kappa N, at lambda = tau = ``scale``."""
    variance = run["state_sigma"] ** 2
    kl = np.zeros_like(scale)
    for group in _groups(run):
        dim, log_det = run[f"state_dim_{group}"], run[f"state_log_det_{group}"]
        kl += 0.5 * (_spread(run, group) / scale - dim + dim * np.log(scale / variance) + log_det)
    bounds: Array = -run["nll_under_q"] - kl / (kappa * run["n"])
    return bounds


def compute_data_emphasis(run: pd.Series) -> float:
    """Compute D/N of a run."""
    return float(sum(run[f"state_dim_{group}"] for group in _groups(run)) / run["n"])


def compute_best_scale(run: pd.Series) -> float:
    """Compute the s that maximizes all bounds of this q: [sum_g sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g] / D."""
    groups = _groups(run)
    return float(sum(_spread(run, group) for group in groups) / sum(run[f"state_dim_{group}"] for group in groups))


def _groups(run: pd.Series) -> list[str]:
    """Return the groups that a run trained: the head alone in linear probing."""
    return [group for group in GROUPS if pd.notna(run.get(f"state_dim_{group}"))]


def _spread(run: pd.Series, group: str) -> float:
    """sigma^2 tr(Sigma_g^-1) + d_g^T Sigma_g^-1 d_g of a run's q."""
    trace = run["state_sigma"] ** 2 * run[f"state_trace_precision_{group}"]
    return float(trace + run[f"state_squared_distance_{group}"])


def select_bound_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the chosen runs, rows of ``frame``, of cells with a completed run of both kappa = 1 and kappa = D/N."""
    if not set(NEEDED) <= set(frame.columns):
        return frame.iloc[:0]
    rows = [tried.selection_rows[0] for cell, tried in iterate_configurations(frame) if cell["method"] in LINES]
    runs = frame.loc[rows].dropna(subset=NEEDED)
    runs = runs[(runs["status"] == "completed") & ~_are_infinite(runs)]
    if runs.empty:
        return runs
    emphasis = runs.apply(compute_data_emphasis, axis=1)
    expected = np.where(runs["method"] == "elbo", 1.0, emphasis)
    runs = runs[np.isclose(runs["state_kappa"], expected, rtol=1e-6)]
    return runs[runs.groupby(CELL)["method"].transform("nunique") == 2]


def _are_infinite(runs: pd.DataFrame) -> pd.Series:
    return runs.reindex(columns=[*PARTS, *NEEDED]).isin([np.inf, -np.inf]).any(axis=1)


def draw_bounds(runs: pd.DataFrame) -> Figure:
    """Draw the ELBo left and the DE ELBo right, at the same q: dashed if trained by the ELBo, solid by the DE ELBo.

    A row per problem, a line per split seed, a dot at the best lambda = tau.
    """
    rows = list(iterate_groups(sort_rows(runs, "seed"), PROBLEM))
    figure, axes = make_panels(len(rows), 2, (3.0, 1.9), (0.75, 0.75), 0.8)
    best = runs.apply(compute_best_scale, axis=1)
    decades = np.log10([best.min(), best.max()])
    scale = np.logspace(math.floor(decades[0]) - 1.5, math.ceil(decades[1]) + 1.5, 300)
    for (left, right), (name, of) in zip(axes, rows, strict=True):
        for axis, emphasized in ((left, False), (right, True)):
            _draw(axis, of, scale, emphasized)
        title = [dataset_name(name["dataset"]), f"N = {name['n']:,}", PRIOR_NAMES.get(name["prior"], name["prior"])]
        title += [name[column] for column in ("backbone", "source") if runs[column].nunique() > 1]
        place = left.get_position()
        above = place.y1 + 0.28 / figure.get_size_inches()[1]
        figure.text(place.x0, above, f"{', '.join(title)}; {_accuracies(of)}", fontsize=9, parse_math=False)
        left.set_title("ELBo (kappa = 1)", fontsize=9, loc="left")
        right.set_title(f"DE ELBo (kappa = D/N = {compute_data_emphasis(of.iloc[0]):,.0f})", fontsize=9, loc="left")
        left.set_ylabel("ELBo / N, higher is better", fontsize=8.5)
        right.set_ylabel("DE ELBo / D, higher is better", fontsize=8.5)
    label_figure(figure, "lambda = tau, the scale of the prior's variance", "", list(_legend()), 2)
    return figure


def _draw(axis: Axes, runs: pd.DataFrame, scale: Array, emphasized: bool) -> None:
    highest = []
    for _, run in runs.iterrows():
        kappa = compute_data_emphasis(run) if emphasized else 1.0
        style: dict[str, Any] = {"color": METHOD_COLORS[run["method"]]}
        axis.plot(
            scale, compute_bound(run, scale, kappa), linestyle=LINES[run["method"]], linewidth=1.4, alpha=0.9, **style
        )
        top = np.array([compute_best_scale(run)])
        highest += compute_bound(run, top, kappa).tolist()
        axis.plot(top, highest[-1:], marker="o", markersize=5, markeredgecolor="white", **style)
    room = max(max(highest) - min(highest), 0.05 * abs(max(highest)), 0.1)
    axis.set_ylim(min(highest) - 1.5 * room, max(highest) + 0.35 * room)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axis.xaxis.set_minor_locator(NullLocator())
    style_axes(axis)


def _accuracies(runs: pd.DataFrame) -> str:
    """Describe the test accuracies of each method's choice in percent: one, or minimum and maximum."""
    accuracies = []
    for method in LINES:
        accuracy = 100 * runs.loc[runs["method"] == method, "test_acc"]
        span = dict.fromkeys((f"{accuracy.min():.1f}", f"{accuracy.max():.1f}"))
        accuracies.append(f"{method_name(method)} {'-'.join(span)} %")
    return f"test accuracy: {', '.join(accuracies)}"


def _legend() -> Iterator[Line2D]:
    for method, line in LINES.items():
        style: dict[str, Any] = {"color": METHOD_COLORS[method], "linestyle": line, "marker": "o"}
        yield Line2D([], [], markeredgecolor="white", label=f"q of the {method_name(method)}'s run", **style)
