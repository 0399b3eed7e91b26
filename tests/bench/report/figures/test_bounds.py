"""Figure 1: its formula against real objectives and dense Gaussians, its runs, and its artists."""

import math
from collections import OrderedDict
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bench.report.figures.bounds import compute_best_scale, compute_bound, draw_bounds, select_bound_runs
from bench.results.frame import to_frame
from deelbo._vectors import flatten
from deelbo.groups import make_groups
from deelbo.objectives.elbo import ELBO, DataEmphasizedELBO
from deelbo.priors import LowRank
from tests.helpers.result_frames import make_frame

pytestmark = pytest.mark.filterwarnings("error")
N = 7
D = 25
ROW: dict[str, Any] = {"n": N, "nll_under_q": 1.25}
KINDS = ["l2-zero", "l2-sp", "ptyl"]


class Learned:
    """An objective over a small network whose weights have moved, and its prior's dense covariance."""

    def __init__(self, method: str, prior: str = "l2-sp", seed: int = 0, frozen: bool = False, **settings: Any) -> None:
        torch.manual_seed(seed)
        net = nn.Sequential(OrderedDict(body=nn.Linear(4, 3), head=nn.Linear(3, 2, bias=False), scale=nn.Linear(1, 2)))
        net = net.double()
        start = flatten([*net.body.parameters(), *net.scale.parameters()])  # 19 weights of the backbone, 6 of the head
        if frozen:
            net.requires_grad_(False).head.requires_grad_(True)
        self.sigma_matrix = torch.eye(19, dtype=torch.float64)
        if prior == "ptyl":
            variance, factor = torch.rand(19, dtype=torch.float64), torch.randn(19, 5, dtype=torch.float64)
            self.sigma_matrix = torch.diag(variance / 2 + 0.1) + factor @ factor.T / 8
            groups = make_groups(net, "head", LowRank(start, variance, factor))
        else:
            groups = make_groups(net, "head", prior)
        kind = ELBO if method == "elbo" else DataEmphasizedELBO
        self.objective = kind(groups, N, sigma=0.3 if method == "elbo" else 0.05, **settings)
        with torch.no_grad():
            for weights in net.parameters():
                weights += 0.5 * torch.randn_like(weights)
        self.method, self.prior = method, prior

    def row(self, objective: float = 0.0, **more: Any) -> dict[str, Any]:
        """Return the run as a row of the table of trials."""
        state = {f"state_{name}": value for name, value in self.objective.describe().items()}
        return ROW | {"method": self.method, "prior": self.prior, "objective": objective} | state | more


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Make a table of trials of a network with D weights."""
    return make_frame(*rows, n=N, test_acc=0.5, train_seconds=1.0, nll_under_q=1.25, stage="run")


@pytest.mark.parametrize("prior", KINDS)
@pytest.mark.parametrize(("method", "kappa"), [("elbo", 1.0), ("de-elbo", D / N)])
def test_kl_agrees_with_the_objective(method: str, kappa: float, prior: str) -> None:
    """At each group's closed-form scale the KL terms add up to the objective's regularizer."""
    learned = Learned(method, prior)
    total = 0.0
    for name, other in (("backbone", "head"), ("head", "backbone")):
        without = {f"state_{what}_{other}": 0.0 for what in ("dim", "squared_distance", "trace_precision", "log_det")}
        scale = np.array([learned.objective.scales()[name]])
        total += 1.25 + compute_bound(pd.Series(learned.row() | without), scale, kappa).item()
    assert -total == pytest.approx(float(learned.objective.regularizer()), rel=1e-10)


@pytest.mark.parametrize("prior", KINDS)
@pytest.mark.parametrize("kappa", [1.0, D / N])
def test_kl_agrees_with_dense_gaussians(prior: str, kappa: float) -> None:
    """At any lambda = tau the KL is torch's of N(w, sigma^2 I) from N(mu, s Sigma), and of the head."""
    learned = Learned("elbo", prior)
    body, head = learned.objective.groups
    w, v, eye = flatten(body.weights), flatten(head.weights), torch.eye(19, dtype=torch.float64)
    for s in (1e-3, 0.2, 1.0, 50.0):
        kl = kl_divergence(
            MultivariateNormal(w, 0.09 * eye), MultivariateNormal(body.prior.mean, s * learned.sigma_matrix)
        )
        kl += kl_divergence(Normal(v, 0.3), Normal(torch.zeros_like(v), math.sqrt(s))).sum()
        value = compute_bound(pd.Series(learned.row()), np.array([s]), kappa).item()
        assert value == pytest.approx(-1.25 - kl.item() / (kappa * N), rel=1e-10)


