"""The report: all its files, from any kind of results."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.exceptions import RecordError, ReportError
from bench.labels import method_name
from bench.report.build import write_report
from bench.results.curves import compute_curves
from bench.results.frame import to_frame
from bench.results.sources import Results, load_published, load_results, load_storage
from bench.results.tables import compute_table2, compute_table3
from bench.scheduling.run_summary import FinishedTrial, summarize_run
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from tests.helpers.result_frames import make_frame, many_methods, replayed, trial

Fake = Callable[..., TrialRecord]
Publish = Callable[..., tuple[Path, Path]]
TABLES = {"table2", "table3", "equal_compute", "regularization", "paired_tests"}
FIGURES = {f"{name}.{kind}" for name in ("figure2", "figure2_full") for kind in ("png", "pdf")}
COMPARISON = {"anytime.csv", "budgets.csv", "rank_pairs.csv", "figure_race.png", "figure_race.pdf"}
COMPARISON |= {f"{name}.{kind}" for name in ("winners", "time_to", "ranking") for kind in ("csv", "md")}
FILES = {"report.html", "curves.csv", *FIGURES, *(f"{name}.{kind}" for name in TABLES for kind in ("csv", "md"))}


def report(store: RecordStore, out: Path, **options: Any) -> dict[str, Path]:
    """Write the report of one storage."""
    return write_report([load_storage(store)], out, **options)


def page_of(files: dict[str, Path]) -> str:
    return files["report.html"].read_text(encoding="utf-8")


def test_all_files_are_made(storage: RecordStore, tmp_path: Path) -> None:
    """All files are written and returned by name; the paper's methods alone need no comparison of all methods."""
    files = report(storage, tmp_path / "deep" / "out")
    assert set(files) == FILES
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == set(files)
    for name in ("figure2", "figure2_full"):
        assert files[f"{name}.png"].read_bytes().startswith(b"\x89PNG")
        assert files[f"{name}.pdf"].read_bytes().startswith(b"%PDF")


USERS: dict[str, Any] = {
    "text.usetex": True,
    "text.parse_math": False,
    "font.family": "Nobody Has This Font",
    "font.size": 30,
    "lines.linewidth": 9,
    "axes.facecolor": "black",
    "axes.prop_cycle": mpl.cycler(color="rgb"),
    "axes.formatter.use_locale": True,
    "path.sketch": (1, 100, 2),
    "pdf.fonttype": 3,
    "savefig.bbox": "tight",
    "savefig.facecolor": "red",
    "savefig.transparent": True,
}


def test_figures_do_not_depend_on_the_users_settings(storage: RecordStore, tmp_path: Path) -> None:
    """Figures have the same pixels, and PDFs the same kind of fonts, whatever matplotlib's settings; these stay."""
    expected = report(storage, tmp_path / "default")
    with mpl.rc_context(USERS):
        found = report(storage, tmp_path / "users")
        assert {name: mpl.rcParams[name] for name in ("font.size", "text.usetex")} == {
            name: USERS[name] for name in ("font.size", "text.usetex")
        }
    for name in (name for name in FIGURES if name.endswith("png")):
        assert found[name].read_bytes() == expected[name].read_bytes(), name
    assert b"/FontFile2" in found["figure2.pdf"].read_bytes()


def test_a_matplotlibrc_that_cannot_be_passed_by(tmp_path: Path) -> None:
    """One in the current folder that is not UTF-8, which matplotlib reads before any other, is named in one line."""
    (tmp_path / "matplotlibrc").write_bytes("# große Schrift".encode("latin1"))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "report", "nothing", "--published", "a", "b"],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("deelbo-bench: matplotlib cannot be imported ('utf-8' codec can't decode")
    assert last.endswith("correct or move ./matplotlibrc")


@pytest.mark.parametrize("variable", ["MPLBACKEND", "MATPLOTLIBRC"])
def test_settings_that_matplotlib_refuses(variable: str, tmp_path: Path) -> None:
    """The report loads with a backend that does not exist, and with a matplotlibrc that is not UTF-8."""
    (tmp_path / "latin1").write_bytes("font.size: 30  # große Schrift".encode("latin1"))
    code = "import bench.report.build, os, matplotlib; print(matplotlib.rcParams['font.size'], os.environ['{}'])"
    done = subprocess.run(
        [sys.executable, "-c", code.format(variable)],
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), variable: "latin1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "10.0 latin1\n", done.stderr


