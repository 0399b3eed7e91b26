"""Replays of methods on a finished grid: answers of its table, and agreement with methods that really ran."""

import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.cli.main import build_parser, main
from bench.cli.replay import compute_means
from bench.config.benchmark import Benchmark, make_methods, trial_template
from bench.config.loading import load_benchmark, parse_benchmark
from bench.exceptions import RecordError
from bench.methods import method_named
from bench.methods.grid_search import MAPGridSearch
from bench.replay.grid_table import GridTable, load_grid_tables
from bench.replay.settings import replay_settings
from bench.replay.simulation import iterate_steps, replay_method, simulate
from bench.results.configurations import iterate_configurations
from bench.results.curves import exact_curve
from bench.results.frame import to_frame
from bench.results.makespan import Jobs, compute_makespan
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec

EPOCHS = 20
CELL = Cell("mnist-digits", "digits-resnet", "l2-sp", 100, 1001)
GRID = {
    "learning_rates": [0.1, 0.01, 0.001, 0.0001],
    "weight_decays": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0],
    "retrain": "all",
}
SMALL = GRID | {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0.001, 0]}
Rows = list[dict[str, float]]


def make(grid: dict[str, Any] = GRID, **change: Any) -> Benchmark:
    """Make a benchmark of one grid."""
    content = {"name": "grid", "dataset": "mnist-digits", "n": [100], "backbone": "digits-resnet", "priors": ["l2-sp"]}
    content |= {"seeds": [1001], "methods": {"map-gs": grid}, "training": {"steps": 20, "batch_size": 50}}
    return parse_benchmark(content | change, "grid.yaml")


class Grid:
    """Synthetic records and series of a grid: learning curves that cross and rise again, seconds that differ."""

    def __init__(self, benchmark: Benchmark, seed: int = 0) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.series: dict[str, Rows] = {}
        (method,) = [one for one in make_methods(benchmark) if isinstance(one, MAPGridSearch)]
        self.method, self.benchmark = method, benchmark
        self.tuned = [self._tuned(spec) for spec in method.grid]
        self.retrained = [self._retrained(method.retraining(spec)) for spec in method.grid]

    def _tuned(self, spec: TrialSpec) -> TrialRecord:
        end, speed, step, rise = (self.random.uniform(0.5, 2) for _ in range(4))
        rows = [
            {
                "epoch": float(e),
                "train_seconds": step * e,
                "train_nll": end,
                "val_nll": end + 2 * math.exp(-speed * e) + rise * e / EPOCHS,  # overfits
                "val_acc": 0.5,
            }
            for e in range(1, EPOCHS + 1)
        ]
        self.series[spec.key] = rows
        metrics = {name: rows[-1][name] for name in ("train_nll", "val_nll", "val_acc")}
        seconds = {"train": step * EPOCHS + 0.01, "evaluate": 0.25, "select": 0.0, "monitor": 3.0, "setup": 9.0}
        return TrialRecord(spec, "completed", metrics, {}, seconds, 0.0, 100.0)

    def _retrained(self, spec: TrialSpec) -> TrialRecord:
        seconds = {"train": self.random.uniform(20, 40), "evaluate": 0.0, "select": 0.0, "test": 5.0}
        return TrialRecord(spec, "completed", {"test_acc": self.random.random()}, {}, seconds, 0.0, 50.0)

    def diverge(self, place: int, epoch: int) -> None:
        """Let a tuning run diverge before an epoch ends."""
        record = self.tuned[place]
        nan = {"train_nll": math.nan, "val_nll": math.nan, "val_acc": 0.1}
        rows = [*self.series[record.key][: epoch - 1], self.series[record.key][epoch - 1] | nan]
        self.series[record.key] = rows
        seconds = {"train": rows[-1]["train_seconds"], "evaluate": 0.25 if epoch == EPOCHS else 0.0}
        self.tuned[place] = replace(record, status="diverged", metrics=dict(nan), seconds=seconds)

    @property
    def table(self) -> GridTable:
        return GridTable(self.method, self.tuned, self.retrained, self.series.__getitem__)

    def method_for(self, name: str, **settings: Any) -> Any:
        """Make a method with the grid's lists, which by default tries every configuration."""
        kind = method_named(name)
        lists = {key: getattr(self.method.settings, key) for key in ("learning_rates", "weight_decays")}
        template = trial_template(self.benchmark, CELL)
        return kind(template, kind.Settings(**{"trials": len(self.method.grid)} | lists | settings))

    def store(self, folder: Path, without: Callable[[TrialRecord], bool] = lambda record: False) -> str:
        """Write a storage of the grid, without some records."""
        store = RecordStore(str(folder / "storage"))
        store.write_benchmark(self.benchmark.content())
        for record in [*self.tuned, *self.retrained]:
            if not without(record):
                store.write(record, self.series.get(record.key, []))
        return store.url


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid(make())