@pytest.mark.parametrize("prior", KINDS)
@pytest.mark.parametrize("kappa", [1.0, D / N])
def test_the_best_scale_is_the_optimum(prior: str, kappa: float) -> None:
    """A numerical search for the highest bound ends at the closed form, for any kappa."""
    run = pd.Series(Learned("de-elbo", prior).row())
    search = minimize_scalar(
        lambda x: -compute_bound(run, np.exp([x]), kappa).item(), bounds=(-10, 10), options={"xatol": 1e-9}
    )
    assert compute_best_scale(run) == pytest.approx(math.exp(search.x), rel=1e-5)


def test_a_frozen_backbone_has_no_part_in_it() -> None:
    """Where the head alone is trained the KL, D and the best scale are the head's, and the runs are drawn."""
    runs = [Learned(method, frozen=True) for method in ("elbo", "de-elbo")]
    row = pd.Series(runs[1].row())
    scale = runs[1].objective.scales()["head"]
    value = compute_bound(row, np.array([scale]), 6 / N).item()
    assert -1.25 - value == pytest.approx(float(runs[1].objective.regularizer()), rel=1e-10)
    assert compute_best_scale(row) == pytest.approx(scale, rel=1e-10)
    found = select_bound_runs(results(*(run.row() for run in runs)))
    assert found["method"].tolist() == ["de-elbo", "elbo"]
    assert "kappa = D/N = 1)" in draw_bounds(found).axes[1].get_title(loc="left")


BOTH = [Learned("elbo", seed=1).row(), Learned("de-elbo", seed=2).row()]


def test_chosen_runs_of_both_methods() -> None:
    """They are the runs with the lowest objective of each method in a cell; a grid is left out."""
    rows = [Learned(name, seed=s).row(objective=(5.0, 3.0, 4.0)[s]) for name in ("elbo", "de-elbo") for s in range(3)]
    grid = {"method": "map-gs", "stage": "tune", "val_nll": 0.0}
    found = select_bound_runs(results(*rows, grid))
    assert found["method"].tolist() == ["de-elbo", "elbo"]
    assert found["objective"].tolist() == [3, 3]
    assert found["key"].tolist() == ["00004", "00001"]


@pytest.mark.parametrize("other", [{"seed": 2}, {"n": 8}, {"dataset": "e"}, {"backbone": "c"}, {"source": "s"}])
def test_a_cell_needs_both_methods(other: dict[str, Any]) -> None:
    """A cell without one of the two methods is left out; cells and sources are not mixed."""
    alone = Learned("de-elbo", kappa=D / other.get("n", N)).row()
    assert len(select_bound_runs(results(*BOTH))) == 2
    assert select_bound_runs(results(BOTH[0], alone | other)).empty
    assert sorted(select_bound_runs(results(*BOTH, alone | other))["key"]) == ["00000", "00001"]


@pytest.mark.parametrize("kappa", [1.0, 0.99 * D / N, 2 * D / N])
def test_another_kappa_is_left_out(kappa: float) -> None:
    """A DE ELBo trained with another kappa than D/N is left out."""
    assert select_bound_runs(results(BOTH[0], Learned("de-elbo", kappa=kappa).row())).empty


def test_diverged_runs_are_left_out() -> None:
    """A cell whose only run of a method diverged is left out, with or without a state."""
    lost = [BOTH[1] | {"status": "diverged"}, BOTH[1] | {"nll_under_q": math.nan}, BOTH[1] | {"state_sigma": math.inf}]
    for one in lost:
        assert select_bound_runs(results(BOTH[0], one)).empty
    assert len(select_bound_runs(results(*BOTH, lost[0] | {"objective": -9.0}))) == 2


def test_published_runs_give_no_figure() -> None:
    """Runs without a learned state, and no results at all, give no figure."""
    published = {"method": "map-gs", "stage": "tune", "val_nll": 0.0}
    assert select_bound_runs(results(published)).empty
    assert select_bound_runs(results(published, *BOTH[:1])).empty
    assert select_bound_runs(to_frame([])).empty


