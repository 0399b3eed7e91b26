"""What a trial becomes in MLflow: a name, parameters, metrics and tags, within what MLflow takes.

Every metric is a column to sort by and a chart, so few are made, by the names of docs/method.md: alpha and beta are the
strengths that a trial ended with, given or learned, so that methods compare in one column. The page draws a metric
whose last step is 0 as a bar, any other as a line, and shows what begins with ``system/`` apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from pydantic_core import from_json

from bench.exceptions import RecordError
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

__all__ = [
    "Content",
    "clipped",
    "content_of",
    "is_current",
    "key_of",
    "mark_of",
    "name_of",
    "params_of",
    "rounded",
    "stamp",
]


FORMAT = "format 3"
"""Ends a run's mark. A new one wherever the same record becomes something else, so that earlier runs are sent anew."""
LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 250, 6000, 8000, 250
ERROR = 4000
DIGITS = 6
"""Significant digits of a number: as many as a column of the page has room for. All of them are in the records."""
NAMES = {
    "weight_decay_backbone": "alpha",
    "weight_decay_head": "beta",
    "scale_backbone": "lambda",
    "scale_head": "tau",
    "mean_weight_decay_backbone": "alpha_mean",
    "mean_weight_decay_head": "beta_mean",
    "train": "train_seconds",
    "total": "total_seconds",
}
ONCE = ("test_acc", "test_nll", "objective", "nll_under_q", "kappa", "learning_rate", "total_seconds")
"""Numbers that a trial has one of: at step 0. All others belong to its last step."""
ASIDE = ("lost_seconds", "resumed_seconds", "resumed_at_step", "handed_over_at_step", "peak_device_gib")
CONSTANT = ("dim_", "trace_precision_", "log_det_")
"""What the architecture and the prior fix, the same in every trial of a cell: tags, as no chart of it says anything."""
FEW_NEED = ("learner", "kappa_share", "until", "since", "number", "options")
OF_GROUPS = re.compile(r"(mean_weight_decay|weight_decay|scale|dim|squared_distance|trace_precision|log_det)_(.+)")
PARTS = ("backbone", "head")
MOST_OPTIONS = 40  # many times what methods have; MLflow takes 100 parameters a request
NOT_IN_SERIES = ("step", "epoch", "learning_rate", "kappa")
"""The cosine is known; ``learning_rate`` is where it starts."""
Point = tuple[str, float, int, int]


@dataclass(frozen=True)
class Content:
    """What a finished trial's run holds beside its parameters.

    Attributes:
        metrics: points of (name, value, milliseconds since 1970, step).
        tags: what is no number to sort by, the numbers that are not finite among it.
    """

    metrics: list[Point]
    tags: dict[str, str]


def clipped(text: str, most: int = LONGEST_TAG) -> str:
    """The text without what databases refuse in one, and cut where it is too long."""
    text = text.encode("utf-8", "replace").decode().replace("\x00", "?")
    return text if len(text) <= most else f"{text[: most - 3]}..."


def key_of(name: str) -> str:
    """The name as MLflow takes it for a metric or a tag: letters, digits and ``_ - . space : /``, and no path that
    stands for another."""
    allowed = re.sub(r"[^\w\-. :/]", "_", clipped(name, LONGEST_KEY))
    return "/".join(part for part in allowed.split("/") if part.strip(".")).lstrip(".") or "_"


def stamp(seconds: float) -> int:
    """MLflow's milliseconds."""
    return int(seconds * 1000)


def name_of(spec: TrialSpec) -> str:
    """As `TrialSpec.describe`, what tells a cell's trials apart first: legends cut a long name."""
    where = f"{spec.dataset} {spec.backbone} {spec.prior} n={spec.n} seed={spec.seed}"
    what = spec.describe().removeprefix(where).strip()
    return clipped(f"{what} {spec.prior} n={spec.n} seed={spec.seed} {spec.dataset} {spec.backbone}", LONGEST_NAME)


def params_of(spec: TrialSpec) -> dict[str, str]:
    """Every field that is set; of those that few trials need, where they say something. A method's own settings are
    one each, such as ``options.sampler``: two entries that differ in one then differ in one row of a comparison."""
    plain = {field.name: field.default for field in fields(TrialSpec) if field.name in FEW_NEED}
    values = {
        name: value
        for name, value in asdict(spec).items()
        if value is not None and (name not in plain or value != plain[name])
    }
    if (
        spec.stage == "run" and spec.kappa is None and spec.learner is None
    ):  # kappa is a share of D/N, if only all of it
        values["kappa_share"] = spec.kappa_share
    values |= _options(str(values.pop("options", "{}")))
    return {name: clipped(str(value), LONGEST_PARAM) for name, value in values.items()}