def test_random_search_agrees_with_the_exact_curve(grid: Grid) -> None:
    """The mean of replayed random searches agrees with the exact curve within four standard errors."""
    table = grid.table
    settings = grid.method_for("random").settings
    found = replay_method(grid.benchmark, table, "random", settings, 250)
    ((_, tried),) = iterate_configurations(to_frame([*grid.tuned, *grid.retrained]), "full")
    exact = exact_curve(tried).set_index("k")
    groups = found.groupby("number")[["test_acc", "hours"]]
    mean, error = groups.mean(), groups.std() / math.sqrt(250)
    for ours, theirs in (("test_acc", "expected_test_acc"), ("hours", "expected_hours")):
        away = (mean[ours] - exact[theirs]).abs()
        assert (away.iloc[:-1] < 4 * error[ours].iloc[:-1]).all()
        assert away.iloc[-1] < 1e-12
        assert away.iloc[0] > 0  # a mean, not the formula


@pytest.mark.parametrize("name", ["random", "asha"])
def test_steps_of_a_method(grid: Grid, name: str) -> None:
    """After k configurations the seconds are of their trials and of retraining the best, which has the accuracy."""
    records = simulate(grid.method_for(name), grid.table)
    accuracy = {(r.spec.learning_rate, r.spec.weight_decay): r for r in grid.retrained}
    for step in iterate_steps(records):
        tried = [r for r in records if r.spec.stage == "tune" and r.spec.number < step.number]
        furthest = max(r.spec.until for r in tried)
        best = min((r for r in tried if r.spec.until == furthest), key=lambda r: r.metrics["val_nll"]).spec
        again = accuracy[best.learning_rate, best.weight_decay]
        assert step.accuracy == again.metrics["test_acc"]
        spent = sum(r.seconds["train"] + r.seconds["evaluate"] for r in tried) + again.seconds["train"]
        assert step.seconds == pytest.approx(spent, rel=1e-12)


def test_wall_time(grid: Grid) -> None:
    """On one slot it is the compute time, on four that of list scheduling."""
    for step in iterate_steps(simulate(grid.method_for("random"), grid.table)):
        assert step.wall_seconds == pytest.approx(step.seconds, rel=1e-12)
    records = simulate(grid.method_for("random"), grid.table, 4)
    *_, last = iterate_steps(records)
    seconds = {r.spec.number: r.seconds["train"] + r.seconds["evaluate"] for r in records if r.spec.stage == "tune"}
    jobs = [Jobs(tuple(seconds[number] for number in range(len(seconds))))]
    again = last.seconds - sum(seconds.values())
    assert last.wall_seconds == pytest.approx(compute_makespan(jobs, 4) + again, rel=1e-12)
    assert last.wall_seconds < last.seconds / 3


@pytest.mark.parametrize("seed", range(3))
def test_slots_change_only_wall_time(grid: Grid, seed: int) -> None:
    """ASHA has the same configurations, accuracies and seconds on any number of slots."""
    method = partial(grid.method_for, "asha", seed=seed)
    one, many = (list(iterate_steps(simulate(method(), grid.table, slots))) for slots in (1, 5))
    assert [(s.number, s.accuracy) for s in one] == [(s.number, s.accuracy) for s in many]
    assert [s.seconds for s in one] == pytest.approx([s.seconds for s in many])
    assert many[-1].wall_seconds < one[-1].wall_seconds / 2