def draw(*rows: dict[str, Any]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure with its canvas, and return it with its runs."""
    runs = select_bound_runs(results(*rows))
    figure = draw_bounds(runs)
    figure.canvas.draw()
    return figure, runs


def title(axis: Axes) -> str:
    return str(axis.get_title("left") or axis.get_title())


def test_lines_and_dots() -> None:
    """Both panels have a line per method, dashed and solid, with a dot at its highest point."""
    figure, runs = draw(*BOTH)
    assert len(figure.axes) == 2
    for axis, kappa in zip(figure.axes, (1.0, D / N), strict=True):
        assert axis.get_xscale() == "log"
        lines = [line for line in axis.lines if len(line.get_xdata()) > 1]
        dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
        assert len(lines) == len(dots) == 2
        assert [line.get_linestyle() for line in lines] == ["-", "--"]
        for line, dot, (_, run) in zip(lines, dots, runs.iterrows(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), compute_bound(run, line.get_xdata(), kappa))
            assert dot.get_xdata()[0] == compute_best_scale(run)
            assert line.get_xdata()[0] < compute_best_scale(run) < line.get_xdata()[-1]
            assert max(line.get_ydata()) <= dot.get_ydata()[0] == pytest.approx(max(line.get_ydata()), rel=1e-2)
            assert axis.get_ylim()[0] < dot.get_ydata()[0] < axis.get_ylim()[1]
    left, right = map(title, figure.axes)
    assert headings(figure) == [f"d, N = {N}, L2-SP; test accuracy: ELBo 50.0 %, DE ELBo 50.0 %"]
    assert "ELBo (kappa = 1)" in left
    assert "DE ELBo (kappa = D/N = 4)" in right


def headings(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if "N = " in text.get_text()]


def test_a_row_for_each_problem() -> None:
    """There is a row per dataset, backbone, N, prior and source, in order; split seeds share one."""
    named = [row | {"source": "r"} for row in BOTH]
    changes = [("prior", "ptyl"), ("prior", "l2-zero"), ("backbone", "c"), ("source", "s"), ("seed", 2)]
    figure, _ = draw(*[row | {name: value} for name, value in changes for row in named], *named)
    names = ["L2-zero, b, r", "L2-SP, b, r", "L2-SP, b, s", "PTYL, b, r", "L2-SP, c, r"]
    for heading, name in zip(headings(figure), names, strict=True):
        assert f"d, N = {N}, {name}" in heading
    assert [len(axis.lines) for axis in figure.axes] == [4, 4, 8, 8, 4, 4, 4, 4, 4, 4]


def test_names_are_no_formulas() -> None:
    """A dollar in a dataset's name is a dollar."""
    assert "$\\nix$, N = 7" in headings(draw(*[row | {"dataset": "$\\nix$"} for row in BOTH])[0])[0]


def test_legend_and_accuracies() -> None:
    """The legend distinguishes both q; each row has their test accuracies over splits."""
    rows = [row | {"test_acc": acc} for row, acc in zip(BOTH, (0.25, 0.9), strict=True)]
    again = [row | {"test_acc": acc, "seed": 2} for row, acc in zip(BOTH, (0.2, 0.95), strict=True)]
    for shown, words in (
        (rows, "ELBo 25.0 %, DE ELBo 90.0 %"),
        ([*rows, *again], "ELBo 20.0-25.0 %, DE ELBo 90.0-95.0 %"),
    ):
        figure, _ = draw(*shown)
        (legend,) = figure.legends
        assert [line.get_linestyle() for line in legend.get_lines()] == ["--", "-"]
        assert [" DE ELBo" in text.get_text() for text in legend.get_texts()] == [False, True]
        (heading,) = headings(figure)
        assert heading.endswith(words)


@pytest.mark.parametrize("cells", [1, 3])
def test_nothing_overlaps(cells: int) -> None:
    """Legend, titles and panels do not overlap, and lie within the figure."""
    figure, _ = draw(*[row | {"prior": prior, "dataset": "mnist-digits"} for prior in KINDS[:cells] for row in BOTH])
    boxes = [legend.get_window_extent() for legend in figure.legends]
    boxes += [axis.get_tightbbox() for axis in figure.axes] + [text.get_window_extent() for text in figure.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
