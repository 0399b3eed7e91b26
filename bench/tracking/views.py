"""What MLflow's page can show of a benchmark at one click: views that are saved with the experiment.

The page keeps a view (filter, order, columns, groups, charts) in a tag of the experiment, lists it under "Views", and
opens it by a link that names it. MLflow documents neither, so no view holds anything that is not a few clicks away
without it: a page that reads them otherwise shows its own default.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

__all__ = ["CHOSEN", "METHODS", "PREFIX", "TRIALS", "link", "saved"]


PREFIX = "mlflow.sharedViewState."
SAVED = 1_760_000_000_000
"""Milliseconds since 1970, the same in every experiment: a view that has not changed is not sent."""
TRIALS, CHOSEN, METHODS = "deelbo-trials", "deelbo-chosen", "deelbo-methods"
COST = "cost_seconds"
Json = dict[str, Any]
NAME, DATE = "attributes.`Run Name`", "runDateAndNestInfo"
"""The page's own names of its first two columns."""
COLUMNS = [
    *(f"params.`{name}`" for name in ("method", "prior", "n", "seed", "stage")),
    *(f"metrics.`{name}`" for name in ("test_acc", "total_seconds", "train_seconds", "learning_rate")),
    *(f"metrics.`{name}`" for name in ("alpha", "beta", "lambda", "tau", "val_nll", "objective")),
    "tags.`status`",
]
"""What tells trials apart comes first: the page puts all metrics before that, unless it is told an order."""
WIDTHS = {NAME: 330, DATE: 120, "params.`method`": 140, "params.`n`": 70, "params.`seed`": 70}
"""Pixels. A name has its method, stage and settings first, which the page's own 190 cut."""
SECTIONS = ("Accuracy against time", "Training", "Learned strengths", "Model metrics", "System metrics")
"""The last two are the page's own names: it puts there what is in none of the others."""
OPEN = 3


def _section(name: str) -> str:
    return f"deelbo-{SECTIONS.index(name)}"


def _line(section: str, metric: str, title: str, x: str = "step", log: bool = False) -> Json:
    axis: Json = {"xAxisKey": "step"} if x == "step" else {"xAxisKey": "metric", "selectedXAxisMetricKey": x}
    return _card("LINE", section, f"{metric} {x}", title) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "scaleType": "log" if log else "linear",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
        **axis,
    }


def _scatter(section: str, x: str, y: str, title: str) -> Json:
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", x), ("yaxis", y))}
    return _card("SCATTER", section, f"{y} {x}", title) | axes


def _bar(section: str, metric: str) -> Json:
    return _card("BAR", section, metric, metric) | {"metricKey": metric, "selectedMetricKeys": [metric]}


def _card(kind: str, section: str, key: str, title: str) -> Json:
    return {
        "type": kind,
        "uuid": f"deelbo {kind} {key}",
        "metricSectionId": _section(section),
        "displayName": title,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _charts(grouped: bool, seconds: str = "total_seconds") -> list[Json]:
    """The charts of a view. Of a group the page draws the mean at each x: seconds are never the same in two runs, so
    groups go by steps alone. ``seconds``: the metric against which accuracy is drawn."""
    first, second, third, *_ = SECTIONS
    by_seconds = [
        _line(second, "train_nll", "training loss by seconds", x="train_seconds"),
        _line(second, "val_nll", "validation loss by seconds", x="train_seconds"),
    ]
    return [
        _scatter(first, seconds, "test_acc", "test accuracy against seconds"),
        _bar(first, "test_acc"),
        _bar(first, seconds),
        _line(second, "train_nll", "training loss by step"),
        *([] if grouped else by_seconds),
        _line(third, "alpha", "alpha, the backbone's weight decay", log=True),
        _line(third, "beta", "beta, the head's weight decay", log=True),
        _line(third, "lambda", "lambda, the backbone's prior variance", log=True),
        _line(third, "sigma", "sigma of the posterior", log=True),
    ]


def _view(query: str, order: str, ascending: bool, methods: Sequence[str] = (), cost: str = "") -> Json:
    """A view's state. ``methods``: grouped by these, the groups closed; ``cost``: a metric that it shows besides."""
    sections = [
        {"uuid": _section(name), "name": name, "display": i < OPEN, "isReordered": False, "deleted": False}
        for i, name in enumerate(SECTIONS)
    ]
    grouped = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "method"}]}
    columns = list(COLUMNS)
    if cost:
        columns.insert(columns.index("metrics.`test_acc`") + 1, f"metrics.`{cost}`")
    return {
        "searchFilter": query,
        "orderByKey": order,
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": [NAME, DATE, *columns],
        "columnWidths": dict.fromkeys(columns, 100) | WIDTHS,
        "compareRunCharts": _charts(bool(methods), cost or "total_seconds"),
        "compareRunSections": [section | {"isGenerated": True} for section in sections],
        "groupBy": grouped if methods else None,
        "groupsExpanded": {f"param.method.{name}": False for name in methods},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL" if methods else "FIRST_20_RUNS",
    }


def _views(methods: Sequence[str]) -> dict[str, tuple[str, Json]]:
    """By the name in their link: what the page lists them as, and its state."""
    trial = "tags.`deelbo.role` = 'trial'"
    return {
        TRIALS: ("Trials, the most accurate first", _view(trial, "metrics.`test_acc`", False)),
        # by seed, as the page groups what it has loaded: so the first 100 are whole splits, with every method in them
        CHOSEN: (
            "Methods, what each chose",
            _view(f"{trial} and tags.`chosen` = 'true'", "params.`seed`", True, methods, COST),
        ),
        # in the order in which they began: by accuracy, the first 100 would be the best alone
        METHODS: (
            "Methods, mean over all settings",
            _view(f"{trial} and metrics.test_acc >= 0", "attributes.start_time", True, methods),
        ),
    }


def saved(methods: Sequence[str]) -> dict[str, str]:
    """The experiment's tags in which the page finds the views. ``methods``: the benchmark's entries, by name."""
    return {
        f"{PREFIX}{name}": json.dumps(
            {
                "name": title,
                "createdAt": SAVED,
                "updatedAt": SAVED,
                "state": _packed(json.dumps(state, separators=(",", ":"))),
            }
        )
        for name, (title, state) in _views(methods).items()
    }


def _packed(text: str) -> str:
    """As the page packs what it saves: some of MLflow's stores take 5,000 letters a tag."""
    return f"deflate;{base64.b64encode(zlib.compress(text.encode(), 9)).decode()}"


def link(experiment: str, view: str, charts: bool = False) -> str:
    """A view's place below the page's address."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}{'&compareRunsMode=CHART' if charts else ''}"