def test_segments_of_a_run(grid: Grid) -> None:
    """A segment has the validation NLL of its last epoch and its own seconds, which add up to the run's."""
    table = grid.table
    run = grid.tuned[3]
    rows = grid.series[run.key]
    parts = [table.record(replace(run.spec, since=a, until=b), 7.0) for a, b in ((0, 0.07), (0.07, 0.3), (0.3, 1.0))]
    assert [p.metrics["val_nll"] for p in parts] == [rows[e - 1]["val_nll"] for e in (2, 6, EPOCHS)]  # 0.07 x 20: 2
    assert sum(p.seconds["train"] for p in parts) == pytest.approx(run.seconds["train"], rel=1e-12)
    assert parts[1].seconds["train"] == rows[5]["train_seconds"] - rows[1]["train_seconds"]
    assert [p.seconds["evaluate"] for p in parts] == [0.25] * 3
    assert parts[1].finished - 7.0 == pytest.approx(sum(parts[1].seconds.values()))


def test_segments_of_a_diverged_run() -> None:
    """A segment that ends before the divergence completes; later ones diverged, with the run's seconds."""
    grid = Grid(make())
    grid.diverge(2, 9)
    spec = grid.tuned[2].spec
    before, after, rest = (
        grid.table.record(replace(spec, since=a, until=b), 0.0) for a, b in ((0, 0.4), (0.4, 0.5), (0.4, 1.0))
    )
    assert (before.status, after.status, rest.status) == ("completed", "diverged", "diverged")
    assert before.metrics["val_nll"] == grid.series[spec.key][7]["val_nll"]
    assert before.seconds["evaluate"] == 0.25
    assert after.seconds["evaluate"] == 0
    assert before.seconds["train"] + after.seconds["train"] == pytest.approx(grid.tuned[2].seconds["train"])


def test_a_rung_without_a_row_is_refused() -> None:
    """The error names the cell, the rung and the epochs of the series."""
    grid = Grid(make(SMALL))
    for rows in grid.series.values():
        rows[:] = rows[4::5]
    with pytest.raises(RecordError, match=r"l2-sp N = 100.* 0\.1 of the run.*epoch 2 of 20.*5, 10, 15, 20"):
        simulate(grid.method_for("asha"), grid.table)
    assert len(simulate(grid.method_for("asha", rungs=[0.25]), grid.table)) > 6


def test_series_are_needed_only_for_early_stops() -> None:
    """Without series random search is replayed, and ASHA is refused in one line."""
    grid = Grid(make(SMALL))
    kept = GridTable(grid.method, grid.tuned, grid.retrained, lambda key: [])
    kept.check("random", grid.method_for("random").settings)
    assert len(list(iterate_steps(simulate(grid.method_for("random"), kept)))) == 6
    with pytest.raises(RecordError, match="has no series of epochs"):
        simulate(grid.method_for("asha"), kept)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["random.trials=7"], "trials = 7 drawn from a grid of 6"),
        (["bo.grid=false"], "set bo.grid to true"),
        (["bo.rungs=[0.1]"], "unknown key methods.bo.rungs"),
        (["asha.rungs=[0.5, 0.2]"], "must rise"),
        (["elbo.kappa=1"], "elbo is not replayed: use one of random, bo, asha"),
        (["bo.trials"], "--set takes KEY=VALUE"),
        (["bo=5"], "--set bo=5: bo has keys, such as bo.trials=12"),
    ],
)
def test_invalid_settings_are_refused(changes: list[str], words: str) -> None:
    """Settings that no method or grid can have are refused before the replay."""
    grid = Grid(make(SMALL))
    with pytest.raises(ValueError, match=re.escape(words)):
        replay_settings(grid.benchmark, grid.table, ["random", "bo", "asha"], changes)


@pytest.mark.parametrize(("name", "words"), [("de-elbo", "de-elbo cannot be replayed"), ("what", "no method 'what'")])
def test_methods_that_cannot_be_replayed_are_refused(name: str, words: str) -> None:
    """A method that learns its strengths, or does not exist, is refused by name."""
    grid = Grid(make(SMALL))
    with pytest.raises(ValueError, match=words):
        replay_settings(grid.benchmark, grid.table, [name])


