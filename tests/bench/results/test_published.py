"""The reader of the published result files, on small tables in their format, and the printed tables."""

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.results.curves import compute_curves
from bench.results.frame import COLUMNS
from bench.results.paper import TABLE2, TABLE3
from bench.results.published import read_published
from bench.results.tables import compute_table2, compute_table3

SHARED = Path(__file__).resolve().parents[4] / "shared" / "published"
here = pytest.mark.skipif(not SHARED.is_dir(), reason="the published files are not here")

L2SP = "l2-sp_lr_0=0.1_n=370_random_state=1001_tau=0.01"
OTHER = "l2-sp_lr_0=0.1_n=370_random_state=1001_tau=0.001"
PTYL = "ptyl_lambda=100.0_lr_0=0.01_n=370_random_state=1001_tau=1e-05"
LATER = "l2-sp_alpha=0.01_beta=0.001_lr_0=0.1_n=370_random_state=1001"


MADE_UP = Path(__file__).parent / "published"
"""Files in the authors' form, with made-up numbers."""


def rows(
    name: str | None, metric: str, prior: str | None = "l2-sp", column: str = "method", **given: Any
) -> dict[str, Any]:
    row = {"model_name": name, column: prior, "n": 370, "random_state": 1001, "runtime": 100.0}
    return row | {f"{metric}_acc": 0.8, f"{metric}_nll": 0.5} | given


def files(folder: Path, tuned: list[dict[str, Any]], retrained: list[dict[str, Any]]) -> tuple[Path, Path]:
    paths = folder / "tuned_Pet.csv", folder / "retrained_Pet.csv"
    for path, table in zip(paths, (tuned, retrained), strict=True):
        pd.DataFrame(table).to_csv(path, index=False)
    return paths


def cells(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    return {(row.prior, row.n, row.seed, row.stage) for row in frame.itertuples()}


def test_both_files_become_one_table(tmp_path: Path) -> None:
    """Names, priors and settings are read into the columns of records, tuning and retraining apart."""
    pair = files(tmp_path, [rows(L2SP, "val"), rows(PTYL, "val", "ptyl")], [rows(L2SP, "test", runtime=50.0)])
    frame, problems, _ = read_published(*pair)
    assert problems == []
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: str(kind) for name, kind in pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS).dtypes.items()
    }
    first, second, third = frame.to_dict("records")
    assert (first["stage"], third["stage"], first["dataset"], first["seed"]) == ("tune", "retrain", "Pet", 1001)
    assert (first["method"], first["backbone"], first["source"]) == ("map-gs", "resnet50", "published")
    assert (first["learning_rate"], first["weight_decay"], first["head_weight_decay"]) == (0.1, 0.01, 0.01)
    assert (second["prior"], second["prior_scale"], second["head_weight_decay"]) == ("ptyl", 100.0, 1e-5)
    assert pd.isna(second["weight_decay"])
    assert (third["train_seconds"], third["test_acc"]) == (50.0, 0.8)
    assert pd.isna(third["val_nll"])


@pytest.mark.parametrize("column", ["method", "criterion"])
@pytest.mark.parametrize(("name", "strengths"), [(L2SP, [0.01, 0.01]), (LATER, [0.01, 0.001])])
def test_later_names_are_read(tmp_path: Path, column: str, name: str, strengths: list[float]) -> None:
    """Names with tau, or alpha and beta, are read, with a column method or criterion."""
    pair = files(tmp_path, [rows(name, "val", column=column)], [rows(name, "test", column=column)])
    frame, problems, _ = read_published(*pair, dataset="Flowers", source="later")
    assert problems == []
    assert frame[["weight_decay", "head_weight_decay"]].to_numpy().tolist() == [strengths, strengths]
    assert frame[["prior", "dataset", "source"]].iloc[0].tolist() == ["l2-sp", "Flowers", "later"]
    assert len(compute_curves(frame)) == 1