def _options(text: str) -> dict[str, str]:
    """By their names; the text as it is where a record that somebody else wrote has something else there."""
    try:
        content = from_json(text, allow_inf_nan=False)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or len(content) > MOST_OPTIONS:
        return {"options": text}
    return {
        key_of(f"options.{name}"): value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in content.items()
    }


def mark_of(record: TrialRecord) -> str:
    """What tells a record from another of the same trial, and from the same as an earlier version sent it."""
    return f"{record.status} {record.attempt} {stamp(record.finished)} {FORMAT}"


def is_current(mark: str) -> bool:
    """Whether a run with that mark was sent as this version sends runs."""
    return mark.endswith(f" {FORMAT}")


def content_of(record: TrialRecord, series: list[dict[str, float]]) -> Content:
    """A record and its series. The same always gives the same points, so that MLflow knows them when they come again.

    Raises:
        RecordError: the series is not one.
    """
    try:
        metrics = list(_lines(record, series))
    except (KeyError, ValueError, OverflowError) as error:
        raise RecordError(
            f"the series of {record.key} is damaged ({type(error).__name__}: {error}): delete it, its trial stays "
            "without one"
        ) from None
    step = int(series[-1]["step"]) if series else record.spec.steps if record.status == "completed" else 0
    there = {name for name, _, _, at in metrics if at == step}
    last = {_name(name): value for name, value in _last(record).items()}
    when = stamp(record.finished)
    tags = {}
    for name, value in last.items():
        if not math.isfinite(value) or name.startswith(CONSTANT):
            tags[name] = f"{value:.{DIGITS}g}"
        elif name not in there:
            metrics.append((name, value, when, 0 if name in ONCE or name.startswith("system/") else step))
    tags |= {"status": record.status, "attempt": str(record.attempt), "concurrency": str(record.concurrency)}
    tags["timed"] = str(record.timed).lower()
    tags |= {key_of(f"hardware.{name}"): clipped(str(value)) for name, value in record.hardware.items()}
    tags |= {key_of(f"version.{name}"): clipped(str(value)) for name, value in record.versions.items()}
    if record.error is not None:
        tags["error"] = clipped(record.error[-ERROR:])
    return Content([(name, rounded(value), when, step) for name, value, when, step in metrics], tags)


def _lines(record: TrialRecord, series: list[dict[str, float]]) -> Iterator[Point]:
    """The points of the series: what changes, row by row; what stays as it is, at both ends, which draw its line."""
    rows = [
        (int(row["step"]), stamp(record.started + row["train_seconds"]), {_name(n): v for n, v in row.items()})
        for row in series
    ]
    skipped = {_name(name) for name in NOT_IN_SERIES}
    there = dict.fromkeys(name for row in series for name in row if _has_room(name))
    names = [name for name in map(_name, there) if name not in skipped]
    for name in names:
        if name.startswith(CONSTANT):
            continue
        points = [(name, row[name], when, step) for step, when, row in rows if math.isfinite(row.get(name, math.nan))]
        if name == "train_seconds":  # the clock's own, a little later than the last look at it, is the last
            points = [point for point in points if point[3] != rows[-1][0]] if "train" in record.seconds else points
        yield from points if len({value for _, value, *_ in points}) > 1 else dict.fromkeys([*points[:1], *points[-1:]])


def _has_room(name: str) -> bool:
    """Whether a number is not one of a single layer's: a chart for each of hundreds says nothing. Records have them."""
    found = OF_GROUPS.fullmatch(name)
    return found is None or found[2] in PARTS


def _last(record: TrialRecord) -> dict[str, float]:
    """Every number that the trial ended with, but for those of single layers."""
    state = {name: value for name, value in record.state.items() if _has_room(name)}
    values = {"learning_rate": record.spec.learning_rate} | record.metrics | state
    phases = {name: seconds for name, seconds in record.seconds.items() if name not in NAMES}
    values |= {name: seconds for name, seconds in record.seconds.items() if name in NAMES}
    values |= {f"system/seconds_{phase}": seconds for phase, seconds in phases.items() if seconds}
    if record.lost_seconds > 0:
        values["lost_seconds"] = record.lost_seconds
    return values


def rounded(value: float) -> float:
    """To six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _name(name: str) -> str:
    return f"system/{name}" if name in ASIDE else key_of(NAMES.get(name, name))