def test_settings_of_replayed_methods() -> None:
    """An entry of the benchmark keeps its settings; other methods get the grid's lists and its size."""
    grid = Grid(make(methods={"map-gs": SMALL, "random": {"trials": 3, "retrain": "best"}}))
    changes = ["late.method=asha", "late.rungs=[0.5]"]
    found = replay_settings(grid.benchmark, grid.table, ["random", "asha", "late"], changes)
    assert (found["random"].trials, found["random"].retrain) == (3, "incumbents")
    assert (found["asha"].trials, found["asha"].weight_decays) == (6, (0.01, 0.001, 0.0))
    assert (found["asha"].rungs, found["late"].rungs) == ((0.1, 0.3), (0.5,))
    off = replay_settings(grid.benchmark, grid.table, ["random"], ["random.weight_decays=[0.5, 0.1, 0.01]"])
    with pytest.raises(ValueError, match=r"wd 0\.\d.* is not in the grid of 6 configurations"):
        replay_method(grid.benchmark, grid.table, "random", off["random"], 5)


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp", "ptyl"])
def test_default_methods_fit_the_preset_digits(prior: str) -> None:
    """Its BO, which samples from ranges, gets the whole grid; random search and ASHA keep their settings."""
    benchmark = load_benchmark("digits", ["methods.bo.seed=5", "methods.bo.sampler=tpe", "methods.bo.startup=7"])
    grids = [one for one in make_methods(benchmark) if isinstance(one, MAPGridSearch) and one.cell.prior == prior]
    tuned = [TrialRecord(spec, "completed", {"val_nll": 1.0}, {}, {"train": 1.0}, 0.0, 1.0) for spec in grids[0].grid]
    table = GridTable(grids[0], tuned, [], lambda key: [])
    found = replay_settings(benchmark, table, ["random", "bo", "asha"])
    bo = found["bo"]
    assert (bo.grid, bo.trials, bo.sampler, bo.seed, bo.startup) == (True, len(table), "tpe", 5, 7)
    assert [found[name] for name in ("random", "asha")] == [benchmark.methods[name] for name in ("random", "asha")]
    for settings in (found["random"], bo):
        table.check("any", settings)


def test_startup_fits_the_trials() -> None:
    """An entry moved to the grid has at most half of its trials at random."""
    grid = Grid(make(methods={"map-gs": SMALL, "bo": {"trials": 36}}))
    found = (replay_settings(grid.benchmark, grid.table, ["bo"], changes)["bo"] for changes in ([], ["bo.trials=4"]))
    assert [(bo.trials, bo.startup) for bo in found] == [(6, 3), (4, 2)]


def test_cells_that_cannot_be_replayed_are_named(tmp_path: Path) -> None:
    """A cell with a missing run is left out by name; without any other cell that is an error."""
    grid = Grid(make(SMALL))
    whole, lines = load_grid_tables(RecordStore(grid.store(tmp_path / "a")), grid.benchmark)
    assert ([len(table) for table in whole], lines) == ([6], [])
    more = make(SMALL, seeds=[1001, 2001])
    whole, lines = load_grid_tables(RecordStore(grid.store(tmp_path / "b")), more)
    assert len(whole) == 1
    assert lines == ["map-gs mnist-digits digits-resnet l2-sp N = 100 seed 2001: 0 of 6 configurations are tuned"]
    lost = {"tune": grid.tuned[0].key, "retrain": grid.retrained[0].key}
    for stage in ("tune", "retrain"):
        url = grid.store(tmp_path / stage, lambda record, stage=stage: record.key == lost[stage])
        with pytest.raises(RecordError, match=f"no finished grid to replay.*5 of 6 configurations are {stage}"):
            load_grid_tables(RecordStore(url), grid.benchmark)


def run_command(*arguments: str) -> int:
    """Run `replay`, and return its exit code."""
    options = build_parser().parse_args(["replay", *arguments])
    return int(options.call(options))