@pytest.mark.usefixtures("sketch")
def test_the_csv_files_are_the_tables(storage: RecordStore, tmp_path: Path) -> None:
    """The CSV files have the values of the tables to the last digit."""
    files = report(storage, tmp_path)
    frame = to_frame(list(storage.records()))
    for name, table in (
        ("curves.csv", compute_curves(frame)),
        ("table2.csv", compute_table2(frame)),
        ("table3.csv", compute_table3(frame)),
    ):
        read = pd.read_csv(files[name], keep_default_na=False, na_values={c: "" for c in table if c != "source"})
        pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_the_page_is_self_contained(storage: RecordStore, tmp_path: Path) -> None:
    """The page refers to no other file or server: images and its one script are embedded."""
    page = page_of(report(storage, tmp_path))
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", page)
    assert page.count("data:image/png;base64,") == 2
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!["']?(?:data:|#))""", outside) == []
    assert "http:" not in outside
    assert "https:" not in outside
    assert outside.count("<script") == outside.count("<script>") == 1
    assert "<link" not in outside
    assert "@import" not in outside


@pytest.mark.usefixtures("sketch")
def test_content_of_the_page(storage: RecordStore, tiny: Benchmark, play: Any, tmp_path: Path) -> None:
    """The page has the name, configuration, trials, invocations, findings, and the reason for a missing figure 1."""
    outcome = summarize_run([FinishedTrial.of(record) for record in play(tiny)], 0, 0, 2, 990.0)
    storage.write_run("20250101", asdict(outcome) | {"account": outcome.describe()})
    page = page_of(report(storage, tmp_path))
    for text in ("<h1>tiny", "digits-resnet", "9 trials: 9 completed", "9 trials in 24 s: 2 slots busy"):
        assert text in page
    for text in ("Unfinished", "What if more had run at once", "Input that could not be used"):
        assert text not in page
    accuracy = compute_table3(to_frame(list(storage.records()))).set_index("method")["mean"]
    assert f"lies {accuracy['de-elbo'] - accuracy['map-gs']:+.1f} points" in page
    assert "Not drawn: it needs, in one cell" in page


@pytest.mark.usefixtures("sketch")
def test_html_from_the_records_is_escaped(storage: RecordStore, tmp_path: Path) -> None:
    """HTML in a file of the storage becomes text; the page's own script is the only one."""
    storage.write_run("20250101", {"account": "<script>x</script>"})
    page = page_of(report(storage, tmp_path / "out"))
    assert page.count("<script") == 1
    assert "&lt;script&gt;x" in page


@pytest.mark.usefixtures("sketch")
@pytest.mark.parametrize("left_out", ["map-gs", "de-elbo", "elbo"])
def test_a_method_may_be_missing(left_out: str, content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """A benchmark without one of the methods has its report."""
    del content["methods"][left_out]
    benchmark = parse_benchmark(content, "x")
    files = report(fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark)), tmp_path / "out")
    assert set(pd.read_csv(files["curves.csv"])["method"]) == {"map-gs", "de-elbo", "elbo"} - {left_out}


@pytest.mark.usefixtures("sketch")
def test_several_panels_and_priors(content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """Three priors, two sizes and two seeds make one figure with two panels."""
    content |= {"priors": ["l2-zero", "l2-sp", "ptyl"], "n": [100, 1000], "seeds": [1, 2]}
    content["methods"]["map-gs"] |= {"retrain": {"l2-sp": "all"}, "ptyl_lambdas": [1, 10]}
    benchmark = parse_benchmark(content, "x")
    files = report(fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark)), tmp_path / "out")
    assert len(pd.read_csv(files["table3.csv"])) == 3 * 2 * 3
    assert len(pd.read_json(files["figure2.png"], typ="series")) == 2


@pytest.mark.usefixtures("sketch")
@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_lost_runs_are_in_the_report(
    status: str, tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path
) -> None:
    """Diverged and failed runs are counted on the page."""

    def judge(spec: Any) -> TrialRecord:
        return fake(spec, status if spec.learning_rate == 0.1 else "completed")

    store = fill(RecordStore(str(tmp_path / "s")), tiny, play(tiny, judge))
    assert f"4 {status}" in page_of(report(store, tmp_path / "out"))


