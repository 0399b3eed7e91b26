"""The report of a storage or of published results: curves.csv, figure 2, tables 2 and 3, one self-contained page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bench.config import parse_benchmark
from bench.curves import curves
from bench.figures import figure2, save
from bench.methods import make_methods
from bench.outcome import duration
from bench.published import read_published
from bench.race import settle
from bench.records import RecordError, RecordStore, frame_of
from bench.tables import PRIOR_NAMES, for_people, markdown, table2, table3

__all__ = ["write_published_report", "write_report"]


def write_report(store: RecordStore, out: Path) -> dict[str, Path]:
    """Writes everything that the records allow into ``out``; the files by name.

    Only trials that the storage's configuration asks for count, and only where a method is done with a cell: half a
    grid is not a grid's result.

    Raises:
        RecordError: the storage holds no benchmark, or no trial that could be reported.
    """
    benchmark = store.read_benchmark()
    if benchmark is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished or interrupted `run`")
    records = list(store.records())
    kept, left = settle(make_methods(parse_benchmark(benchmark, store.path("benchmark.json"))), records)
    frame = frame_of(kept)
    table = curves(frame)
    if table.empty:
        failed = sum(record.status == "failed" for record in records)
        raise RecordError(
            f"{store.url}: no method can be reported yet ({len(records)} trials have a record, {failed} of them "
            f"failed, {sum(left.values())} are left): let `run` go on"
        )
    about = [f"{len(records)} trials: {_counts(frame_of(records))}."]
    if left:
        where = "; ".join(f"{method} {cell.prior} N = {cell.n} seed {cell.seed}" for method, cell in left)
        about.append(f"Unfinished, {sum(left.values())} trials left, and not shown above: {where}.")
    about += [str(run["account"]) for run in store.runs() if "account" in run]
    config = yaml.safe_dump(benchmark, sort_keys=False, default_flow_style=None, width=100)
    return _write(frame, table, out, str(benchmark["name"]), about, config)


def write_published_report(pairs: Sequence[tuple[Path, Path]], out: Path) -> dict[str, Path]:
    """The same files from the authors' result files, pairs of (tuned, retrained). Raises as `read_published` does."""
    frames = [read_published(tuned, retrained) for tuned, retrained in pairs]
    frame = pd.concat(frames, ignore_index=True)
    table = curves(frame)
    if table.empty:
        raise ValueError(f"{pairs[0][0]}: no configuration was both tuned and retrained, so there is nothing to draw")
    about = [f"{tuned.name}, {retrained.name}" for tuned, retrained in pairs]
    about.append(f"{len(frame)} runs: {_counts(frame)}. Their times are those of training steps alone.")
    return _write(frame, table, out, "published results", about, "")


def _counts(frame: pd.DataFrame) -> str:
    return ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())


def _write(
    frame: pd.DataFrame, table: pd.DataFrame, out: Path, title: str, about: list[str], config: str
) -> dict[str, Path]:
    out.mkdir(parents=True, exist_ok=True)
    second, third = table2(frame), table3(frame)
    files = {"curves.csv": out / "curves.csv", "report.html": out / "report.html"}
    table.to_csv(files["curves.csv"], index=False)
    for name, content in (("table2", second), ("table3", third)):
        files[f"{name}.csv"], files[f"{name}.md"] = out / f"{name}.csv", out / f"{name}.md"
        content.to_csv(files[f"{name}.csv"], index=False)
        files[f"{name}.md"].write_text(markdown(content), encoding="utf-8")
    for name, cost in (("figure2", "train"), ("figure2_full", "full")):
        if (table["cost"] == cost).any():
            files |= {path.name: path for path in save(figure2(table, cost), out, name)}
    files["report.html"].write_text(_page(title, second, third, about, config, files), encoding="utf-8")
    return files


def summary(second: pd.DataFrame, third: pd.DataFrame) -> list[str]:
    """What the tables say, a sentence for each dataset, N and prior that has both a grid and a DE ELBo."""
    sentences = []
    for (dataset, n, prior), rows in third.groupby(["dataset", "n", "prior"], sort=False):
        accuracy = rows.set_index("method")["mean"]
        if not {"map-gs", "de-elbo"} <= set(accuracy.index):
            continue
        cell = second[(second["dataset"] == dataset) & (second["n"] == n) & (second["prior"] == prior)]
        seconds = cell.groupby("method")["total_seconds"].mean()
        text = (
            f"{dataset}, N = {n:,}, {PRIOR_NAMES.get(prior, prior)}: DE ELBo reaches {accuracy['de-elbo']:.1f} % in "
            f"{duration(seconds['de-elbo'])} of training, MAP + grid search {accuracy['map-gs']:.1f} % in "
            f"{duration(seconds['map-gs'])}: {seconds['map-gs'] / seconds['de-elbo']:.1f} times as long"
        )
        if "elbo" in accuracy:
            text += f"; the plain ELBo (kappa = 1) {accuracy['elbo']:.1f} %"
        seeds = int(rows["seeds"].min())
        sentences.append(f"{text}. Mean over {seeds} split{'s' if seeds > 1 else ''}.")
    return sentences


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { white-space: nowrap; padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4 }
th { border-bottom: 2px solid #999 } .text { text-align: left }
img { max-width: 100%; max-height: 34rem }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem }
.note { color: #555; font-size: .9rem }
"""


def _page(
    title: str, second: pd.DataFrame, third: pd.DataFrame, about: list[str], config: str, files: dict[str, Path]
) -> str:
    def image(name: str) -> str:
        data = base64.b64encode(files[name].read_bytes()).decode()
        return f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>'

    sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in summary(second, third))
    name = html.escape(title)
    full_figure = ""
    if "figure2_full.png" in files:
        summary_line = "<summary>The same with evaluation and selection counted</summary>"
        full_figure = f"<details>{summary_line}{image('figure2_full.png')}</details>"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in about)
    configuration = f"<pre>{html.escape(config)}</pre>" if config else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style></head><body>
<h1>{name}: compute time against accuracy</h1>
{sentences}
<h2>Figure 2</h2>
{image("figure2.png")}
<p class="note">A line is the expected test accuracy had only k of the grid's configurations been tried, k growing to
the right, exact over all subsets; its end is the whole grid. One line or marker a split seed. Time is that of training
steps, as published.</p>
{full_figure}
<h2>Table 3: test accuracy (%, class-balanced) of what each method chose</h2>
{_table(third)}
<h2>Table 2: compute time</h2>
{_table(second)}
<p class="note">total: all judged runs and the retraining of the best, training steps only; full cost also counts
evaluation and selection. Every CSV file lies beside this page.</p>
<h2>What ran</h2>
<ul>{lines}</ul>
{configuration}
</body></html>
"""


def _table(table: pd.DataFrame) -> str:
    shown = for_people(table)

    def row(cells: Any, tag: str) -> str:
        parts = []
        for column, cell in zip(shown.columns, cells, strict=True):
            side = ' class="text"' if column in ("Model", "method", "dataset") else ""
            parts.append(f"<{tag}{side}>{html.escape(str(cell))}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in shown.itertuples(index=False))
    return f"<table><thead>{row(shown.columns, 'th')}</thead><tbody>{body}</tbody></table>"
