"""Read the authors' result files into the table of trials that our own records give.

A grid has two files with one row per run: ``tuned_*.csv`` (runtime in seconds, val_acc, val_nll) and
``retrained_*.csv`` (runtime, test_acc, test_nll). ``model_name`` holds the hyperparameters: lr_0, and either tau (2024:
the weight decay of backbone and head for L2-zero and L2-SP, of the head for PTYL) with PTYL's lambda, or alpha and beta
(later). The prior is in the column ``method`` (2024) or ``criterion`` (later).

Bayesian optimization has one file, ``*_BO.csv``, with one row per tuning run: alpha, beta, lr_0, its place ``n_iter``
in a search, and the ``seed`` of the search. ``runtime`` is that of the search so far with one retraining of its best
run, whose results are test_acc and test_nll.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES
from bench.results.csv_text import read_csv_text
from bench.results.frame import COLUMNS, iterate_groups
from bench.trials.record import ROUNDING
from bench.utils.text import short_repr, single_line

FILE_NAME = re.compile(r"(.+?)(?:_(resnet.?50|vit.?b.?16|convnext.?tiny|bert.?base)(?:_.*)?)?(?:_BO)?", re.IGNORECASE)
BACKBONES = {"resnet50": "resnet50", "vitb16": "vit_b_16", "convnexttiny": "convnext_tiny", "bertbase": "bert"}
DATASETS = {"Flowers_102": "Flowers-102", "Flower-102": "Flowers-102", "Pet-37": "Oxford-IIIT_Pet"}
DATASETS |= {"AG_News": "news4", "News-4": "news4"}
NAME_PART = re.compile(r"(?:^|_)(lr_0|tau|lambda|alpha|beta|n|random_state)=([0-9.eE+-]+)(?=_|$)")
EXPECTED_NAME = "PRIOR_..._lr_0=..._n=..._random_state=... with tau=... or alpha=..._beta=..."
SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale"]
CELL = ["prior", "n", "seed"]
RUN = [*CELL, *SETTINGS, "method", "number"]
GRID = {"model_name", "n", "random_state", "runtime"}
STAGES = {"tune": ("tuning", ["val_acc", "val_nll"]), "retrain": ("retraining", ["test_acc", "test_nll"])}
SEARCH = ["n", "random_state", "seed", "n_iter", "alpha", "beta", "lr_0", "runtime"]
SEARCH += ["val_acc", "val_nll", "test_acc", "test_nll"]
SEARCH_PRIOR = "l2-sp"
LAPLACE = [f"{kind}_{metric}" for kind in ("val", "test") for metric in ("bma_acc", "clml")]
"""Columns of the authors' Laplace approximation, which some files have."""
PRIOR_COLUMNS = ("criterion", "method")
MAX_NUMBER = 2**31
Cell: TypeAlias = tuple[object, ...]


class PublishedRuns(NamedTuple):
    """Runs in the columns of `bench.results.frame.COLUMNS`, a line per reason why rows cannot be used, and remarks.

    Columns of `LAPLACE` follow where the files have them.
    """

    frame: pd.DataFrame
    problems: list[str]
    notes: list[str]


