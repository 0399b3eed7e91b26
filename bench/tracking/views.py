"""The three views that MLflow's page lists for a benchmark, saved with the experiment.

The page keeps a view (filter, order, columns, groups, charts) in a tag of the experiment, and opens it by a link with
its name. MLflow does not document the format, so no view shows anything that is not a few clicks away without it.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

PREFIX = "mlflow.sharedViewState."
TRIALS, CHOSEN, METHODS = "deelbo-trials", "deelbo-chosen", "deelbo-methods"
SAVED_MILLISECONDS = 1_760_000_000_000  # constant, so that an unchanged view is an unchanged tag
NAME, DATE = "attributes.`Run Name`", "runDateAndNestInfo"  # the page's first two columns
COLUMNS = [
    *(f"params.`{name}`" for name in ("method", "prior", "n", "seed", "stage")),
    *(f"metrics.`{name}`" for name in ("test_acc", "total_seconds", "train_seconds", "learning_rate")),
    *(f"metrics.`{name}`" for name in ("alpha", "beta", "lambda", "tau", "val_nll", "objective")),
    "tags.`status`",
]
WIDTHS = {NAME: 330, DATE: 120, "params.`method`": 140, "params.`n`": 70, "params.`seed`": 70}  # pixels
SECTIONS = ("Accuracy against time", "Training", "Learned strengths", "Model metrics", "System metrics")
NUM_OPEN_SECTIONS = 3  # the other two, named by the page, have all metrics that no chart here shows


def _chart(kind: str, section: int, metric: str, title: str, x: str = "", log: bool = False) -> dict[str, Any]:
    """Return a bar, a scatter of a metric over the metric ``x``, or its line over ``x`` or over steps."""
    chart: dict[str, Any] = {"type": kind, "uuid": f"deelbo {kind} {metric} {x}", "displayName": title}
    chart |= {"metricSectionId": f"deelbo-{section}", "runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    if kind == "SCATTER":
        return chart | {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": metric, "type": "METRIC"}}
    chart |= {"metricKey": metric, "selectedMetricKeys": [metric]}
    if kind == "LINE":
        chart |= {"xAxisKey": "metric", "selectedXAxisMetricKey": x} if x else {"xAxisKey": "step"}
        chart |= {"scaleType": "log" if log else "linear", "xAxisScaleType": "linear", "lineSmoothness": 0, "range": {}}
        chart |= {"yAxisKey": "metric", "yAxisExpressions": []}
        chart |= {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": True}
    return chart


def _charts(seconds: str, grouped: bool) -> list[dict[str, Any]]:
    """Return a view's charts. The page averages groups at each x, so groups have no charts over seconds."""
    over_seconds = [("train_nll", "training loss by seconds"), ("val_nll", "validation loss by seconds")]
    learned = {
        "alpha": "alpha, the backbone's weight decay",
        "beta": "beta, the head's weight decay",
        "lambda": "lambda, the backbone's prior variance",
        "sigma": "sigma of the posterior",
    }
    return [
        _chart("SCATTER", 0, "test_acc", "test accuracy against seconds", seconds),
        _chart("BAR", 0, "test_acc", "test_acc"),
        _chart("BAR", 0, seconds, seconds),
        _chart("LINE", 1, "train_nll", "training loss by step"),
        *(_chart("LINE", 1, name, title, "train_seconds") for name, title in over_seconds if not grouped),
        *(_chart("LINE", 2, name, title, log=True) for name, title in learned.items()),
    ]


def _view(
    query: str, order: str, ascending: bool, methods: Sequence[str] = (), cost: str = "total_seconds"
) -> dict[str, Any]:
    """Return a view's state, its table grouped by ``methods``, its charts comparing accuracy with ``cost``."""
    columns = list(COLUMNS)
    column = f"metrics.`{cost}`"
    if column not in columns:
        columns.insert(columns.index("metrics.`test_acc`") + 1, column)
    groups = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "method"}]}
    return {
        "searchFilter": f"tags.`deelbo.role` = 'trial'{query}",
        "orderByKey": order,
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": [NAME, DATE, *columns],
        "columnWidths": dict.fromkeys(columns, 100) | WIDTHS,
        "compareRunCharts": _charts(cost, bool(methods)),
        "compareRunSections": [
            {"uuid": f"deelbo-{i}", "name": name, "display": i < NUM_OPEN_SECTIONS}
            | {"isReordered": False, "deleted": False, "isGenerated": True}
            for i, name in enumerate(SECTIONS)
        ],
        "groupBy": groups if methods else None,
        "groupsExpanded": {f"param.method.{name}": False for name in methods},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL" if methods else "FIRST_20_RUNS",
    }


def saved_views(methods: Sequence[str]) -> dict[str, str]:
    """Return the experiment's tags in which the page finds the views. ``methods``: names of the benchmark's methods."""
    views = {
        TRIALS: ("Trials, the most accurate first", _view("", "metrics.`test_acc`", False)),
        # the page groups the 100 trials that it loads: by seed, these are whole splits, with every method in them
        CHOSEN: (
            "Methods, what each chose",
            _view(" and tags.`chosen` = 'true'", "params.`seed`", True, methods, "cost_seconds"),
        ),
        # by accuracy, the 100 would be the best only
        METHODS: (
            "Methods, mean over all settings",
            _view(" and metrics.test_acc >= 0", "attributes.start_time", True, methods),
        ),
    }
    tags = {}
    for name, (title, state) in views.items():
        packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)  # some stores take 5,000 letters
        view = {"name": title, "createdAt": SAVED_MILLISECONDS, "updatedAt": SAVED_MILLISECONDS}
        tags[f"{PREFIX}{name}"] = json.dumps(view | {"state": f"deflate;{base64.b64encode(packed).decode()}"})
    return tags


def link(experiment: str, view: str) -> str:
    """Return a view's address below that of the page."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}"
