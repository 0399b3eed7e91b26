"""Convert a trial to MLflow's terms: name, parameters, metrics, tags and dataset, within MLflow's limits.

Every metric is a sortable column and a chart, so there are few, with the names of docs/method.md: alpha and beta are
the final weight decays, given or learned, so that methods compare in one column. The page draws a metric whose last
step is 0 as a bar, any other as a line, and lists names that begin with ``system/`` apart.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic_core import from_json

from bench.exceptions import RecordError
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

MAX_NAME_CHARS, MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_ERROR_CHARS = 250, 6000, 8000, 4000
MAX_DATASET_NAME_CHARS, MAX_DIGEST_CHARS, MAX_INPUT_TAG_CHARS = 500, 36, 500
MAX_OPTIONS = 40  # MLflow takes 100 parameters a request
SIGNIFICANT_DIGITS = 6  # as many as a column of the page has room for; the records have all
RENAMED = {
    "weight_decay_backbone": "alpha",
    "weight_decay_head": "beta",
    "scale_backbone": "lambda",
    "scale_head": "tau",
    "mean_weight_decay_backbone": "alpha_mean",
    "mean_weight_decay_head": "beta_mean",
    "train": "train_seconds",
    "total": "total_seconds",
}
BARS = {"test_acc", "test_nll", "objective", "nll_under_q", "kappa", "learning_rate", "total_seconds"}
BARS |= {"gradient_equivalents"}
"""Metrics with one value a trial, logged at step 0; others are logged at the trial's last step."""
SYSTEM = {"lost_seconds", "resumed_seconds", "resumed_at_step", "handed_over_at_step", "peak_device_gib"}
CONSTANTS = ("dim_", "trace_precision_", "log_det_")
"""Fixed by architecture and prior, equal in all trials of a cell, so a chart is useless: logged as tags."""
OPTIONAL_PARAMS = {
    *("learner", "kappa_share", "until", "since", "number", "options"),
    *("lr_scheduler", "validation_epoch", "stop_after", "train"),
}
"""Fields of a trial that are logged only where they differ from their default."""
GROUP_NUMBER = re.compile(
    r"(mean_weight_decay|weight_decay|scale|dim|squared_distance|trace_precision|log_det)_(?!backbone$|head$).+"
)
"""Numbers of a single layer: they are in the records only, as MLflow would draw hundreds of charts."""
NOT_IN_SERIES = {"step", "epoch", "learning_rate", "kappa"}  # the schedule is known; learning_rate is its start
Point = tuple[str, float, int, int]


@dataclass(frozen=True)
class Content:
    """A finished trial's run, but for its parameters.

    Attributes:
        metrics: points of (name, value, milliseconds since 1970, step).
        tags: text, and numbers that are not finite.
    """

    metrics: list[Point]
    tags: dict[str, str]


def clip_text(text: str, max_chars: int = MAX_TAG_CHARS) -> str:
    """Limit the length, and replace characters that databases refuse."""
    text = text.encode("utf-8", "replace").decode().replace("\x00", "?")
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def milliseconds(seconds: float) -> int:
    """MLflow's unit of time."""
    return int(seconds * 1000)