@pytest.mark.usefixtures("sketch")
def test_files_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes a row per repetition and number of configurations, prints their means, and draws a report."""
    grid = Grid(make(SMALL))
    storage = grid.store(tmp_path)
    options = ["--methods", "random,asha", "--set", "asha.rungs=[0.2]", "--repetitions", "7", "--slots", "2"]
    assert run_command(storage, *options) == 0
    found = pd.read_csv(Path(storage) / "replay" / "replay.csv")
    assert len(found) == 2 * 7 * 6
    assert set(found["method"]) == {"random", "asha"}
    assert found["cost"].eq("full").all()
    assert (found["wall_hours"] < found["hours"])[found["number"] == 6].all()
    assert (found.groupby(["method", "repetition"])["hours"].diff().dropna() != 0).all()
    table = compute_means(found, (1, 4)).set_index(["method", "after"])
    last = found[(found["method"] == "asha") & (found["number"] == 6)]
    assert table.loc[("asha", 0), "test_acc"] == pytest.approx(last["test_acc"].mean())
    assert table.loc[("asha", 0), "repetitions"] == 7
    printed = capsys.readouterr().out
    assert "replay.csv" in printed
    assert "ASHA (replayed)" in (Path(storage) / "replay" / "report.html").read_text()
    assert f"{last['test_acc'].mean():.1%}" in printed


@pytest.mark.parametrize("parts", [(), (0.5, 0.3, 0.1)])
def test_seconds_of_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parts: tuple[float, ...]
) -> None:
    """A segment takes the median of the storage's segments of tuning runs; without any the table says so."""
    monkeypatch.setattr("bench.report.build.write_report", lambda *given, **more: {})
    grid = Grid(make(methods={"map-gs": SMALL, "bo": {"trials": 36}}))
    storage = grid.store(tmp_path)
    for i, seconds in enumerate(parts):
        spec = replace(grid.tuned[i].spec, method="asha", number=i, until=0.5)
        ran = TrialRecord(spec, "completed", {"val_nll": 1.0}, {}, {"train": 1.0, "checkpoint": seconds}, 0.0, 1.0)
        RecordStore(storage).write(ran, [])
    spec = grid.tuned[0].spec
    for other in (replace(spec, method="random", number=0), replace(spec, method="halving", stage="run", until=0.5)):
        RecordStore(storage).write(replace(grid.tuned[0], spec=other, seconds={"train": 1.0, "checkpoint": 9.0}), [])
    assert run_command(storage, "--methods", "bo,asha", "--set", "bo.sampler=tpe", "--repetitions", "1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "bo is replayed on the grid" in printed
    assert "asha is replayed" not in printed
    assert "Not counted: choosing what to try next" in printed
    assert ("counts 0.3 s" in printed, "no segment of a tuning run" in printed) == (bool(parts), not parts)
    (table,), _ = load_grid_tables(RecordStore(storage), grid.benchmark)
    for since, until in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
        found = table.record(replace(spec, since=since, until=until), 0.0)
        assert found.finished == pytest.approx(found.seconds["train"] + 0.25 + (0.3 if parts else 0.0))
    assert table.record(spec, 0.0).seconds["checkpoint"] == 0


@pytest.mark.parametrize(
    ("epochs", "change", "words"),
    [
        (slice(0), "asha.rungs=[0.2]", "l2-sp N = 100 seed 1001: the grid's run .* has no series of epochs"),
        (slice(4, None, 5), "asha.rungs=[0.25, 0.3]", "stop at 0.3 .* epoch 6 of 20.*have epochs 5, 10, 15, 20"),
        (slice(None), "asha.weight_decays=[0.5, 0.01, 0]", "seed 1001: asha may try .*weight_decay 0.5.* grid of 6"),
    ],
)
def test_nothing_is_replayed_where_one_method_cannot_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    epochs: slice,
    change: str,
    words: str,
) -> None:
    """A trial of the last method that a table cannot answer is refused in one line before the first method starts."""
    simulated: list[str] = []
    monkeypatch.setattr("bench.replay.simulation.simulate", lambda method, *more: simulated.append(method.name))
    grid = Grid(make(SMALL))
    last = grid.tuned[-1].key
    grid.series[last] = grid.series[last][epochs]
    assert main(["replay", grid.store(tmp_path), "--methods", "random,asha", "--set", change]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert error.count("\n") == 1
    assert simulated == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repetitions", "0"], "--repetitions must be 1 to 100000, got 0"),
        (["--slots", "0"], "--slots must be"),
        (["--methods", "random,,asha"], "--methods takes names"),
        (["--methods", "asha,asha"], "--methods takes names"),
        ([], "holds no benchmark"),
    ],
)
def test_options_are_checked(arguments: list[str], words: str, tmp_path: Path) -> None:
    """An invalid option, or a folder without a benchmark, is refused in one line."""
    with pytest.raises(ValueError, match=words):
        run_command(str(tmp_path), *arguments)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose package is not installed is refused before the replay."""
    monkeypatch.setattr("bench.methods.base.find_spec", lambda name: None)
    grid = Grid(make(SMALL))
    assert set(replay_settings(grid.benchmark, grid.table, ["random"])) == {"random"}
    with pytest.raises(ValueError, match="bo needs the package optuna"):
        replay_settings(grid.benchmark, grid.table, ["bo"])


def test_replay_imports_neither_torch_nor_ray() -> None:
    """Reading a table imports neither torch, nor Ray, nor Optuna."""
    words = "import sys, bench.replay.settings; print(*{'torch', 'ray', 'optuna'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


LISTS = {"learning_rates": [0.1, 0.01], "weight_decays": [0.1, 0]}
LIVE = {
    "map-gs": LISTS | {"retrain": "all"},
    "random": LISTS | {"trials": 3},
    "bo": LISTS | {"trials": 4, "startup": 2, "sampler": "tpe", "grid": True},
    "asha": LISTS | {"rungs": [0.2, 0.5], "eta": 2},
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, pretrained: Any) -> RecordStore:
    """Return a storage of a grid, random search, BO and ASHA, all trained here."""
    import torch

    from bench.execution.run_trial import TrialContext, run_trial
    from deelbo.training.checkpoint import Handover

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark = make(methods=LIVE, training={"steps": 10, "batch_size": 40})
    store = RecordStore(str(tmp_path_factory.mktemp("live") / "storage"))
    store.write_benchmark(benchmark.content())
    queue = TrialQueue(make_methods(benchmark))
    kept: dict[str, bytes] = {}
    while (spec := queue.ask()) is not None:
        before, after = spec.snapshot_key(spec.since), spec.snapshot_key(spec.until)
        rung = Handover(
            lambda name=before: kept.get(name),  # type: ignore[misc]
            lambda content, name=after: kept.__setitem__(name, content),  # type: ignore[misc]
        )
        part = (spec.since, spec.until) != (0.0, 1.0)
        record, series = run_trial(spec, pretrained, TrialContext(torch.device("cpu"), handover=rung if part else None))
        store.write(record, series)
        queue.tell(record)
    torch.set_num_threads(threads)
    return store


@pytest.mark.parametrize("name", ["random", "bo", "asha"])
def test_a_replayed_method_agrees_with_its_run(live: RecordStore, name: str) -> None:
    """It has the same trials in the same order, with the same NLLs and accuracies to the bit, and similar seconds."""
    benchmark = parse_benchmark(live.read_benchmark(), "live")
    (table,), lines = load_grid_tables(live, benchmark)
    assert lines == []
    settings = replay_settings(benchmark, table, [name])[name]
    assert settings == benchmark.methods[name]
    method = method_named(name)(trial_template(benchmark, table.cell), settings, name)
    ours = {record.key: record for record in simulate(method, table)}
    theirs = {record.key: record for record in live.records() if record.spec.method == name}
    assert ours.keys() == theirs.keys()  # numbers are part of a key
    for key, record in ours.items():
        assert record.status == theirs[key].status
        for metric in ("val_nll", "val_acc") if record.spec.stage == "tune" else ("test_acc", "test_nll"):
            np.testing.assert_equal(record.metrics[metric], theirs[key].metrics[metric])
        assert 0.05 < record.seconds["train"] / theirs[key].seconds["train"] < 20
        assert record.seconds["evaluate"] > 0 or record.spec.stage == "retrain"
    replayed, run = list(iterate_steps(ours.values())), list(iterate_steps(theirs.values()))
    assert [(step.number, step.accuracy) for step in replayed] == [(step.number, step.accuracy) for step in run]
    if name == "asha":
        assert {record.spec.until for record in ours.values()} == {0.2, 0.5, 1.0}
        assert len(ours) < 3 * 4 + 1  # some were stopped early
