"""The report of a storage: all its files, from whatever there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.config import Benchmark, ConfigError, parse_benchmark
from bench.curves import curves
from bench.outcome import outcome_of
from bench.records import RecordError, RecordStore
from bench.report import write_report
from bench.tables import table2, table3
from bench.trials import TrialRecord

Fake = Callable[..., TrialRecord]
FILES = {
    "report.html",
    "curves.csv",
    "figure2.png",
    "figure2.pdf",
    "table2.csv",
    "table2.md",
    "table3.csv",
    "table3.md",
}


def test_all_files_are_made(storage: RecordStore, tmp_path: Path) -> None:
    """The page, the figure as PNG and PDF, both tables as CSV and Markdown, and the curves; each is named."""
    files = write_report(storage, tmp_path / "deep" / "out")
    assert set(files) >= FILES
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == set(files)
    assert files["figure2.png"].read_bytes().startswith(b"\x89PNG")
    assert files["figure2.pdf"].read_bytes().startswith(b"%PDF")


def test_the_csv_files_are_the_tables(storage: RecordStore, tmp_path: Path) -> None:
    """What the CSV files hold is what the records say, to the last digit."""
    files = write_report(storage, tmp_path)
    frame = storage.frame()
    for name, table in (("curves.csv", curves(frame)), ("table2.csv", table2(frame)), ("table3.csv", table3(frame))):
        pd.testing.assert_frame_equal(pd.read_csv(files[name]), table, check_dtype=False)


def test_the_page_stands_alone(storage: RecordStore, tmp_path: Path) -> None:
    """The page refers to no other file and no server: images are inside, there is no script."""
    page = write_report(storage, tmp_path)["report.html"].read_text(encoding="utf-8")
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", page)
    assert page.count("data:image/png;base64,") >= 1
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", outside) == []
    assert "http:" not in outside
    assert "https:" not in outside
    assert "<script" not in outside
    assert "<link" not in outside


def test_the_page_says_what_was_run(storage: RecordStore, tiny: Benchmark, play: Any, tmp_path: Path) -> None:
    """The page has the benchmark's name, its configuration, how many trials there are, and each run's account."""
    outcome = outcome_of(play(tiny), 0, 0, 2, 990.0)
    storage.write_run("20250101", asdict(outcome) | {"account": outcome.describe()})
    page = write_report(storage, tmp_path)["report.html"].read_text(encoding="utf-8")
    assert "<h1>tiny" in page
    assert "digits-resnet" in page
    assert "9 trials: 9 completed" in page
    assert "Unfinished" not in page
    assert "9 trials in 24 s: 2 slots busy" in page


def test_the_page_compares_the_methods(storage: RecordStore, tmp_path: Path) -> None:
    """A sentence says what DE ELBo, MAP + grid search and the plain ELBo reached, as table 3 does."""
    page = write_report(storage, tmp_path)["report.html"].read_text(encoding="utf-8")
    accuracy = table3(storage.frame()).set_index("method")["mean"]
    assert f"DE ELBo reaches {accuracy['de-elbo']:.1f} %" in page
    assert f"the plain ELBo (kappa = 1) {accuracy['elbo']:.1f} %" in page


def test_html_cannot_come_in_by_the_name(content: dict[str, Any]) -> None:
    """A benchmark's name cannot hold HTML."""
    with pytest.raises(ConfigError, match="name"):
        parse_benchmark(content | {"name": "<script>"}, "x")


def test_html_from_the_records_is_escaped(storage: RecordStore, tmp_path: Path) -> None:
    """HTML in a file that somebody else wrote comes out as text."""
    storage.write_run("20250101", {"account": "<script>x</script>"})
    page = write_report(storage, tmp_path / "out")["report.html"].read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;x" in page


@pytest.mark.parametrize("left_out", ["map-gs", "de-elbo", "elbo"])
def test_a_method_may_be_missing(left_out: str, content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """A benchmark without one of the methods has its report all the same."""
    del content["methods"][left_out]
    benchmark = parse_benchmark(content, "x")
    files = write_report(fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark)), tmp_path / "out")
    assert left_out not in set(pd.read_csv(files["curves.csv"])["method"])


def test_several_panels_and_priors(content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """Three priors, two sizes and two seeds make one figure with two panels."""
    content |= {"priors": ["l2-zero", "l2-sp", "ptyl"], "n": [100, 1000], "seeds": [1, 2]}
    content["methods"]["map-gs"] |= {"retrain": {"l2-sp": "all"}, "ptyl_lambdas": [1, 10]}
    benchmark = parse_benchmark(content, "x")
    files = write_report(fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark)), tmp_path / "out")
    assert len(pd.read_csv(files["table3.csv"])) == 3 * 2 * 3


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_what_went_wrong_is_in_the_report(
    status: str, tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path
) -> None:
    """With diverged or failed runs among them there is a report, which counts them."""

    def judge(spec: Any) -> TrialRecord:
        return fake(spec, status if spec.learning_rate == 0.1 else "completed")

    store = fill(RecordStore(str(tmp_path / "s")), tiny, play(tiny, judge))
    page = write_report(store, tmp_path / "out")["report.html"].read_text(encoding="utf-8")
    assert f"4 {status}" in page


def test_an_interrupted_run_has_a_report(tiny: Benchmark, play: Any, fill: Any, tmp_path: Path) -> None:
    """Before the retraining, the grid has no curve yet, and the other methods have theirs."""
    records = [record for record in play(tiny) if record.spec.stage != "retrain"]
    files = write_report(fill(RecordStore(str(tmp_path / "s")), tiny, records), tmp_path / "out")
    assert set(pd.read_csv(files["curves.csv"])["method"]) == {"de-elbo", "elbo"}
    assert "Unfinished, 1 trials left" in files["report.html"].read_text(encoding="utf-8")


def test_no_benchmark_no_report(tmp_path: Path) -> None:
    """A folder that is not there, is empty, or holds something else is refused, and nothing is written."""
    with pytest.raises(RecordError, match="holds no benchmark"):
        write_report(RecordStore(str(tmp_path / "a")), tmp_path / "out")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").write_text("x")
    with pytest.raises(RecordError, match="holds no benchmark"):
        write_report(RecordStore(str(tmp_path / "b")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_records_no_report(tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path) -> None:
    """A storage without any record, or where all trials failed, is refused, and nothing is written."""
    for name, records in (("a", []), ("b", play(tiny, lambda spec: fake(spec, "failed")))):
        with pytest.raises(RecordError, match="no method can be reported yet"):
            write_report(fill(RecordStore(str(tmp_path / name)), tiny, records), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_is_asked_for_is_reported(content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """After the configuration was narrowed, or kappa changed, earlier trials do not count in the tables."""
    wide = parse_benchmark(content, "x")
    content["methods"]["de-elbo"] |= {"kappa": 50}
    content["methods"]["map-gs"] |= {"weight_decays": [0.01], "retrain": "all"}
    narrow = parse_benchmark(content, "x")
    store = fill(RecordStore(str(tmp_path / "s")), wide, play(wide))
    fill(store, narrow, play(narrow))
    runs = pd.read_csv(write_report(store, tmp_path / "out")["table2.csv"]).set_index("method")["num_runs"]
    assert runs.to_dict() == {"map-gs": 2, "de-elbo": 2, "elbo": 2}
