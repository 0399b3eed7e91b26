"""The reader of the published result files, on small tables in their format and on the real ones where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.curves import curves
from bench.published import read_published
from bench.records import COLUMNS
from bench.report import write_published_report
from bench.tables import table2

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "published"

L2SP = "l2-sp_lr_0=0.1_n=370_random_state=1001_tau=0.01"
PTYL = "ptyl_lambda=100.0_lr_0=0.01_n=370_random_state=1001_tau=1e-05"
LATER = "l2-sp_alpha=0.01_beta=0.001_lr_0=0.1_n=370_random_state=1001"


def rows(name: str, metric: str, prior: str = "l2-sp", column: str = "method", **given: Any) -> dict[str, Any]:
    row = {"model_name": name, column: prior, "n": 370, "random_state": 1001, "runtime": 100.0}
    return row | {f"{metric}_acc": 0.8, f"{metric}_nll": 0.5} | given


def files(folder: Path, tuned: list[dict[str, Any]], retrained: list[dict[str, Any]]) -> tuple[Path, Path]:
    paths = folder / "tuned_Pet.csv", folder / "retrained_Pet.csv"
    for path, table in zip(paths, (tuned, retrained), strict=True):
        pd.DataFrame(table).to_csv(path, index=False)
    return paths


def test_both_files_become_one_table(tmp_path: Path) -> None:
    """Names, priors and settings are read into the schema of our own records, tuning and retraining apart."""
    frame = read_published(
        *files(tmp_path, [rows(L2SP, "val"), rows(PTYL, "val", "ptyl")], [rows(L2SP, "test", runtime=50.0)])
    )
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: str(kind) for name, kind in pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS).dtypes.items()
    }
    first, second, third = frame.to_dict("records")
    assert (first["stage"], third["stage"], first["dataset"], first["seed"]) == ("tune", "retrain", "Pet", 1001)
    assert (first["learning_rate"], first["weight_decay"], first["head_weight_decay"]) == (0.1, 0.01, 0.01)
    assert (second["prior"], second["prior_scale"], second["head_weight_decay"]) == ("ptyl", 100.0, 1e-5)
    assert pd.isna(second["weight_decay"])
    assert (third["train_seconds"], third["test_acc"]) == (50.0, 0.8)
    assert pd.isna(third["val_nll"])


def test_later_names_are_read(tmp_path: Path) -> None:
    """A file with a column criterion and names with alpha and beta is read like the older ones."""
    tuned = [rows(LATER, "val", column="criterion")]
    frame = read_published(*files(tmp_path, tuned, [rows(LATER, "test", column="criterion")]))
    assert frame[["weight_decay", "head_weight_decay", "prior"]].iloc[0].tolist() == [0.01, 0.001, "l2-sp"]
    assert len(curves(frame)) == 1


def test_placeholders_are_left_out_and_diverged_runs_kept(tmp_path: Path) -> None:
    """A row without a runtime is no run; one with a runtime and no NLL diverged."""
    other = L2SP.replace("0.01", "0.001")
    tuned = [rows(L2SP, "val"), rows(other, "val", val_nll=float("nan")), rows(PTYL, "val", "ptyl", runtime=None)]
    frame = read_published(*files(tmp_path, tuned, [rows(L2SP, "test")]))
    assert frame["status"].tolist() == ["completed", "diverged", "completed"]


def test_the_full_cost_is_not_made_up(tmp_path: Path) -> None:
    """The files hold training seconds alone: there is no curve and no total of the full cost."""
    frame = read_published(*files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")]))
    assert set(curves(frame)["cost"]) == {"train"}
    assert table2(frame)["total_seconds_full"].isna().all()
    made = write_published_report([files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])], tmp_path / "out")
    assert "figure2_full.png" not in made


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ([{"a": 1}], "has no column"),
        ([rows("resnet", "val")], "model_name 'resnet' cannot be read"),
        ([rows(L2SP.replace("0.01", "1e-"), "val")], "cannot be read"),
        ([rows(L2SP, "val", "l1")], "prior 'l1'"),
        ([rows(L2SP, "val"), rows(L2SP, "val", val_nll=0.6)], "two rows that disagree"),
        ([rows(L2SP, "val", runtime="soon")], "a column of numbers"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, tuned: list[dict[str, Any]], words: str) -> None:
    """Missing columns, names, priors and numbers that cannot be read, rows that disagree: refused, the file named."""
    with pytest.raises(ValueError, match=words) as refused:
        read_published(*files(tmp_path, tuned, [rows(L2SP, "test")]))
    assert "tuned_Pet.csv" in str(refused.value)


def test_a_row_twice_is_one_run(tmp_path: Path) -> None:
    """A row that stands twice, letter for letter, counts once."""
    frame = read_published(*files(tmp_path, [rows(L2SP, "val")] * 2, [rows(L2SP, "test")]))
    assert len(frame) == 2


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    """No file, or one that is no text, is refused with its name."""
    there, _ = files(tmp_path, [rows(L2SP, "val")], [rows(L2SP, "test")])
    (tmp_path / "binary.csv").write_bytes(b"\x80\x04\x95\xff\x00")
    for bad in ("nowhere.csv", "binary.csv"):
        with pytest.raises(ValueError, match=bad):
            read_published(there, tmp_path / bad)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published files are not here")
def test_table_2_of_the_paper() -> None:
    """From the published files, L2-SP and PTYL at N = 50000, seed 1001, are the paper's table 2 to the second."""
    frame = read_published(SHARED / "tuned_CIFAR-10.csv", SHARED / "retrained_CIFAR-10.csv")
    table = table2(frame).set_index(["prior", "n", "split_seed"])
    assert len(frame) == 1299
    l2sp, ptyl = table.loc[("l2-sp", 50000, 1001)], table.loc[("ptyl", 50000, 1001)]
    assert (round(l2sp["mean_run_seconds"]), int(l2sp["total_seconds"])) == (39 * 60 + 11, 16 * 3600 + 15 * 60 + 55)
    assert (round(ptyl["mean_run_seconds"]), int(ptyl["total_seconds"])) == (37 * 60 + 15, 149 * 3600 + 36 * 60 + 5)
    assert (l2sp["num_runs"], ptyl["num_runs"]) == (24, 240)
