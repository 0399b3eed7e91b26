"""Saved views and descriptions on MLflow's page, and what may not be overwritten there."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.storage.records import RecordStore
from bench.tracking.descriptions import MAX_CHARS, NOTE, experiment_note, is_replaceable, run_note
from bench.tracking.runs import MLflowRuns
from bench.tracking.sync import log_report, sync
from bench.tracking.views import CHOSEN, METHODS, PREFIX, TRIALS, link, saved_views
from tests.helpers.tiny import CONTENT

TABLE = "| Model | method | mean % |\n|---|---|---|\n| L2-SP | DE ELBo | 90.3 |\n"


def state_of(text: str) -> dict[str, Any]:
    """Unpack a saved view as the page does."""
    packed = json.loads(text)["state"]
    content: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    return content


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A folder with a report's tables."""
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("table2", "table3"):
        (folder / f"{name}.md").write_text(TABLE)
    (folder / "report.html").write_text("<p>done")
    return folder


def notes_of(runs: MLflowRuns) -> tuple[str, str]:
    """The descriptions of the experiment and of the benchmark's run."""
    client = runs.client
    experiment = client.get_experiment(runs.experiment).tags.get(NOTE, "")
    return experiment, client.get_run(runs.parent).data.tags.get(NOTE, "")


def test_views_fit_in_a_tag() -> None:
    """A view of a hundred entries fits in the 5,000 characters of a tag, and is the same whenever it is made."""
    names = [f"de-elbo-kappa-{share}" for share in range(100)]
    assert saved_views(names) == saved_views(names)
    assert set(saved_views(names)) == {f"{PREFIX}{view}" for view in (TRIALS, CHOSEN, METHODS)}
    assert all(len(text) <= 5000 for text in saved_views(names).values())


def test_a_table_begins_with_what_tells_trials_apart() -> None:
    """Method, prior, N, seed and accuracy come first, the name column is wide, and groups are closed."""
    views = {name: state_of(text) for name, text in saved_views(["de-elbo", "mine"]).items()}
    for state in views.values():
        name, _, *columns = state["columnOrder"]
        assert columns == state["selectedColumns"]
        assert columns[:6] == [
            *(f"params.`{p}`" for p in ("method", "prior", "n", "seed", "stage")),
            "metrics.`test_acc`",
        ]
        assert state["columnWidths"][name] > 190
    for view in (CHOSEN, METHODS):
        closed = {"param.method.de-elbo": False, "param.method.mine": False}
        assert views[f"{PREFIX}{view}"]["groupsExpanded"] == closed