def round_digits(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def record_mark(record: TrialRecord) -> str:
    """Identify a record among all records of its trial."""
    return f"{record.status} {record.attempt} {milliseconds(record.finished)}"


def final_status(mark: str) -> str:
    """Return the status in MLflow of a run with the record of that mark."""
    return "FAILED" if mark.startswith("failed") else "FINISHED"


def run_name(spec: TrialSpec) -> str:
    """Return `TrialSpec.describe` with the method's settings before the cell, since legends cut long names."""
    cell = f"{spec.dataset} {spec.backbone} {spec.prior} n={spec.n} seed={spec.seed}"
    settings = spec.describe().removeprefix(cell).strip()
    return clip_text(
        f"{settings} {spec.prior} n={spec.n} seed={spec.seed} {spec.dataset} {spec.backbone}", MAX_NAME_CHARS
    )


def run_params(spec: TrialSpec) -> dict[str, str]:
    """Return the trial's fields that are set, and each of the method's own options as ``options.NAME``."""
    defaults = {field.name: field.default for field in fields(TrialSpec) if field.name in OPTIONAL_PARAMS}
    values = {
        name: value
        for name, value in asdict(spec).items()
        if value is not None and (name not in defaults or value != defaults[name])
    }
    if spec.stage == "run" and spec.kappa is None and spec.learner is None:  # there, kappa is a share of D/N
        values["kappa_share"] = spec.kappa_share
    values |= _options(str(values.pop("options", "{}")))
    return {name: clip_text(str(value), MAX_PARAM_CHARS) for name, value in values.items()}


def _options(text: str) -> dict[str, str]:
    """Return the options by name; the text itself if it is not an object of JSON or too large a one."""
    try:
        content = from_json(text, allow_inf_nan=False)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or len(content) > MAX_OPTIONS:
        return {"options": text}
    return {
        _valid_name(f"options.{name}"): value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in content.items()
    }


def run_content(record: TrialRecord, series: list[dict[str, float]]) -> Content:
    """Convert a record and its series; equal input gives equal points, which MLflow stores once.

    Raises:
        RecordError: the series is damaged.
    """
    try:
        metrics = list(_series_points(record, series))
    except (KeyError, ValueError, OverflowError) as error:
        raise RecordError(
            f"the series of {record.key} is damaged ({type(error).__name__}: {error}): delete it, its trial stays "
            "without one"
        ) from None
    step = int(series[-1]["step"]) if series else record.spec.steps if record.status == "completed" else 0
    at_last_step = {name for name, _, _, at in metrics if at == step}
    when = milliseconds(record.finished)
    tags = {}
    for name, value in _final_values(record).items():
        if not math.isfinite(value) or name.startswith(CONSTANTS):
            tags[name] = f"{value:.{SIGNIFICANT_DIGITS}g}"
        elif name not in at_last_step:
            metrics.append((name, value, when, 0 if name in BARS or name.startswith("system/") else step))
    tags |= {"status": record.status, "attempt": str(record.attempt), "concurrency": str(record.concurrency)}
    tags["timed"] = str(record.timed).lower()
    tags |= {_valid_name(f"hardware.{name}"): clip_text(str(value)) for name, value in record.hardware.items()}
    tags |= {_valid_name(f"version.{name}"): clip_text(str(value)) for name, value in record.versions.items()}
    if record.error is not None:
        tags["error"] = clip_text(record.error[-MAX_ERROR_CHARS:])
    return Content([(name, round_digits(value), when, step) for name, value, when, step in metrics], tags)


def _series_points(record: TrialRecord, series: list[dict[str, float]]) -> Iterator[Point]:
    """Return the points of the series; of a metric that never changes, the first and the last point only."""
    rows = [
        (
            int(row["step"]),
            milliseconds(record.started + row["train_seconds"]),
            {_metric_name(n): v for n, v in row.items()},
        )
        for row in series
    ]
    present = dict.fromkeys(_metric_name(name) for row in series for name in row if not GROUP_NUMBER.fullmatch(name))
    for name in present:
        if name in NOT_IN_SERIES or name.startswith(CONSTANTS):
            continue
        points = [(name, row[name], when, step) for step, when, row in rows if math.isfinite(row.get(name, math.nan))]
        if name == "train_seconds" and "train" in record.seconds:  # the clock's final value takes the last one's place
            points = [point for point in points if point[3] != rows[-1][0]]
        yield from points if len({value for _, value, *_ in points}) > 1 else dict.fromkeys([*points[:1], *points[-1:]])


def _final_values(record: TrialRecord) -> dict[str, float]:
    """Return all final numbers of a trial by their names in MLflow, without those of single layers."""
    values = {"learning_rate": record.spec.learning_rate} | record.metrics
    values |= {name: value for name, value in record.state.items() if not GROUP_NUMBER.fullmatch(name)}
    for phase, seconds in record.seconds.items():
        if phase in RENAMED:
            values[phase] = seconds
        elif seconds:
            values[f"system/seconds_{phase}"] = seconds
    if record.lost_seconds > 0:
        values["lost_seconds"] = record.lost_seconds
    return {_metric_name(name): value for name, value in values.items()}


def _metric_name(name: str) -> str:
    return f"system/{name}" if name in SYSTEM else _valid_name(RENAMED.get(name, name))


def _valid_name(name: str) -> str:
    """Replace characters that MLflow refuses in names of metrics and tags, and parts that would change a path."""
    allowed = re.sub(r"[^\w\-. :/]", "_", clip_text(name, MAX_NAME_CHARS))
    return "/".join(part for part in allowed.split("/") if part.strip(".")).lstrip(".") or "_"


def dataset_inputs(record: TrialRecord) -> list[Any]:
    """Return the trial's dataset, identified by name and hash of the images, as MLflow's input "training".

    ``n``, the split's ``seed`` and ``validation``, the share held out, are tags of the input, so that all trials of a
    dataset share one entry. Empty for a record without a hash: its trial failed before it read the images.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = record.versions.get("data")
    if not digest:
        return []
    spec = record.spec
    source = json.dumps({"task": spec.dataset})  # the argument of `deelbo.data.load_task`
    dataset = Dataset(
        clip_text(spec.dataset, MAX_DATASET_NAME_CHARS), clip_text(digest, MAX_DIGEST_CHARS), "deelbo", source
    )
    tags = {"n": spec.n, "seed": spec.seed, "validation": "1/5" if spec.stage == "tune" else "0"}
    input_tags = [InputTag(name, clip_text(str(value), MAX_INPUT_TAG_CHARS)) for name, value in tags.items()]
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", "training"), *input_tags])]