def read_published(*files: Path, dataset: str | None = None, source: str = "published") -> PublishedRuns:
    """Read the tuned and the retrained runs of a grid, or the one file of searches, as one table of trials.

    Dataset (unless given) and network are those that the files are named after. Rows without a runtime are placeholders
    and left out. A run with a runtime but no finite NLL diverged. A row that cannot be read, or two that disagree about
    one run, remove their whole cell (prior, N, seed), by the columns and by the name: a grid with a gap would pass for
    a smaller grid. So does a line without an end or with too few fields, as its last number may be cut.

    The search of seed K is the method ``bo-seed-K``. Its file has no seconds of single runs: a retraining counts half
    of the first row's, which has one run of each kind, and the rest is tuning, so that all sums are the file's own.

    Raises:
        ValueError: a file is not such a table, or no row of it can be used.
    """
    name, backbone = _parse_file_names(files)
    parts, problems, notes = [], list[str](), list[str]()
    if len(files) == 2:
        tables = [_read_table(path, stage, notes) for stage, path in zip(STAGES, files, strict=True)]
    else:
        tables = _split(_read_table(files[0], None, notes))
    unusable: set[Cell] = set()
    for stage, path, rows in zip(STAGES, (files[0], files[-1]), tables, strict=True):
        parts.append(_check_runs(rows, stage))
        for text, group in parts[-1][parts[-1]["problem"] != ""].groupby("problem", sort=False):
            cells = dict.fromkeys(cell for row in group.to_dict("records") for cell in _possible_cells(row))
            problems.append(single_line(f"{path}: {text}; left out: {' and '.join(map(_describe, cells))}"))
            unusable |= set(cells)
    frame = pd.concat(parts, ignore_index=True)
    for cell, count in _unmatched(frame[frame["problem"] == ""]).items():
        if cell not in unusable:
            retrained = f"{count} retrained run{'s' * (count > 1)}, so that the grid is incomplete"
            problems.append(f"{files[0]}: no tuning run for {retrained}; left out: {_describe(cell)}")
            unusable.add(cell)
    frame = frame[[cell not in unusable for cell in frame[CELL].itertuples(index=False, name=None)]]
    if frame.empty:
        reason = f": {problems[0]}" if problems else ", only placeholders"
        raise ValueError(f"{' and '.join(map(str, files))} hold no run that can be used{reason}")
    frame = frame.reset_index(drop=True)
    of_2024 = bool(frame["key"].str.contains("_tau=").any())
    notes += _describe_origin(files[0].name, backbone, of_2024, frame)
    backbone = backbone or ("resnet50" if of_2024 else "unknown")
    frame = frame.assign(dataset=dataset or name, backbone=backbone, source=source)
    absent = {name: float("nan") if kind == "float64" else "" for name, kind in COLUMNS.items() if name not in frame}
    columns = [*COLUMNS, *(name for name in LAPLACE if name in frame)]
    return PublishedRuns(frame.assign(**absent)[columns].astype(COLUMNS), list(dict.fromkeys(problems)), notes)


def _parse_file_names(files: Sequence[Path]) -> tuple[str, str | None]:
    """Return the dataset and the backbone in the names of the files; None for a backbone that they do not name."""
    first, last = files[0].stem.removeprefix("tuned_"), files[-1].stem.removeprefix("retrained_")
    if len(files) == 2 and first != last and first != files[0].stem and last != files[1].stem:
        raise ValueError(f"{files[0]} and {files[1]} are named after two datasets or networks: give two files of one")
    match = FILE_NAME.fullmatch(first)
    dataset, network = match.groups() if match else (first, None)
    return DATASETS.get(dataset, dataset), network and BACKBONES[re.sub("[^a-z0-9]", "", network.lower())]


def _describe_origin(file: str, backbone: str | None, of_2024: bool, frame: pd.DataFrame) -> Iterator[str]:
    """Describe what the files do not say, and columns that are not what they are named after."""
    if backbone is None:
        assumed = "ResNet-50 is assumed, the only one in 2024, when runs were named by tau"
        advice = assumed if of_2024 else "if you know it, put it there behind the dataset, such as ResNet_50"
        yield f"{file}: the name says no network, so it is not known: {advice}."
    if frame["number"].notna().any():
        yield f"{file}: no column says the prior: L2-SP is assumed, which the authors' searches have."
    if laplace := [name for name in LAPLACE if name in frame]:
        yield (
            f"{file}: {', '.join(laplace)} are the authors' own, and nothing is chosen by them. clml is no conditional "
            "marginal likelihood, as its axes are exchanged: log p(y_i | theta_s) is summed over the draws s, and its "
            "exponential averaged over the images i. bma_acc is the highest of several temperatures on the same images."
        )


