"""What MLflow's page says of a benchmark, in its own words: the descriptions of the experiment and of its run."""

from __future__ import annotations

from pathlib import Path

from bench.benchmark import Benchmark
from bench.names import PRIOR_NAMES, dataset_name, method_name
from bench.page_views import METHODS, TRIALS, link

__all__ = ["NOTE", "experiment_note", "is_ours", "run_note"]

NOTE = "mlflow.note.content"
SIGNED = "*Written by `deelbo-bench`, which leaves a description without this line as it is.*"
LONGEST = 4500  # of 5,000 that a tag may have on some of MLflow's stores

READING = """\
One run is the benchmark's own and holds its report; all others are its trials, one each.

| column | what |
|---|---|
| `test_acc`, `test_nll` | after the last step, of trials that train on all N images: not of the grid's tuning |
| `val_acc`, `val_nll` | on the fifth of the images that the grid search judges by |
| `objective` | what ELBo and DE ELBo choose a learning rate by; lower is better |
| `train_seconds`, `total_seconds` | training steps alone; the whole trial |
| `learning_rate` | where its cosine starts |
| `alpha`, `beta` | weight decay of backbone and head at the end: given to MAP, learned by ELBo and DE ELBo |
| `lambda`, `tau`, `sigma`, `kappa` | learned prior variance of backbone and head; of the posterior; D/N |
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
        f"- [methods, the mean over all their settings]({link(experiment, METHODS)}), good and bad, and [their curves]"
        f"({link(experiment, METHODS, charts=True)}): of the trials that the page has loaded, 100 at first; with "
        "`and params.learning_rate = '0.1'` behind the filter like is compared with like",
        f"- [the report]({_report(experiment, run)}): what each method chose, at what cost, and how sure that is",
    ]
    parts = [
        f"**{benchmark.name}**: {_listed(names)} on {_listed([dataset_name(name) for name in benchmark.datasets])}, "
        f"N = {_listed([str(n) for n in sizes])}, {len(benchmark.seeds)} split{'s' * (len(benchmark.seeds) != 1)}, "
        f"{_listed([PRIOR_NAMES[prior] for prior in benchmark.priors])}.",
        "\n".join(looks),
        READING.format(n=sizes[0], seed=benchmark.seeds[0]),
    ]
    return _signed(parts)


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
