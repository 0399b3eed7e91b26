"""Read the authors' result files into the table of trials that our own records give.

The files have one row per run: ``tuned_*.csv`` (runtime in seconds, val_acc, val_nll) and ``retrained_*.csv`` (runtime,
test_acc, test_nll). ``model_name`` holds the hyperparameters: lr_0, and either tau (2024: the weight decay of backbone
and head for L2-zero and L2-SP, of the head for PTYL) with PTYL's lambda, or alpha and beta (later). The prior is in the
column ``method`` (2024) or ``criterion`` (later).
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES
from bench.results.frame import COLUMNS, iterate_groups
from bench.trials.record import ROUNDING
from bench.utils.text import short_repr, single_line

REQUIRED = {"model_name", "n", "random_state", "runtime"}
NAME_PART = re.compile(r"(?:^|_)(lr_0|tau|lambda|alpha|beta|n|random_state)=([0-9.eE+-]+)(?=_|$)")
EXPECTED_NAME = "PRIOR_..._lr_0=..._n=..._random_state=... with tau=... or alpha=..._beta=..."
SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale"]
CELL = ["prior", "n", "seed"]
STAGES = {"tune": ("tuning", ["val_acc", "val_nll"]), "retrain": ("retraining", ["test_acc", "test_nll"])}
PRIOR_COLUMNS = ("criterion", "method")
MAX_NUMBER = 2**31
MAX_FILE_BYTES = 50_000_000
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
Cell: TypeAlias = tuple[object, ...]


class PublishedRuns(NamedTuple):
    """Runs in the columns of `bench.results.frame.COLUMNS`, a line per reason why rows cannot be used, and remarks."""

    frame: pd.DataFrame
    problems: list[str]
    notes: list[str]


def read_published(
    tuned: Path, retrained: Path, dataset: str | None = None, source: str = "published"
) -> PublishedRuns:
    """Read the two files of a dataset, by default the one in their names, as one table of trials.

    Rows without a runtime are placeholders and left out. A run with a runtime but no finite NLL diverged. A row that
    cannot be read, or two that disagree about one run, remove their whole cell (prior, N, seed), by the columns and by
    the name: a grid with a gap would pass for a smaller grid. So does a line without an end or with too few fields, as
    its last number may be cut.

    Raises:
        ValueError: a file is not such a table, or no row of it can be used.
    """
    name = _dataset(tuned, retrained)
    parts, problems, notes = [], [], []
    unusable: set[Cell] = set()
    for path, stage in ((tuned, "tune"), (retrained, "retrain")):
        rows, placeholders, cut = _read_runs(path, stage)
        rows["problem"] = rows["problem"].where(rows["problem"] != "", _disagreement(rows))
        for text, group in rows[rows["problem"] != ""].groupby("problem", sort=False):
            cells = dict.fromkeys(cell for row in group.to_dict("records") for cell in _possible_cells(row))
            problems.append(single_line(f"{path}: {text}; left out: {' and '.join(map(_describe, cells))}"))
            unusable |= set(cells)
        if cut:
            cells = dict.fromkeys(cell for of in cut.values() for cell in of)
            problems.append(
                single_line(
                    f"{path}: no end or too few fields in line {', '.join(map(str, cut))}, which may be cut, and "
                    f"others may be missing: copy the file again; left out: {' and '.join(map(_describe, cells))}"
                )
            )
            unusable |= set(cells)
        if placeholders:
            notes.append(f"{path.name}: {placeholders} rows without a runtime are placeholders, and left out.")
        parts.append(rows)
    frame = pd.concat(parts, ignore_index=True)
    for cell, count in _unmatched(frame[frame["problem"] == ""]).items():
        if cell not in unusable:
            problems.append(
                f"{tuned}: no tuning run for {count} retrained run{'s' * (count > 1)}, so that the grid is incomplete; "
                f"left out: {_describe(cell)}"
            )
            unusable.add(cell)
    frame = frame[[cell not in unusable for cell in frame[CELL].itertuples(index=False, name=None)]]
    if frame.empty:
        reason = f": {problems[0]}" if problems else ", only placeholders"
        raise ValueError(f"{tuned} and {retrained} hold no run that can be used{reason}")
    frame = frame.reset_index(drop=True)
    frame = frame.assign(dataset=dataset or name, backbone="resnet50", method="map-gs", source=source)
    absent = {name: float("nan") if kind == "float64" else "" for name, kind in COLUMNS.items() if name not in frame}
    return PublishedRuns(frame.assign(**absent)[list(COLUMNS)].astype(COLUMNS), problems, notes)


def _dataset(tuned: Path, retrained: Path) -> str:
    """Return the dataset in the names of both files."""
    first, second = tuned.stem.removeprefix("tuned_"), retrained.stem.removeprefix("retrained_")
    if first != second and first != tuned.stem and second != retrained.stem:
        raise ValueError(f"{tuned} and {retrained} are named after two datasets: give the two files of one")
    return first


def _read_runs(path: Path, stage: str) -> tuple[pd.DataFrame, int, dict[int, list[Cell]]]:
    """Read a file: runs with a column ``problem`` (empty: usable), the number of placeholders, cells of cut lines."""
    kind, metrics = STAGES[stage]
    raw, prior, cut = _read_table(path, f"the published {kind} results", metrics)
    has_runtime = raw["runtime"].notna()
    raw = raw[has_runtime].fillna({"model_name": ""}).reset_index(drop=True)
    texts = raw[["n", "random_state", "runtime", *metrics]]
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype("float64")
    for column in ("n", "random_state"):
        bad = ~((numbers[column] % 1 == 0) & numbers[column].between(0, MAX_NUMBER))
        if bad.any():
            value = short_repr.repr(texts.loc[bad, column].iloc[0])
            raise ValueError(f"{path}: {column} = {value} is not an integer from 0 to {MAX_NUMBER}: correct the file")
    accuracy = numbers[metrics[0]]
    numbers[metrics[0]] = accuracy.mask(accuracy.between(-ROUNDING, 1 + ROUNDING), accuracy.clip(0, 1))
    settings = pd.DataFrame(
        [_parse_name(name, of) for name, of in zip(raw["model_name"], raw[prior], strict=True)],
        columns=[*SETTINGS, "n", "seed"],
        dtype="float64",
    )
    readable = settings["head_weight_decay"].notna()
    contradicts = (settings["n"] != numbers["n"]) | (settings["seed"] != numbers["random_state"])
    contradicts |= raw["model_name"].str.split("_").str[0] != raw[prior]
    checks = {
        f"expected a prior of {', '.join(PRIOR_NAMES)}": ~raw[prior].isin(list(PRIOR_NAMES)),
        f"cannot be read, expected {EXPECTED_NAME}": ~readable,
        f"has another prior, n or random_state than the columns {prior}, n and random_state": readable & contradicts,
        "has a number that cannot be read": (numbers.isna() & texts.notna()).any(axis=1),
        f"has a runtime that is not above 0 and below {MAX_NUMBER} s": ~numbers["runtime"].between(
            0, MAX_NUMBER, "neither"
        ),
        "has an accuracy outside 0 to 1": numbers[metrics[0]].notna() & ~numbers[metrics[0]].between(0, 1),
    }
    problem = pd.Series("", index=raw.index, dtype=object)
    for text, bad in checks.items():
        problem = problem.where(~bad | (problem != ""), "model_name " + raw["model_name"].map(_quote) + " " + text)
    rows = pd.DataFrame(
        {
            "key": raw["model_name"],
            "prior": raw[prior].fillna("?"),
            "n": numbers["n"].astype("int64"),
            "seed": numbers["random_state"].astype("int64"),
            "stage": stage,
            "status": np.where(np.isfinite(numbers[metrics[1]]), "completed", "diverged"),
            "train_seconds": numbers["runtime"],
            **{metric: numbers[metric] for metric in metrics},
            **{name: settings[name] for name in SETTINGS},
            "problem": problem,
        }
    )
    repeated = rows.duplicated([name for name in rows if name not in ("key", "problem")]) & (rows["problem"] == "")
    return rows[~repeated].reset_index(drop=True), int((~has_runtime).sum()), cut


def _read_table(path: Path, content: str, metrics: list[str]) -> tuple[pd.DataFrame, str, dict[int, list[Cell]]]:
    """Read the file as text, and find the column that names the prior; a cut line, by its number, gives its cells."""
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ValueError(f"it has {size} bytes, at most {MAX_FILE_BYTES} are read")
        data = path.read_bytes()
        if b"\0" in data:
            raise ValueError("it has zero bytes: it is not in UTF-8, or was copied in part")
        lines = data.splitlines(keepends=True)
        header = _split_line(lines[0]) if lines else [""]
        while len(header) > 1 and not header[-1]:  # commas at the end of the header alone
            del header[-1]
        separator = next((name for sign, name in SEPARATORS.items() if sign in header[0]), None)
        if len(header) == 1 and separator is not None:
            raise ValueError(f"its columns are separated by {separator}: save it with commas, and points in numbers")
        cut = {i: cells for i, line in enumerate(lines[1:], 2) if (cells := _cut_cells(header, line, i))}
        whole = b"".join(line for i, line in enumerate(lines, 1) if i not in cut)
        raw = pd.read_csv(io.BytesIO(whole), dtype=str).drop_duplicates()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a CSV table ({single_line(error)}): give {content}") from error
    prior = next((column for column in PRIOR_COLUMNS if column in raw), None)
    missing = sorted((REQUIRED | set(metrics)) - set(raw.columns)) + ([] if prior else ["method or criterion"])
    if prior is None or missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: give {content}")
    return raw, prior, cut


def _split_line(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8-sig", errors="replace")])) or [""]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _cut_cells(header: list[str], line: bytes, number: int) -> list[Cell]:
    """Find the cells that a line may belong to which has no end or lacks fields; none for a blank or a whole line."""
    fields = _split_line(line)
    if not line.strip() or (line.endswith((b"\n", b"\r")) and len(fields) >= len(header)):
        return []
    whole = dict(zip(header, fields[:-1], strict=False))
    try:
        row = {"key": whole["model_name"], "prior": next(whole[name] for name in PRIOR_COLUMNS if name in whole)}
        cells = _possible_cells(row | {"n": int(whole["n"]), "seed": int(whole["random_state"])})
    except (KeyError, StopIteration, ValueError):
        raise ValueError(f"line {number} is cut") from None
    return list(dict.fromkeys(cells))


def _possible_cells(row: dict[Any, Any]) -> Iterator[Cell]:
    """Cells that an unusable row may belong to: by its columns, and by its name."""
    yield tuple(row[name] for name in CELL)
    parts = dict(NAME_PART.findall(row["key"]))
    prior = next((prior for prior in PRIOR_NAMES if row["key"].startswith(f"{prior}_")), row["prior"])
    try:
        yield prior, int(parts.get("n", row["n"])), int(parts.get("random_state", row["seed"]))
    except ValueError:
        return


def _unmatched(rows: pd.DataFrame) -> dict[Cell, int]:
    """Count the retrained runs of each cell that have no tuning run."""
    pairs = rows.merge(rows.loc[rows["stage"] == "tune", [*CELL, *SETTINGS]], how="left", indicator="tuned")
    unmatched = pairs[(pairs["stage"] == "retrain") & (pairs["tuned"] == "left_only")]
    return {tuple(cell.values()): len(group) for cell, group in iterate_groups(unmatched, CELL, sort=True)}


def _disagreement(rows: pd.DataFrame) -> pd.Series:
    """Describe the problem of each run that has two rows with different results; empty for other runs."""
    twice = rows.duplicated([*CELL, *SETTINGS], keep=False) & (rows["problem"] == "")
    first = rows.groupby([*CELL, *SETTINGS], dropna=False)["key"].transform("first")
    text = "model_name " + first.map(_quote) + " has two rows that disagree"
    return text.where(twice, "")


def _describe(cell: Cell) -> str:
    return "{}, N = {}, seed {}".format(*cell)


def _quote(name: str) -> str:
    return single_line(repr(name), 120)


def _parse_name(name: str, prior: object) -> dict[str, float]:
    """Parse the hyperparameters, n and seed in a model_name; empty if it cannot be read."""
    try:
        parts = {key: float(value) for key, value in NAME_PART.findall(name)}
        head = parts["beta"] if "beta" in parts else parts["tau"]
        backbone = {"prior_scale": parts["lambda"]} if prior == "ptyl" else {"weight_decay": parts.get("alpha", head)}
        shared = {"learning_rate": parts["lr_0"], "n": parts["n"], "seed": parts["random_state"]}
    except (KeyError, ValueError):
        return {}
    return shared | backbone | {"head_weight_decay": head}