def _read_table(path: Path, stage: str | None, notes: list[str]) -> pd.DataFrame:
    """Read the runs in the file of a stage, or of searches (None), as text; adds prior, entry, number, fault."""
    content = "the two files of a grid, or one of searches (*_BO.csv)"
    required = set(SEARCH)
    if stage is not None:
        content, required = f"the published {STAGES[stage][0]} results", GRID | set(STAGES[stage][1])
    try:
        raw = read_csv_text(path, ("model_name", "n", "random_state", "n_iter", "seed"))
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV table ({single_line(error)}): give {content}") from error
    prior = next((column for column in PRIOR_COLUMNS if column in raw), None)
    missing = sorted(required - set(raw)) + ["method or criterion"] * (stage is not None and prior is None)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: give {content}")
    placeholders = raw["runtime"].isna() & (raw["fault"] == "")
    if count := int(placeholders.sum()):
        notes.append(f"{path.name}: {count} rows without a runtime are placeholders, and left out.")
    raw = raw[~placeholders].reset_index(drop=True)
    for column in ("n", "random_state") if stage else ("n", "random_state", "seed", "n_iter"):
        values = pd.to_numeric(raw[column], errors="coerce")
        if (bad := ~((values % 1 == 0) & values.between(0, MAX_NUMBER))).any():
            value = short_repr.repr(raw.loc[bad, column].iloc[0])
            raise ValueError(f"{path}: {column} = {value} is not an integer from 0 to {MAX_NUMBER}: correct the file")
    if stage and prior:
        raw = raw.assign(prior=raw[prior], entry="map-gs", number=None)
    else:
        raw["model_name"] = raw["prior"] = SEARCH_PRIOR
        for name in ("alpha", "beta", "lr_0", "n", "random_state"):
            raw["model_name"] += f"_{name}=" + raw[name]
        raw = raw.assign(entry="bo-seed-" + raw["seed"].str.removesuffix(".0"), number=raw["n_iter"])
    return raw.fillna({"model_name": ""})


def _split(searches: pd.DataFrame) -> list[pd.DataFrame]:
    """Convert rows of searches to tuning runs, and to retrainings of each row's best run so far, which may repeat."""
    by = SEARCH[:3]
    numbers = searches[SEARCH].apply(pd.to_numeric, errors="coerce").astype("float64").sort_values(SEARCH[:4])
    searches, numbers = searches.loc[numbers.index].reset_index(drop=True), numbers.reset_index(drop=True)
    owner = numbers.groupby(by).ngroup()
    gap = (numbers["n_iter"] != numbers.groupby(owner).cumcount()) & (searches["fault"] == "")
    nll = numbers["val_nll"].fillna(np.inf)
    least = nll.groupby(owner).cummin().groupby(owner).shift(fill_value=np.inf)
    best = pd.Series(np.arange(len(nll))).where(nll < least).groupby(owner).ffill()
    retrained = best.notna() & ~((numbers["test_acc"] == 0) & np.isinf(numbers["test_nll"]))  # 0 and inf: was not run
    seconds = numbers["runtime"].groupby(owner).transform("first") / 2
    ends = numbers["runtime"] - seconds.where(retrained, 0)
    tuning = ends.groupby(owner).diff().fillna(ends)
    again = searches[retrained].assign(runtime=seconds[retrained])
    again[["model_name", "number"]] = searches.loc[best[retrained], ["model_name", "number"]].to_numpy()
    fault = "model_name " + searches["model_name"].map(_quote) + " follows a gap in n_iter"
    runtime = searches["runtime"].where(tuning.isna(), tuning)
    return [searches.assign(runtime=runtime, fault=searches["fault"].mask(gap, fault)), again]