@pytest.mark.usefixtures("sketch")
def test_an_interrupted_run_has_a_report(tiny: Benchmark, play: Any, fill: Any, tmp_path: Path) -> None:
    """Before its retraining a grid has no curve, and the page first states the trials that are left."""
    records = [record for record in play(tiny) if record.spec.stage != "retrain"]
    files = report(fill(RecordStore(str(tmp_path / "s")), tiny, records), tmp_path / "out")
    assert set(pd.read_csv(files["curves.csv"])["method"]) == {"de-elbo", "elbo"}
    page = page_of(files)
    assert "Unfinished, 1 trials left" in page
    assert re.findall("<p>([^<]*)</p>", page)[0].startswith("Unfinished: trials left to run: 1.")


def test_nothing_is_written_without_results(tmp_path: Path) -> None:
    """A storage that has nothing to report is refused, and nothing is written."""
    with pytest.raises(RecordError, match="holds no benchmark"):
        report(RecordStore(str(tmp_path / "a")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sketch")
def test_trials_of_an_earlier_configuration_are_left_out(
    content: dict[str, Any], play: Any, fill: Any, tmp_path: Path
) -> None:
    """After a change of the configuration earlier trials do not count in the tables."""
    wide = parse_benchmark(content, "x")
    content["methods"]["de-elbo"] |= {"kappa": 50}
    content["methods"]["map-gs"] |= {"weight_decays": [0.01], "retrain": "all"}
    narrow = parse_benchmark(content, "x")
    store = fill(RecordStore(str(tmp_path / "s")), wide, play(wide))
    fill(store, narrow, play(narrow))
    runs = pd.read_csv(report(store, tmp_path / "out")["table2.csv"]).set_index("method")["num_runs"]
    assert runs.to_dict() == {"map-gs": 2, "de-elbo": 2, "elbo": 2}


@pytest.mark.usefixtures("sketch")
def test_two_storages_stand_side_by_side(
    storage: RecordStore, tiny: Benchmark, play: Any, fill: Any, tmp_path: Path
) -> None:
    """Every table has a column source with both labels and the rows that each has alone; the page names both."""
    other = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    alone = report(storage, tmp_path / "alone", slots=2)
    results, _ = load_results([storage.url, other.url], [])
    files = write_report(results, tmp_path / "both", slots=2)
    assert set(files) == set(alone)
    for name in (file for file in files if file.endswith(".csv")):
        counts = pd.read_csv(files[name])["source"].value_counts().to_dict()
        assert counts == dict.fromkeys(["storage", "other"], len(pd.read_csv(alone[name]))), name
    assert "| source |" in files["table2.md"].read_text()
    assert "| source |" not in alone["table2.md"].read_text()
    page = page_of(files)
    assert "<h1>storage and other" in page
    assert "<th class=text>source</th>" in page
    assert page.count("storage: ") >= 2
    assert page.count("other: ") >= 2


@pytest.mark.usefixtures("sketch")
def test_a_sampled_report_is_the_same_for_the_same_seed(
    content: dict[str, Any], play: Any, fill: Any, tmp_path: Path
) -> None:
    """Sampled curves and figure depend on the seed only; all else is exact."""
    content["methods"]["map-gs"]["retrain"] = "all"
    benchmark = parse_benchmark(content, "x")
    store = fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark))
    one, same, other = (
        report(store, tmp_path / name, subsamples=7, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    sampled = {"curves_sampled.csv", "figure2_sampled.png", "figure2_sampled.pdf"}
    assert set(one) == FILES | sampled
    for name in set(one) - {"report.html"}:
        assert one[name].read_bytes() == same[name].read_bytes(), name
        assert (one[name].read_bytes() == other[name].read_bytes()) == (name not in sampled), name
    exact, drawn = (pd.read_csv(one[name]) for name in ("curves.csv", "curves_sampled.csv"))
    assert list(drawn.columns) == list(exact.columns)
    assert len(drawn) == len(exact)
    assert "The same from 7 random subsets of each size" in page_of(one)


@pytest.mark.usefixtures("sketch")
def test_files_of_an_earlier_report_are_removed(storage: RecordStore, tmp_path: Path) -> None:
    """Files that the new report does not have are removed; other files stay."""
    out = tmp_path / "out"
    before = report(storage, out, subsamples=2, slots=3)
    stale = {"figure1.png", "figure1.pdf", *COMPARISON}
    foreign = {"notes.txt", "table4.csv", "figure2.svg", "report.html.bak"}
    for name in stale | foreign:
        (out / name).write_text("x")
    after = report(storage, out)
    assert {"what_if.csv", "what_if.md", "curves_sampled.csv", "figure2_sampled.pdf"} <= set(before) - set(after)
    assert {path.name for path in out.iterdir()} == set(after) | foreign


@pytest.mark.usefixtures("sketch")
def test_files_of_others_stay(storage: RecordStore, tmp_path: Path) -> None:
    """Without an earlier report no file is removed, and a page of another origin is not overwritten."""
    mine = [tmp_path / name for name in ("figure1.png", "what_if.csv", "curves_sampled.csv")]
    page = tmp_path / "report.html"
    for path in [*mine, page]:
        path.write_text("<title>mine</title>")
    with pytest.raises(ValueError, match=r"report\.html was not made by `report`.*give another --out"):
        report(storage, tmp_path)
    assert {path for path in tmp_path.iterdir() if path.is_file()} == {*mine, page}
    page.unlink()
    report(storage, tmp_path)
    assert {path.read_text() for path in mine} == {"<title>mine</title>"}


@pytest.mark.usefixtures("sketch")
@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, MemoryError, OSError])
def test_a_failed_report_leaves_the_earlier_one(
    error: type[Exception], storage: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever drawing raises is a ReportError, but a full disk; the earlier report stays, without temporary files."""
    report(storage, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def fail(*_: Any) -> list[Path]:
        raise error("no ink")

    monkeypatch.setattr("bench.report.build.save_figure", fail)
    with pytest.raises(OSError if error is OSError else ReportError, match="no ink"):
        report(storage, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not list(tmp_path.glob(".report-*"))


@pytest.mark.usefixtures("sketch")
def test_published_files_without_retraining(publish: Publish, tmp_path: Path) -> None:
    """There are mean times and no figure, and the page says why."""
    files = write_report([load_published([publish(retrained=0)])], tmp_path / "out")
    (row,) = pd.read_csv(files["table2.csv"]).to_dict("records")
    assert (row["mean_run_seconds"], row["num_runs"]) == (101.5, 4)
    assert pd.isna(row["total_seconds"])
    assert not any(name.startswith("figure") for name in files)
    assert len(pd.read_csv(files["curves.csv"])) == len(pd.read_csv(files["table3.csv"])) == 0
    page = page_of(files)
    assert "the best configuration has no retrained run" in page
    assert "<img" not in page
    assert ">1 min 42 s</td>" in page


@pytest.mark.usefixtures("sketch")
def test_published_files_have_no_full_cost(publish: Publish, tmp_path: Path) -> None:
    """Published files have figure 2 of training time only."""
    files = write_report([load_published([publish()])], tmp_path / "out")
    assert {name for name in files if name.startswith("figure")} == {"figure2.png", "figure2.pdf"}
    assert "as the paper prints it" in page_of(files)


@pytest.mark.usefixtures("sketch")
def test_unusable_input_is_on_the_page(publish: Publish, tmp_path: Path) -> None:
    """Input that was left out, of a source or a source as a whole, is listed on the page."""
    spoilt = load_published([publish(cells=[(100, 1), (100, 2)], runtime=-1)])
    page = page_of(write_report([spoilt], tmp_path / "out", left_out=["runs/lost: no such place"]))
    assert "Input that could not be used" in page
    assert "left out: l2-sp, N = 100, seed 1</li>" in page
    assert "<li>runs/lost: no such place</li>" in page


@pytest.mark.usefixtures("sketch")
def test_slots_add_the_makespan(storage: RecordStore, tmp_path: Path) -> None:
    """On request there is what_if.csv for the slots, and its table on the page."""
    files = report(storage, tmp_path, slots=3)
    assert set(files) == FILES | {"what_if.csv", "what_if.md"}
    assert set(pd.read_csv(files["what_if.csv"])["slots"]) == {3}
    assert "What if more had run at once" in page_of(files)


@pytest.mark.usefixtures("sketch")
@pytest.mark.parametrize("shares", [(1.0, 3.0), (1.0, 3.0, 0.1)])
def test_three_values_of_kappa_are_a_figure(shares: tuple[float, ...], tmp_path: Path) -> None:
    """Where three values of kappa ran, the page has their figure, and kappa_sweep.csv its numbers."""
    runs = [
        trial("de-elbo" if share == 1 else f"kappa-{share}", "run", 1.0, 1.0, test_acc=0.9, test_nll=0.3)
        | {"state_kappa": 5 * share, "state_dim_backbone": 480.0, "state_dim_head": 20.0}
        for share in shares
    ]
    files = write_report([Results("", "kappas", make_frame(*runs), [], [], [])], tmp_path / "out")
    names = {"kappa_sweep.csv", "figure_kappa.png", "figure_kappa.pdf"}
    assert names & set(files) == (names if len(shares) == 3 else set())
    assert ("Other values of kappa" in page_of(files)) is (len(shares) == 3)
    if len(shares) == 3:
        assert pd.read_csv(files["kappa_sweep.csv"])["kappa_ratio"].tolist() == [1.0, 0.1, 3.0]


@pytest.mark.usefixtures("sketch")
def test_figure_1_needs_both_runs(content: dict[str, Any], fake: Fake, play: Any, fill: Any, tmp_path: Path) -> None:
    """Figure 1 is drawn where an ELBo and a DE ELBo recorded their state, and not where one is missing."""
    parts = {"dim": 500.0, "squared_distance": 2.0, "trace_precision": 400.0, "log_det": -3.0}
    state = {f"{name}_{group}": value for name, value in parts.items() for group in ("backbone", "head")}

    def judge(spec: Any) -> TrialRecord:
        kappa = 1.0 if spec.method == "elbo" else 1000 / spec.n
        return fake(spec, state=state | {"sigma": 0.01, "kappa": kappa})

    for name in ("both", "one"):
        benchmark = parse_benchmark(content, "x")
        store = fill(RecordStore(str(tmp_path / name)), benchmark, play(benchmark, judge))
        files = report(store, tmp_path / f"{name}-out")
        assert ({"figure1.png", "figure1.pdf"} <= set(files)) == (name == "both")
        assert ("<h2>Figure 1" in page_of(files)) == (name == "both")
        content["methods"].pop("elbo", None)


@pytest.mark.usefixtures("sketch")
def test_other_methods_are_compared(tmp_path: Path) -> None:
    """Other methods than the paper's have a figure, tables and files; figure 2 has a note."""
    frame = many_methods(("l2-sp",), (100,), 2)
    frame = frame[~frame["method"].isin(["bo-tpe", "laplace", "de-elbo-kappa"])].reset_index(drop=True)
    files = write_report([Results("", "all", frame, [], [], [])], tmp_path)
    assert set(files) == FILES | COMPARISON
    page = page_of(files)
    for text in ("<h2>All methods", "Time to within 0.5 points", "<h3>Ranking", "are in the next figure"):
        assert text in page
    assert page.index("Best at each budget over 1 combination") < page.index("<h2>")
    lines = json.loads(files["figure2.png"].read_text())
    assert sum(len(line) == 1 for (axis,) in [lines] for line in axis) == 2 * 3
    for table in ("table2.csv", "table3.csv", "anytime.csv", "ranking.csv", "time_to.csv"):
        assert set(pd.read_csv(files[table])["method"]) == set(frame["method"]), table
    assert '<td class="text">de-elbo-layer</td>' in page


@pytest.mark.usefixtures("sketch")
def test_replays_are_compared(tmp_path: Path) -> None:
    """Replayed methods are compared under names of their own, and are not in the tables of methods that ran."""
    frame = many_methods(("l2-sp",), (100,), 2)
    frame = frame[frame["method"].isin(["map-gs", "de-elbo"])].reset_index(drop=True)
    files = write_report([Results("", "x", frame, [], [], [])], tmp_path, replays=replayed(frame, 3))
    anytime = pd.read_csv(files["anytime.csv"])
    assert set(anytime["method"]) == {"map-gs", "de-elbo", "random (replayed)"}
    assert set(anytime.loc[anytime["method"] == "random (replayed)", "curves"]) == {6}
    assert set(pd.read_csv(files["table3.csv"])["method"]) == {"map-gs", "de-elbo"}
    assert f"{method_name('random')} (replayed)</th>" in page_of(files)


@pytest.mark.usefixtures("sketch")
def test_a_source_without_the_papers_methods(tmp_path: Path) -> None:
    """Without any of the paper's methods there is no figure 2, and everything else."""
    frame = many_methods(("l2-sp",), (100,), 2)
    frame = frame[frame["method"].isin(["bo", "bo-tpe"])].reset_index(drop=True)
    files = write_report([Results("", "x", frame, [], [], [])], tmp_path, subsamples=3)
    assert {name for name in files if name.startswith("figure")} == {"figure_race.png", "figure_race.pdf"}
    assert "Best at each budget over 1 combination" in page_of(files)
