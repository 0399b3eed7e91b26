"""What MLflow's page says of a benchmark, in its own words: the descriptions of the experiment and of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.config.benchmark import Benchmark
from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.tracking.views import CHOSEN, METHODS, TRIALS, link

__all__ = ["NOTE", "experiment_note", "is_ours", "run_note"]


NOTE = "mlflow.note.content"
SIGNED = "*Written by `deelbo-bench`, which leaves a description without this line as it is.*"
LONGEST = 4500  # of 5,000 that a tag may have on some of MLflow's stores
ALWAYS = ("kappa", "groups", "optimizer", "trials", "rungs")
NAMED_ELSEWHERE = {"method"}
LONGEST_SETTING = 60
MEANS = """\
A group's mean is of the trials that the page has loaded: 100, more by "Load more"; the number beside its name says \
how many. What a method does not run on is missing from its mean: `and params.n = '{n}' and params.prior = '{prior}'` \
behind the filter compares like with like."""
READING = """\
One run is the benchmark's own and holds its report; all others are its trials, one each.

| column | what |
|---|---|
| `test_acc`, `test_nll` | after the last step, of trials that train on all N images: not of the grid's tuning |
| `val_acc`, `val_nll` | on the fifth of the images that the grid search judges by |
| `objective` | what ELBo and DE ELBo choose a learning rate by; lower is better |
| `train_seconds`, `total_seconds` | training steps alone; the whole trial. Of a run in stretches ("10% to 30%" in its \
name) each is a trial, and has its own seconds |
| `cost_seconds` | of a trial that its method chose: all that the method needed there. Tag `chosen` |
| `learning_rate` | where its cosine starts |
| `alpha`, `beta` | weight decay of backbone and head at the end: given to MAP, else learned; `alpha_mean`, \
`beta_mean`: what a hypergradient's run hands on |
| `lambda`, `tau`, `sigma`, `kappa` | learned prior variance of backbone and head; of the posterior; D/N or a share |
| tag `status` | completed, diverged (a result like any other) or failed |

Searches, for the field above the table; a click on a column's head sorts by it, all pages of the table included:

    params.method = 'de-elbo' and params.n = '{n}'
    metrics.test_acc > 0.9 and metrics.total_seconds < 60
    tags.status != 'completed'
    params.stage = 'tune' and params.seed = '{seed}'
"""


def is_ours(note: str) -> bool:
    """Whether a description may be replaced: there is none, or it is one of these."""
    return not note.strip() or SIGNED in note


def experiment_note(benchmark: Benchmark, experiment: str, run: str) -> str:
    """Of the experiment: what was raced, where to look, how to read the columns. Markdown.

    Args:
        experiment, run: MLflow's ids of the experiment and of the benchmark's run.
    """
    names = [method_name(key) for key in benchmark.methods]
    sizes = sorted({n for counts in benchmark.datasets.values() for n in counts})
    looks = [
        f"- [trials, the most accurate first]({link(experiment, TRIALS)}), and [their curves]"
        f"({link(experiment, TRIALS, charts=True)})",
        f"- [methods, what each chose]({link(experiment, CHOSEN)}), and [accuracy against what it cost]"
        f"({link(experiment, CHOSEN, charts=True)}): marked at the end of the benchmark",
        f"- [methods, the mean over all their settings]({link(experiment, METHODS)}), good and bad, and [their curves]"
        f"({link(experiment, METHODS, charts=True)})",
        f"- [the report]({_report(experiment, run)}): what each method chose, at what cost, and how sure that is",
    ]
    parts = [
        f"**{benchmark.name}**: {_listed(names)} on {_listed([dataset_name(name) for name in benchmark.datasets])}, "
        f"N = {_listed([str(n) for n in sizes])}, {len(benchmark.seeds)} split{'s' * (len(benchmark.seeds) != 1)}, "
        f"{_listed([PRIOR_NAMES[prior] for prior in benchmark.priors])}.",
        "\n".join(looks),
        MEANS.format(n=sizes[-1], prior=benchmark.priors[0]),
        READING.format(n=sizes[0], seed=benchmark.seeds[0]),
    ]
    room = LONGEST - len(_signed(parts)) - 2
    return _signed([*parts[:3], *_entries(benchmark, room), *parts[3:]])


def _entries(benchmark: Benchmark, room: int) -> list[str]:
    """What the entries under ``methods`` are, a row each, as far as there is room; nothing where that says nothing."""
    rows = ["| `method` | is | with |", "|---|---|---|"]
    for name, settings in benchmark.methods.items():
        content = settings.model_dump(mode="json", by_alias=True, exclude=NAMED_ELSEWHERE)
        unusual = settings.model_dump(mode="json", by_alias=True, exclude=NAMED_ELSEWHERE, exclude_defaults=True)
        content = {key: value for key, value in content.items() if key in ALWAYS or key in unusual}
        words = ", ".join(f"{key} {_short(value)}" for key, value in content.items())
        rows.append(f"| {name} | {method_name(settings.method)} | {words} |")
    if len(rows) == 3 or len(text := "\n".join(rows)) <= room:
        return [] if len(rows) == 3 else [text]
    while rows and len("\n".join(rows)) > room - 60:
        rows.pop()
    return ["\n".join([*rows, f"\n{len(benchmark.methods) + 2 - len(rows)} more are in `benchmark.json`."])]


def _short(value: Any) -> str:
    """A setting in a table's cell."""
    if isinstance(value, list):
        text = " ".join(map(_short, value))
    elif isinstance(value, dict):
        text = " ".join(f"{key}: {part}" for key, part in value.items())
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) > LONGEST_SETTING:
        text = f"{len(value)} values" if isinstance(value, list | dict) else f"{text[: LONGEST_SETTING - 3]}..."
    return text.replace("|", "/")


def run_note(benchmark: Benchmark, experiment: str, run: str, report: Path | None) -> str:
    """Of the benchmark's run: the tables of its report, once there is one. Markdown."""
    if report is None or not (report / "table3.md").is_file():
        return _signed([f"The benchmark `{benchmark.name}`. Its report is drawn when all its trials are there."])
    parts = [f"[The whole report]({_report(experiment, run)}), with figures, is among the artifacts."]
    for title, name in (("Test accuracy of what each method chose", "table3"), ("What it took", "table2")):
        file = report / f"{name}.md"
        if file.is_file():
            parts += [f"**{title}**", _cut(file.read_text(encoding="utf-8"))]
    return _signed(parts)


def _report(experiment: str, run: str) -> str:
    return f"#/experiments/{experiment}/runs/{run}/artifacts/report/report.html"


def _listed(words: list[str]) -> str:
    """In a row, as a sentence has it; by semicolons where one has a comma in it."""
    if any("," in word for word in words):
        return "; ".join(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _cut(table: str) -> str:
    """A table with as many rows as there is room for."""
    lines = table.strip().splitlines()
    kept = lines
    while len("\n".join(kept)) > LONGEST * 0.4:
        kept = kept[:-1]
    more = len(lines) - len(kept)
    return "\n".join(kept) + (f"\n\n{more} more rows are in the report." if more else "")


def _signed(parts: list[str]) -> str:
    return "\n\n".join([*parts, SIGNED])
