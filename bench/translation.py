"""What a trial becomes in MLflow: a name, parameters, metrics and tags, within what MLflow takes."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass

from bench.records import RecordError
from bench.trials import TrialRecord, TrialSpec

__all__ = ["Content", "clipped", "content_of", "key_of", "mark_of", "name_of", "params_of", "stamp"]

LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 250, 6000, 8000, 250
ERROR = 4000
NAMES = {"scale_backbone": "lambda", "scale_head": "tau"}


@dataclass(frozen=True)
class Content:
    """What a finished trial's run holds beside its parameters.

    Attributes:
        metrics: points of (name, value, milliseconds since 1970, step).
        tags: what is no number, the numbers that are not finite among it.
    """

    metrics: list[tuple[str, float, int, int]]
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
    return clipped(spec.describe(), LONGEST_NAME)


def params_of(spec: TrialSpec) -> dict[str, str]:
    """Every field that is set."""
    return {name: clipped(str(value), LONGEST_PARAM) for name, value in asdict(spec).items() if value is not None}


def mark_of(record: TrialRecord) -> str:
    """What tells a record from another of the same trial."""
    return f"{record.status} {record.attempt} {stamp(record.finished)}"


def content_of(record: TrialRecord, series: list[dict[str, float]]) -> Content:
    """A record and its series. The same always gives the same points, so that MLflow knows them when they come again.

    Raises:
        RecordError: the series is not one.
    """
    metrics: list[tuple[str, float, int, int]] = []
    try:
        for row in series:
            when, step = stamp(record.started + row["train_seconds"]), int(row["step"])
            metrics += [
                (_name(name), value, when, step)
                for name, value in row.items()
                if name not in ("step", "epoch") and math.isfinite(value)
            ]
    except (KeyError, ValueError, OverflowError) as error:
        raise RecordError(
            f"the series of {record.key} is damaged ({type(error).__name__}: {error}): delete it, its trial stays "
            "without one"
        ) from None
    known = {name for name, value in series[-1].items() if math.isfinite(value)} if series else set()
    last = {name: value for name, value in (record.metrics | record.state).items() if name not in known}
    last |= {f"seconds_{phase}": seconds for phase, seconds in record.seconds.items()}
    if record.lost_seconds > 0:
        last["lost_seconds"] = record.lost_seconds
    when = stamp(record.finished)
    step = int(series[-1]["step"]) if series else record.spec.steps if record.status == "completed" else 0
    metrics += [(_name(name), value, when, step) for name, value in last.items() if math.isfinite(value)]
    tags = {_name(name): str(value) for name, value in last.items() if not math.isfinite(value)}
    tags |= {"status": record.status, "attempt": str(record.attempt), "concurrency": str(record.concurrency)}
    tags["timed"] = str(record.timed).lower()
    tags |= {key_of(f"hardware.{name}"): clipped(str(value)) for name, value in record.hardware.items()}
    tags |= {key_of(f"version.{name}"): clipped(str(value)) for name, value in record.versions.items()}
    if record.error is not None:
        tags["error"] = clipped(record.error[-ERROR:])
    return Content(metrics, tags)


def _name(name: str) -> str:
    return key_of(NAMES.get(name, name))
