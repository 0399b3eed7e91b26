"""Write the descriptions that MLflow's page shows of the experiment and of the benchmark's run, in Markdown."""

from pathlib import Path
from textwrap import shorten
from typing import Any

from bench.config.benchmark import Benchmark
from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.tracking.views import CHOSEN, METHODS, TRIALS, link

NOTE = "mlflow.note.content"
SIGNATURE = "*Written by `deelbo-bench`, which leaves a description without this line as it is.*"
MAX_CHARS = 4500  # of the 5,000 that a tag may have in some of MLflow's stores
MAX_SETTING_CHARS = 60
IDENTIFYING_SETTINGS = ("kappa", "groups", "optimizer", "trials", "rungs")  # listed also where they are the default
EXPERIMENT = """\
**{name}**: {methods}; on {datasets}; N = {sizes}; {splits} split(s); {priors}.

- [trials, most accurate first]({trials}), [their curves]({trials}&compareRunsMode=CHART)
- [methods, what each chose]({chosen}), [accuracy against cost]({chosen}&compareRunsMode=CHART): marked at the end
- [methods, mean over all settings]({means}), [their curves]({means}&compareRunsMode=CHART)
- [the report]({report}): what each method chose, at what cost, and the tests of differences

A group's mean is of the trials that the page has loaded (100, more by "Load more"); the number beside its name counts
them. A method is missing from the mean where it does not run: `and params.n = '{n}' and params.prior = '{prior}'`
behind the filter compares like with like. One run is the benchmark's own, all others are its trials; docs/mlflow.md
describes the columns. Other filters:

    params.method = 'de-elbo' and params.n = '{n}'
    metrics.test_acc > 0.9 and metrics.total_seconds < 60
    tags.status != 'completed'"""


def is_replaceable(note: str) -> bool:
    """Tell whether a description is missing or was written here, and not by somebody in the page."""
    return not note.strip() or SIGNATURE in note


def experiment_note(benchmark: Benchmark, experiment: str, run: str) -> str:
    """Describe the experiment: methods, links, settings.

    Args:
        benchmark: to describe.
        experiment: MLflow's id of it.
        run: MLflow's id of the benchmark's run.
    """
    sizes = sorted({n for counts in benchmark.sizes.values() for n in counts})
    text = EXPERIMENT.format(
        name=benchmark.name,
        methods=shorten(", ".join(map(method_name, benchmark.methods)), MAX_CHARS // 3, placeholder=" ..."),
        datasets=", ".join(map(dataset_name, benchmark.datasets)),
        sizes=", ".join(map(str, sizes)),
        splits=len(benchmark.seeds),
        priors=", ".join(PRIOR_NAMES[prior] for prior in benchmark.priors),
        trials=link(experiment, TRIALS),
        chosen=link(experiment, CHOSEN),
        means=link(experiment, METHODS),
        report=_report_link(experiment, run),
        n=sizes[-1],
        prior=benchmark.priors[0],
    )
    rows = [
        f"| {name} | {method_name(settings.method)} | {_settings(settings)} |"
        for name, settings in benchmark.methods.items()
    ]
    return _sign(text, _table(["| `method` | is | with |", "|---|---|---|", *rows], MAX_CHARS - len(text)))


def run_note(benchmark: Benchmark, experiment: str, run: str, report: Path | None) -> str:
    """Describe the benchmark's run by tables 3 and 2 of its report, once there is one."""
    if report is None or not (report / "table3.md").is_file():
        return _sign(f"The benchmark `{benchmark.name}`. Its report is drawn when all its trials are there.")
    parts = [f"[The whole report]({_report_link(experiment, run)}), with figures, is among the artifacts."]
    for title, name in (("Test accuracy of what each method chose", "table3"), ("What it took", "table2")):
        if (file := report / f"{name}.md").is_file():
            lines = file.read_text(encoding="utf-8").strip().splitlines()
            parts += [f"**{title}**", _table(lines, int(MAX_CHARS * 0.4))]
    return _sign(*parts)


def _settings(settings: Any) -> str:
    """List a method's settings that are not the default, or that tell methods apart."""
    values = settings.model_dump(mode="json", by_alias=True, exclude={"method"})
    unusual = settings.model_dump(mode="json", by_alias=True, exclude={"method"}, exclude_defaults=True)
    return ", ".join(
        f"{key} {_short(value)}" for key, value in values.items() if key in {*IDENTIFYING_SETTINGS, *unusual}
    )


def _short(value: Any) -> str:
    text = str(value).translate(str.maketrans("|", "/", "[]{}',"))
    return text if len(text) <= MAX_SETTING_CHARS else f"{text[: MAX_SETTING_CHARS - 3]}..."


def _table(lines: list[str], max_chars: int) -> str:
    """Join a table's lines, and count those that exceed the space."""
    shown = list(lines)
    while shown and len("\n".join(shown)) > max_chars - 200:
        shown.pop()
    more = len(lines) - len(shown)
    return "\n".join(shown) + (f"\n\n{more} more rows are in the report and `benchmark.json`." if more else "")


def _report_link(experiment: str, run: str) -> str:
    return f"#/experiments/{experiment}/runs/{run}/artifacts/report/report.html"


def _sign(*parts: str) -> str:
    return "\n\n".join([*parts, SIGNATURE])