def _check_runs(raw: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Convert rows to runs in columns of the frame, with a column ``problem`` (empty: usable)."""
    _, (accuracy, nll) = STAGES[stage]
    metrics = [accuracy, nll, *(name for name in LAPLACE if name in raw)]
    texts = raw[["n", "random_state", "number", "runtime", *metrics]]
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype("float64")
    values = numbers[accuracy]
    numbers[accuracy] = values.mask(values.between(-ROUNDING, 1 + ROUNDING), values.clip(0, 1))
    settings = pd.DataFrame(
        [_parse_name(name, prior) for name, prior in zip(raw["model_name"], raw["prior"], strict=True)],
        columns=[*SETTINGS, "n", "seed"],
        index=raw.index,
        dtype="float64",
    )
    readable = settings["head_weight_decay"].notna()
    contradicts = (settings["n"] != numbers["n"]) | (settings["seed"] != numbers["random_state"])
    contradicts |= raw["model_name"].str.split("_").str[0] != raw["prior"]
    checks = {
        f"expected a prior of {', '.join(PRIOR_NAMES)}": ~raw["prior"].isin(list(PRIOR_NAMES)),
        f"cannot be read, expected {EXPECTED_NAME}": ~readable,
        "has another prior, n or random_state than the columns of these names": readable & contradicts,
        "has a number that cannot be read": (numbers.isna() & texts.notna()).any(axis=1),
        f"has a runtime that is not above 0 and below {MAX_NUMBER} s": ~numbers["runtime"].between(
            0, MAX_NUMBER, "neither"
        ),
        "has an accuracy outside 0 to 1": numbers[accuracy].notna() & ~numbers[accuracy].between(0, 1),
    }
    problem = raw["fault"]
    for text, bad in checks.items():
        problem = problem.where(~bad | (problem != ""), "model_name " + raw["model_name"].map(_quote) + " " + text)
    rows = pd.DataFrame(
        {
            "key": raw["model_name"],
            "prior": raw["prior"].fillna("?"),
            "n": numbers["n"].astype("int64"),
            "seed": numbers["random_state"].astype("int64"),
            "method": raw["entry"],
            "number": numbers["number"],
            "stage": stage,
            "status": np.where(np.isfinite(numbers[nll]), "completed", "diverged"),
            "train_seconds": numbers["runtime"],
            **{metric: numbers[metric] for metric in metrics},
            **{name: settings[name] for name in SETTINGS},
            "problem": problem,
        }
    )
    usable = rows[rows["problem"] == ""].drop_duplicates([name for name in rows if name != "key"])
    twice = usable[usable.duplicated(RUN, keep=False)]
    first = twice.groupby(RUN, dropna=False)["key"].transform("first").map(_quote)
    usable.loc[twice.index, "problem"] = "model_name " + first + " has two rows that disagree"
    return pd.concat([usable, rows[rows["problem"] != ""]]).sort_index()


def _possible_cells(row: dict[Any, Any]) -> Iterator[Cell]:
    """Cells that an unusable row may belong to: by its columns, and by its name."""
    yield tuple(row[name] for name in CELL)
    parts = dict(NAME_PART.findall(row["key"]))
    prior = next((prior for prior in PRIOR_NAMES if row["key"].startswith(f"{prior}_")), row["prior"])
    try:
        yield prior, *(int(float(parts.get(part, row[name]))) for part, name in (("n", "n"), ("random_state", "seed")))
    except (ValueError, OverflowError):
        return


def _unmatched(rows: pd.DataFrame) -> dict[Cell, int]:
    """Count the retrained runs of each cell that have no tuning run."""
    pairs = rows.merge(rows.loc[rows["stage"] == "tune", [*CELL, *SETTINGS]], how="left", indicator="tuned")
    unmatched = pairs[(pairs["stage"] == "retrain") & (pairs["tuned"] == "left_only")]
    return {tuple(cell.values()): len(group) for cell, group in iterate_groups(unmatched, CELL, sort=True)}


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