@pytest.mark.parametrize("nll", [float("nan"), float("inf")])
def test_placeholders_are_left_out_and_diverged_runs_kept(tmp_path: Path, nll: float) -> None:
    """A row without a runtime is no run; one with a runtime and no finite NLL diverged."""
    tuned = [rows(L2SP, "val"), rows(OTHER, "val", val_nll=nll), rows(PTYL, "val", "ptyl", runtime=None)]
    frame, problems, notes = read_published(*files(tmp_path, tuned, [rows(L2SP, "test")]))
    assert frame["status"].tolist() == ["completed", "diverged", "completed"]
    assert problems == []
    assert notes[0] == "tuned_Pet.csv: 1 rows without a runtime are placeholders, and left out."


def test_published_files_have_no_full_cost(tmp_path: Path) -> None:
    """The files have training seconds only: there is no curve and no total of the full cost."""
    frame, *_ = read_published(*files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")]))
    assert set(compute_curves(frame)["cost"]) == {"train"}
    assert compute_table2(frame)["total_seconds_full"].isna().all()


SPOILT = {
    "name": (rows("resnet", "val"), "'resnet' cannot be read"),
    "number in its name": (rows(L2SP.replace("0.01", "1e-"), "val"), "cannot be read"),
    "name without its n": (rows(L2SP.replace("_n=370", ""), "val"), "cannot be read"),
    "PTYL without its lambda": (rows(L2SP, "val", "ptyl"), "cannot be read"),
    "prior": (rows(L2SP, "val", "l1"), "expected a prior of l2-zero, l2-sp, ptyl"),
    "no prior": (rows(L2SP, "val", prior=None), "expected a prior"),
    "another prior": (rows(L2SP, "val", "l2-zero"), "has another prior, n or random_state than the columns"),
    "another n": (rows(L2SP, "val", n=740), "has another prior, n or random_state than the columns"),
    "another seed": (rows(L2SP, "val", random_state=1), "has another prior, n or random_state than the columns"),
    "word for a runtime": (rows(L2SP, "val", runtime="soon"), "has a number that cannot be read"),
    "word for an NLL": (rows(L2SP, "val", val_nll="low"), "has a number that cannot be read"),
    "negative runtime": (rows(L2SP, "val", runtime=-1.0), "has a runtime that is not above 0"),
    "no time at all": (rows(L2SP, "val", runtime=0.0), "has a runtime that is not above 0"),
    "infinite runtime": (rows(L2SP, "val", runtime="inf"), "has a runtime that is not above 0"),
}


@pytest.mark.parametrize(("bad", "words"), SPOILT.values(), ids=SPOILT)
def test_an_unusable_row_removes_its_cell(tmp_path: Path, bad: dict[str, Any], words: str) -> None:
    """Its cell, by its columns and by its name, is left out; a file of such rows only is refused in one line."""
    elsewhere = L2SP.replace("=1001", "=2001"), {"random_state": 2001}
    tuned = [bad, rows(OTHER, "val"), rows(elsewhere[0], "val", **elsewhere[1])]
    retrained = [rows(OTHER, "test"), rows(elsewhere[0], "test", **elsewhere[1])]
    frame, problems, _ = read_published(*files(tmp_path, tuned, retrained))
    assert cells(frame) == {("l2-sp", 370, 2001, "tune"), ("l2-sp", 370, 2001, "retrain")}
    (problem,) = problems
    assert re.search(words, problem)
    assert "l2-sp, N = 370, seed 1001" in problem
    with pytest.raises(ValueError, match=f"tuned_Pet.csv: model_name .*{words}") as refused:
        read_published(*files(tmp_path, [bad], [rows(L2SP, "test", runtime=None)]))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("again", [L2SP, L2SP.replace("0.01", "1e-2")], ids=["same name", "other spelling"])
def test_rows_that_disagree_remove_their_cell(tmp_path: Path, file: int, again: str) -> None:
    """Two results of one run, however spelled and in either file, remove that cell and no other."""
    pair: tuple[list[Any], list[Any]] = ([], [])
    for table, metric in zip(pair, ("val", "test"), strict=True):
        table += [rows(L2SP, metric), rows(OTHER, metric), rows(PTYL, metric, "ptyl")]
        for n, seed in ((370, 2001), (3441, 1001)):
            name = L2SP.replace("n=370", f"n={n}").replace("state=1001", f"state={seed}")
            table.append(rows(name, metric, n=n, random_state=seed))
    pair[file].append(rows(again, ("val", "test")[file], runtime=101.0))
    frame, problems, _ = read_published(*files(tmp_path, *pair))
    left = [("ptyl", 370, 1001), ("l2-sp", 370, 2001), ("l2-sp", 3441, 1001)]
    assert cells(frame) == {(*cell, stage) for cell in left for stage in ("tune", "retrain")}
    (problem,) = problems
    assert ("tuned_Pet.csv", "retrained_Pet.csv")[file] in problem
    assert f"{L2SP!r} has two rows that disagree" in problem
    assert problem.endswith("left out: l2-sp, N = 370, seed 1001")


@pytest.mark.parametrize("again", [L2SP, L2SP.replace("0.01", "1e-2")], ids=["same name", "other spelling"])
def test_a_row_twice_is_one_run(tmp_path: Path, again: str) -> None:
    """A row that stands twice, with the same results, counts once, however its numbers are spelled."""
    tuned = [rows(L2SP, "val"), rows(again, "val")]
    frame, problems, _ = read_published(*files(tmp_path, tuned, [rows(L2SP, "test")]))
    assert len(frame) == 2
    assert problems == []


def test_a_run_without_a_name_removes_its_cell(tmp_path: Path) -> None:
    """A row with a runtime and no model_name is no placeholder: its cell is left out."""
    with pytest.raises(ValueError, match="left out: l2-sp, N = 370, seed 1001"):
        read_published(*files(tmp_path, [rows(L2SP, "val"), rows(None, "val")], [rows(L2SP, "test")]))


@pytest.mark.parametrize("column", ["n", "random_state"])
@pytest.mark.parametrize("value", ["many", 370.5, -1, None, "inf", 1e20])
def test_n_and_seed_are_integers(tmp_path: Path, column: str, value: Any) -> None:
    """A file with an n or seed that is not an integer is refused, with the value."""
    pair = files(tmp_path, [rows(L2SP, "val"), rows(OTHER, "val", **{column: value})], [rows(L2SP, "test")])
    with pytest.raises(ValueError, match=rf"tuned_Pet\.csv: {column} = .* is not an integer .*: correct the file"):
        read_published(*pair)


def test_nothing_but_placeholders_is_refused(tmp_path: Path) -> None:
    """A pair without any run is refused, both files named."""
    pair = files(tmp_path, [rows(L2SP, "val", runtime=None)], [rows(L2SP, "test", runtime=None)])
    with pytest.raises(ValueError, match=r"tuned_Pet\.csv and .*retrained_Pet\.csv hold no run"):
        read_published(*pair)


@pytest.mark.parametrize("lost", ["model_name", "method", "n", "random_state", "runtime", "val_nll", "val_acc"])
def test_a_missing_column_is_named(tmp_path: Path, lost: str) -> None:
    """A table without one of the columns is refused with its name, and what was expected."""
    row = {name: value for name, value in rows(L2SP, "val").items() if name != lost}
    with pytest.raises(
        ValueError, match=rf"tuned_Pet\.csv has no column .*{lost}.*: give the published tuning results"
    ):
        read_published(*files(tmp_path, [row], [rows(L2SP, "test")]))


@pytest.mark.parametrize("content", [None, b"\x80\x04\x95\xff\x00", b"", b"a,b\n1,2,3\n1,2,3,4\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing, binary, empty or ragged file is refused in one line with its name."""
    there, _ = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    bad = tmp_path / "bad.csv"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.csv cannot be read") as refused:
        read_published(there, bad)
    assert len(str(refused.value).splitlines()) == 1


def read(name: str) -> pd.DataFrame:
    frame, problems, _ = read_published(SHARED / f"tuned_{name}.csv", SHARED / f"retrained_{name}.csv")
    assert problems == []
    return frame


@here
def test_table_2_of_the_paper() -> None:
    """From the published files, L2-SP and PTYL at N = 50000, seed 1001, are the paper's table 2."""
    frame = read("CIFAR-10")
    table = compute_table2(frame).set_index(["prior", "n", "split_seed"])
    assert len(frame) == 1299
    l2sp, ptyl = table.loc[("l2-sp", 50000, 1001)], table.loc[("ptyl", 50000, 1001)]
    assert (round(l2sp["mean_run_seconds"]), int(l2sp["total_seconds"])) == (39 * 60 + 11, 16 * 3600 + 15 * 60 + 55)
    assert (round(ptyl["mean_run_seconds"]), int(ptyl["total_seconds"])) == (37 * 60 + 15, 149 * 3600 + 36 * 60 + 5)
    assert (l2sp["num_runs"], ptyl["num_runs"]) == (24, 240)
    for row in (l2sp, ptyl):
        assert abs(row["mean_run_seconds"] - row["published_run_seconds"]) < 0.5
        assert 0 <= row["total_seconds"] - row["published_total_seconds"] < 60
        assert row["num_runs"] == row["published_runs"]


def assert_tables_agree(folder: Path, name: str, cells: int) -> None:
    """Compare mean run, number of runs, total and accuracies with pandas on the CSV files alone."""
    tuned, retrained = (pd.read_csv(folder / f"{stage}_{name}.csv") for stage in ("tuned", "retrained"))
    expected, accuracies = {}, dict[int, list[float]]()
    for (n, seed), grid in tuned.groupby(["n", "random_state"]):
        best = grid.loc[grid["val_nll"].idxmin(), "model_name"]
        (again,) = retrained[retrained["model_name"] == best].to_dict("records")
        expected[n, seed] = [grid["runtime"].mean(), len(grid), grid["runtime"].sum() + again["runtime"]]
        accuracies.setdefault(n, []).append(100 * again["test_acc"])
    frame, problems, _ = read_published(folder / f"tuned_{name}.csv", folder / f"retrained_{name}.csv")
    assert problems == []
    assert len(expected) == cells
    second = compute_table2(frame).set_index(["n", "split_seed"])[["mean_run_seconds", "num_runs", "total_seconds"]]
    assert set(second.index) == set(expected)
    for cell, numbers in expected.items():
        assert second.loc[cell].tolist() == pytest.approx(numbers, rel=1e-12)
    third = compute_table3(frame).set_index("n")
    assert set(third.index) == set(accuracies)
    for n, of in accuracies.items():
        numbers = third.loc[n, ["mean", "min", "max", "seeds"]].tolist()
        assert numbers == pytest.approx([sum(of) / len(of), min(of), max(of), len(of)], rel=1e-12)


@here
@pytest.mark.parametrize(("name", "cells"), [("Oxford-IIIT_Pet", 6), ("CIFAR-10_ConvNeXt_Tiny", 12)])
def test_tables_agree_with_the_published_files(name: str, cells: int) -> None:
    """In every cell, mean run, runs, total and accuracy are those of the CSV files."""
    assert_tables_agree(SHARED, name, cells)


def test_tables_agree_with_made_up_files() -> None:
    """So they are in files of the later form, one run diverged and one accuracy rounded beyond 1."""
    assert_tables_agree(MADE_UP, "CIFAR-10_ConvNeXt_Tiny", 4)
    frame, *_ = read_published(*(MADE_UP / f"{stage}_CIFAR-10_ConvNeXt_Tiny.csv" for stage in ("tuned", "retrained")))
    assert frame["val_acc"].max() == 1.0
    assert frame["status"].value_counts().to_dict() == {"completed": 63, "diverged": 1}


def test_table_3_of_the_paper() -> None:
    """It has six methods at four N, none twice, each mean between minimum and maximum; the sums are the print's."""
    assert TABLE3.groupby(["prior", "method"])["n"].agg(list).map([100, 1000, 10000, 50000].__eq__).sum() == 6
    assert TABLE3["published_min"].le(TABLE3["published_mean"]).all()
    assert TABLE3["published_mean"].le(TABLE3["published_max"]).all()
    assert TABLE3.filter(like="published_").sum().round(1).tolist() == [2075.3, 2059.8, 2089.5]


def test_printed_times() -> None:
    """Run, number of runs and total are those that table 2 prints."""
    found = {}
    for row in TABLE2.to_dict("records"):
        run, total = int(row["published_run_seconds"]), int(row["published_total_seconds"])
        assert total % 60 == 0
        words = f"{run // 60} min {run % 60} s, {row['published_runs']}, {total // 3600} h {total % 3600 // 60} min"
        found[row["prior"], row["method"], row["dataset"], row["backbone"], row["n"], row["split_seed"]] = words
    where = ("CIFAR-10", "resnet50", 50000, 1001)
    assert found == {
        ("l2-sp", "map-gs", *where): "39 min 11 s, 24, 16 h 15 min",
        ("l2-sp", "de-elbo", *where): "39 min 0 s, 4, 2 h 36 min",
        ("ptyl", "map-gs", *where): "37 min 15 s, 240, 149 h 36 min",
        ("ptyl", "de-elbo", *where): "40 min 0 s, 4, 2 h 39 min",
    }


ELSEWHERE = L2SP.replace("=1001", "=2001"), {"random_state": 2001}
LEFT_OUT = "l2-sp, N = 370, seed 1001"


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize(
    ("newline", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\r", csv.QUOTE_NONNUMERIC)],
    ids=["LF", "CRLF", "CR"],
)
def test_a_line_without_an_end_removes_its_cell(tmp_path: Path, file: int, newline: str, quoting: Any) -> None:
    """Wherever an interrupted copy ends within the last line, its cell is left out and named, or the pair refused."""
    name, more = ELSEWHERE
    pair = [rows(name, metric, **more) for metric in ("val", "test")], [rows(L2SP, "val"), rows(L2SP, "test")]
    paths = files(tmp_path, *([pair[0][i], pair[1][i]] for i in range(2)))
    pd.read_csv(paths[file]).to_csv(paths[file], index=False, lineterminator=newline, quoting=quoting)
    content = paths[file].read_bytes()
    *others, last = content.splitlines(keepends=True)
    line, refused = last.removesuffix(newline.encode()), 0
    ends = [*range(1, len(line) - 25, 9), *range(len(line) - 25, len(line), 3), len(line)]
    for end in ends:
        paths[file].write_bytes(b"".join(others) + line[:end])
        try:
            frame, problems, _ = read_published(*paths)
        except ValueError as error:
            refused += 1
            assert re.search(f"{paths[file].name} cannot be read .*line 3 is cut", str(error))  # noqa: PT017
        else:
            assert cells(frame) == {("l2-sp", 370, 2001, stage) for stage in ("tune", "retrain")}
            (problem,) = problems
            assert str(paths[file]) in problem
            assert "no end or too few fields in line 3" in problem
            assert problem.endswith(f"left out: {LEFT_OUT}")
    assert 0 < refused < len(ends) - 4


def test_the_only_line_without_an_end(tmp_path: Path) -> None:
    """A file that ends within its only row has no run that can be used; one that ends within its header, no column."""
    tuned, retrained = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    content = tuned.read_bytes()
    tuned.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=f"hold no run that can be used: .*no end.* left out: {LEFT_OUT}"):
        read_published(tuned, retrained)
    tuned.write_bytes(content.splitlines()[0][:-1])
    with pytest.raises(ValueError, match="has no column val_nll"):
        read_published(tuned, retrained)


def test_a_line_with_too_few_fields(tmp_path: Path) -> None:
    """A run whose last fields were cut off is no diverged run, wherever the line is; its cell is left out and named."""
    name, more = ELSEWHERE
    pair = [rows(L2SP, "val"), rows(L2SP, "test")], [rows(name, "val", **more), rows(name, "test", **more)]
    paths = files(tmp_path, *([pair[0][i], pair[1][i]] for i in range(2)))
    lines = paths[0].read_text().splitlines(keepends=True)
    lines[1] = lines[1].rpartition(",")[0] + "\n"
    paths[0].write_text("".join(lines))
    frame, (problem,), _ = read_published(*paths)
    assert cells(frame) == {("l2-sp", 370, 2001, stage) for stage in ("tune", "retrain")}
    assert "too few fields in line 2, which may be cut" in problem
    assert problem.endswith(f"left out: {LEFT_OUT}")
    paths[0].write_text("".join([lines[0].replace("\n", ",\n"), *lines[2:]]))
    paths[1].write_text("".join(line for line in paths[1].read_text().splitlines(keepends=True) if "1001" not in line))
    assert not read_published(*paths).problems  # a comma at the end of the header alone


def test_a_copy_filled_with_zeros_is_refused(tmp_path: Path) -> None:
    """A file whose end is zero bytes, as some systems leave it behind, is refused."""
    tuned, retrained = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    tuned.write_bytes(tuned.read_bytes() + bytes(100))
    with pytest.raises(ValueError, match=r"tuned_Pet\.csv cannot be read .*zero bytes"):
        read_published(tuned, retrained)


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
@pytest.mark.parametrize("decimal", [".", ","])
def test_other_separators_are_named(tmp_path: Path, separator: str, word: str, decimal: str) -> None:
    """A table as other programs save it is refused by the name of its separator."""
    tuned, retrained = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    pd.read_csv(tuned).to_csv(tuned, index=False, sep=separator, decimal=decimal)
    with pytest.raises(ValueError, match=f"tuned_Pet.csv cannot be read .*separated by {word}: save it with commas"):
        read_published(tuned, retrained)


def test_tables_of_other_programs(tmp_path: Path) -> None:
    """A byte order mark, CRLF and quoted fields change nothing."""
    pair = files(tmp_path, [rows(L2SP, "val"), rows(PTYL, "val", "ptyl")], [rows(L2SP, "test")])
    expected = read_published(*pair).frame
    options: dict[str, Any] = {"encoding": "utf-8-sig", "lineterminator": "\r\n", "quoting": csv.QUOTE_ALL}
    for path in pair:
        pd.read_csv(path).to_csv(path, index=False, **options)
    pd.testing.assert_frame_equal(read_published(*pair).frame, expected)


@pytest.mark.parametrize("metric", ["val", "test"])
@pytest.mark.parametrize(
    ("number", "bound"), [(1.0000001192092896, 1.0), (1 + 1e-6, 1.0), (-1e-9, 0.0), (0.9999, 0.9999)]
)
def test_accuracies_that_were_rounded(tmp_path: Path, metric: str, number: float, bound: float) -> None:
    """An accuracy that float32 rounded beyond 0 or 1 is that bound, and costs no cell."""
    changed = {metric: {f"{metric}_acc": number}}
    tables = [[rows(L2SP, name, **changed.get(name, {}))] for name in ("val", "test")]
    frame, problems, _ = read_published(*files(tmp_path, *tables))
    assert problems == []
    assert frame[f"{metric}_acc"].dropna().tolist() == [bound]


def test_a_retrained_run_without_tuning_removes_its_cell(tmp_path: Path) -> None:
    """A retrained run without a tuning run means that the grid is incomplete: its cell is left out."""
    elsewhere = rows(L2SP.replace("1001", "2001"), "val", random_state=2001)
    pair = files(tmp_path, [rows(L2SP, "val"), elsewhere], [rows(L2SP, "test"), rows(OTHER, "test")])
    frame, problems, _ = read_published(*pair)
    assert cells(frame) == {("l2-sp", 370, 2001, "tune")}
    (problem,) = problems
    assert "no tuning run for 1 retrained run, so that the grid is incomplete" in problem
    assert problem.endswith("left out: l2-sp, N = 370, seed 1001")


def test_files_of_two_datasets_are_refused(tmp_path: Path) -> None:
    """A tuned file of one dataset and a retrained one of another are refused by their names."""
    tuned, retrained = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    other = retrained.rename(tmp_path / "retrained_Flowers.csv")
    with pytest.raises(ValueError, match="named after two datasets"):
        read_published(tuned, other)


@pytest.mark.parametrize("accuracy", [80.0, 1.001, 1 + 2e-6, -0.1, float("inf")])
def test_accuracies_are_0_to_1(tmp_path: Path, accuracy: float) -> None:
    """A row whose accuracy is outside 0 to 1, such as percent, cannot be used."""
    with pytest.raises(ValueError, match="has an accuracy outside 0 to 1"):
        read_published(*files(tmp_path, [rows(L2SP, "val", val_acc=accuracy)], [rows(L2SP, "test")]))


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file larger than any such table is refused before it fills the memory."""
    pair = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    monkeypatch.setattr("bench.results.csv_text.MAX_FILE_BYTES", 50)
    with pytest.raises(ValueError, match=r"tuned_Pet\.csv cannot be read .*at most 50 are read"):
        read_published(*pair)


FILE_NAMES = {
    "CIFAR-10_ConvNeXt_Tiny": ("CIFAR-10", "convnext_tiny"),
    "CIFAR-10_ConvNeXt-Tiny_CLML": ("CIFAR-10", "convnext_tiny"),
    "CIFAR-10_ViT_B_16": ("CIFAR-10", "vit_b_16"),
    "Oxford-IIIT_Pet_ResNet_50": ("Oxford-IIIT_Pet", "resnet50"),
    "Pet-37_ConvNeXt-Tiny": ("Oxford-IIIT_Pet", "convnext_tiny"),
    "Flowers_102_ResNet_50": ("Flowers-102", "resnet50"),
    "Flower-102_ConvNeXt-Tiny": ("Flowers-102", "convnext_tiny"),
    "AG_News_BERT-base": ("news4", "bert"),
    "CIFAR-10": ("CIFAR-10", "unknown"),
    "ResNet_50": ("ResNet_50", "unknown"),
}


@pytest.mark.parametrize(("name", "expected"), FILE_NAMES.items())
def test_networks_are_read_from_the_files_names(name: str, expected: tuple[str, str], tmp_path: Path) -> None:
    """Dataset and network of grids and searches are in the files' names, and else not known, which a note says."""
    grid = tmp_path / f"tuned_{name}.csv", tmp_path / f"retrained_{name}.csv"
    for path, metric in zip(grid, ("val", "test"), strict=True):
        pd.DataFrame([rows(LATER, metric, column="criterion")]).to_csv(path, index=False)
    search = tmp_path / f"{name}_BO.csv"
    search.write_bytes((MADE_UP / "CIFAR-10_ConvNeXt-Tiny_BO.csv").read_bytes())
    for paths in (grid, [search]):
        frame, problems, notes = read_published(*paths)
        assert problems == []
        assert set(frame[["dataset", "backbone"]].itertuples(index=False, name=None)) == {expected}
        unknown = f"{paths[0].name}: the name says no network, so it is not known: if you know it, put it there"
        assert any(note.startswith(unknown) for note in notes) is (expected[1] == "unknown")


def test_the_files_of_2024_have_one_network(tmp_path: Path) -> None:
    """Where runs are named by tau, ResNet-50 is assumed, and a note says so."""
    frame, _, (note,) = read_published(*files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")]))
    assert set(frame["backbone"]) == {"resnet50"}
    assert "the name says no network, so it is not known: ResNet-50 is assumed" in note


@pytest.mark.parametrize(
    ("path", "searches", "lost"),
    [
        pytest.param(SHARED / "CIFAR-10_BO.csv", 30, 0, marks=here),
        (MADE_UP / "CIFAR-10_ConvNeXt-Tiny_BO.csv", 4, 1),
    ],
)
def test_curves_of_searches_are_the_files(path: Path, searches: int, lost: int) -> None:
    """The curve of each search has the file's times and test accuracies; none if its best run was not retrained."""
    frame, problems, notes = read_published(path)
    assert problems == []
    assert any("L2-SP is assumed" in note for note in notes)
    raw = pd.read_csv(path).rename(columns={"random_state": "split_seed"})
    raw["method"] = "bo-seed-" + raw["seed"].astype(int).astype(str)
    keys = ["n", "split_seed", "method"]
    raw = raw[raw.groupby(keys)["test_acc"].transform("last") > 0].assign(k=raw["n_iter"] + 1)
    both = raw.merge(compute_curves(frame), on=[*keys, "k"], how="outer", indicator=True)
    assert (both["_merge"] == "both").all()
    assert both.groupby(keys).ngroups == searches - lost == frame.groupby(["n", "seed", "method"]).ngroups - lost
    assert (3600 * both["expected_hours"]).tolist() == pytest.approx(both["runtime"].tolist(), rel=1e-12)
    assert both["expected_test_acc"].tolist() == both["test_acc"].tolist()
    tuning = frame[frame["stage"] == "tune"]
    strengths = tuning[["learning_rate", "weight_decay", "head_weight_decay", "val_nll"]].to_numpy()
    expected = pd.read_csv(path).sort_values(["n", "random_state", "seed", "n_iter"])
    assert (strengths == expected[["lr_0", "alpha", "beta", "val_nll"]].to_numpy()).all()
    assert (tuning["val_acc"].to_numpy() == expected["val_acc"].clip(0, 1).to_numpy()).all()


BAD_SEARCHES = {
    "gap": ({"n_iter": 7.0}, "follows a gap in n_iter"),
    "word": ({"val_nll": "low"}, "has a number that cannot be read"),
    "word for a runtime": ({"runtime": "soon"}, "has a number that cannot be read"),
    "sum that falls": ({"runtime": 1.0}, "has a runtime that is not above 0"),
    "percent": ({"val_acc": 93.0}, "has an accuracy outside 0 to 1"),
    "no strength": ({"alpha": ""}, "cannot be read"),
    "another result": ({"test_nll": 9.0}, "has two rows that disagree"),
}


@pytest.mark.parametrize(("changed", "words"), BAD_SEARCHES.values(), ids=BAD_SEARCHES)
def test_an_unusable_row_of_a_search(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    """It is named, and the searches of its split are left out."""
    table = pd.read_csv(MADE_UP / "CIFAR-10_ConvNeXt-Tiny_BO.csv", dtype=object)
    for name, value in changed.items():
        table.loc[2, name] = value  # n_iter 2 of seed 0, whose best run is that of n_iter 1
    table.to_csv(path := tmp_path / "CIFAR-10_ConvNeXt-Tiny_BO.csv", index=False)
    frame, problems, _ = read_published(path)
    assert set(frame["seed"]) == {2001}
    assert all(line.endswith("left out: l2-sp, N = 100, seed 1001") for line in problems)
    assert any(words in line for line in problems)


def test_a_search_that_was_cut(tmp_path: Path) -> None:
    """A search file without its end loses the searches of the last split."""
    content = (MADE_UP / "CIFAR-10_ConvNeXt-Tiny_BO.csv").read_text()
    (path := tmp_path / "CIFAR-10_BO.csv").write_text(content[:-20])
    frame, (problem,), _ = read_published(path)
    assert set(frame["seed"]) == {1001}
    assert "no end or too few fields in line 17" in problem
    assert problem.endswith("left out: l2-sp, N = 100, seed 2001")


def test_one_file_of_a_grid_is_refused(tmp_path: Path) -> None:
    """One file that is no search is refused, with what was expected."""
    tuned, _ = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    with pytest.raises(ValueError, match=r"no column alpha, .*: give the two files of a grid, or one of searches"):
        read_published(tuned)


def test_columns_of_the_authors_laplace_approximation() -> None:
    """They are in the table beside the rest, and a note says what is wrong with them."""
    paths = [MADE_UP / f"{stage}_CIFAR-10_ConvNeXt-Tiny_CLML.csv" for stage in ("tuned", "retrained")]
    frame, problems, notes = read_published(*paths)
    assert problems == []
    assert list(frame) == [*COLUMNS, "val_bma_acc", "val_clml", "test_bma_acc", "test_clml"]
    for path, stage, kind in zip(paths, ("tune", "retrain"), ("val", "test"), strict=True):
        names = [f"{kind}_bma_acc", f"{kind}_clml"]
        expected = pd.read_csv(path)[names].to_numpy()
        assert (frame.loc[frame["stage"] == stage, names].to_numpy() == expected).all()
        assert frame.loc[frame["stage"] != stage, names].isna().all(axis=None)
    (note,) = notes
    assert "val_clml, test_bma_acc, test_clml are the authors' own, and nothing is chosen by them" in note
    assert "no conditional marginal likelihood" in note