def test_a_view_asks_for_what_is_there(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """MLflow takes each view's filter and order, best accuracy first; its columns and charts exist in some trial."""
    sync(storage, tiny, uri)
    runs = MLflowRuns(uri, tiny, storage)
    client, experiment = runs.client, runs.experiment
    tags = client.get_experiment(experiment).tags
    everything = client.search_runs([experiment])
    there = {f"metrics.`{name}`" for run in everything for name in run.data.metrics}
    there |= {f"params.`{name}`" for run in everything for name in run.data.params} | {"tags.`status`"}
    assert "metrics.`cost_seconds`" in there
    tested = [record for record in storage.records() if "test_acc" in record.metrics]
    best = [record.key for record in sorted(tested, key=lambda record: -record.metrics["test_acc"])]
    learned = {f"metrics.`{name}`" for name in ("alpha", "beta", "tau", "val_nll")}  # fake records learn lambda alone
    for view, count in ((TRIALS, 9), (CHOSEN, 3), (METHODS, 5)):
        state = state_of(tags[f"{PREFIX}{view}"])
        order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
        assert len(client.search_runs([experiment], state["searchFilter"], order_by=[order])) == count
        assert set(state["selectedColumns"]) <= there | learned
        drawn = {name for chart in state["compareRunCharts"] for name in chart.get("selectedMetricKeys", [])}
        assert {f"metrics.`{name}`" for name in drawn} <= there | learned
        if view == TRIALS:
            order = f"{state['orderByKey']} DESC"
            found = client.search_runs([experiment], state["searchFilter"], order_by=[order])
            assert [run.data.tags["deelbo.key"] for run in found][: len(best)] == best
        sections = {section["uuid"] for section in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_the_experiment_says_what_it_is(tiny: Benchmark) -> None:
    """The description names methods, data, N and splits, and links the views and the report of this very run."""
    note = experiment_note(tiny, "7", "abc")
    assert "MAP + GS, DE ELBo, ELBo; on mnist-digits; N = 100; 1 split(s); L2-SP" in note
    links = set(re.findall(r"\((#[^)]*)\)", note))
    views = [link("7", view) for view in (TRIALS, CHOSEN, METHODS)]
    charts = [f"{view}&compareRunsMode=CHART" for view in views]
    assert links == {*views, *charts, "#/experiments/7/runs/abc/artifacts/report/report.html"}


def test_the_description_tells_entries_apart() -> None:
    """The description says in what entries of one method differ, for as many entries as there is room."""

    def note(methods: dict[str, Any]) -> str:
        return experiment_note(parse_benchmark(CONTENT | {"methods": methods}, "x"), "7", "abc")

    layers = {"method": "de-elbo", "groups": "layer", "priors": ["l2-sp"]}
    text = note({"de-elbo": {}, "layers": layers, "deelbo-free": {}})
    assert "| de-elbo | DE ELBo | kappa D/N, groups backbone+head |" in text
    assert "| layers | DE ELBo | priors l2-sp, kappa D/N, groups layer |" in text
    assert "optimizer prodigy" in text
    many = note({f"entry-{i}": {"method": "de-elbo", "kappa": f"{i} D/N"} for i in range(1, 101)})
    assert len(many) <= MAX_CHARS
    shown = many.count("| DE ELBo |")
    assert 0 < shown < 100
    assert f"{100 - shown} more rows are in the report and `benchmark.json`" in many


def test_the_run_tells_the_outcome(storage: RecordStore, tiny: Benchmark, uri: str, report: Path) -> None:
    """The benchmark's run has the report's tables as description from the first report on, until there are new ones."""
    sync(storage, tiny, uri)
    runs = MLflowRuns(uri, tiny, storage)
    assert "90.3" not in notes_of(runs)[1]
    log_report(storage, tiny, uri, sorted(report.iterdir()))
    assert TABLE.strip() in notes_of(runs)[1]
    runs.describe()
    assert TABLE.strip() in notes_of(runs)[1]
    (report / "table3.md").write_text(TABLE.replace("90.3", "91.7"))
    sync(storage, tiny, uri, report)
    assert "91.7" in notes_of(runs)[1]


def test_what_somebody_wrote_stays(storage: RecordStore, tiny: Benchmark, uri: str, report: Path) -> None:
    """A description that was written in the page, of the experiment or of the run, is not overwritten."""
    sync(storage, tiny, uri)
    runs = MLflowRuns(uri, tiny, storage)
    runs.client.set_experiment_tag(runs.experiment, NOTE, "ours, hands off")
    runs.client.set_tag(runs.parent, NOTE, "mine")
    sync(storage, tiny, uri, report)
    assert notes_of(runs) == ("ours, hands off", "mine")


def test_a_long_outcome_is_cut(tiny: Benchmark, report: Path) -> None:
    """Of tables of many cells as many rows are in the description as a tag takes, and the rest is counted."""
    (report / "table3.md").write_text(TABLE + "| L2-SP | ELBo | 42.3 |\n" * 300)
    note = run_note(tiny, "7", "abc", report)
    assert len(note) <= MAX_CHARS
    assert is_replaceable(note)
    assert "90.3" in note
    kept = note.count("42.3")
    assert f"{300 - kept} more rows are in the report" in note
