"""The poster preset, rehearsed with small datasets in their real formats, 32 px images and a few steps."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bench.storage.records import RecordStore
from deelbo.pretrained.backbones import build_backbone

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

SHRUNK = {
    "datasets": "{CIFAR-10: [100], Oxford-IIIT_Pet: [370]}",
    "verify_data": "false",
    "seeds": "[1001]",
    "training.steps": "3",
    "training.batch_size": "8",
    "training.image_size": "32",
    "training.posterior_passes": "1",
    "training.series_points": "1",
    "methods.map-gs.learning_rates": "[0.01]",
    "methods.map-gs.weight_decays": "[0.01, 0]",
    "methods.map-gs.ptyl_lambdas": "[1]",
    "methods.de-elbo.learning_rates": "[0.01]",
    "methods.elbo.learning_rates": "[0.01]",
    "resources": "{slots: 2, gpus_per_trial: 0}",
}
WORLD = os.environ | {"OMP_NUM_THREADS": "1"}


def deelbo_bench(*arguments: str, data: Path, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=WORLD | {"DEELBO_DATA": str(data), "PYTHONPATH": str(Path.cwd())},
        cwd=where,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of ResNet-50, source images, and PTYL's prior fitted on them by `swag`."""
    folder = tmp_path_factory.mktemp("rehearsal")
    torch.save(build_backbone("resnet50", 1000)[0].state_dict(), folder / "resnet50.pt")
    random = np.random.default_rng(0)
    for c in range(2):
        (folder / "source" / f"class{c}").mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 128, (40, 48, 3)) + 100 * c
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "source" / f"class{c}" / f"{i}.jpg")
    fitted = deelbo_bench(
        *("swag", "source", "swag.safetensors", "--weights", "resnet50.pt"),
        *("--image-size", "32", "--batch-size", "8", "--epochs", "5"),
        data=folder,
        where=folder,
    )
    assert fitted.returncode == 0, fitted.stderr
    return folder


@pytest.fixture(scope="module")
def rehearsal(place: Path, data_root: Path) -> tuple[Path, str]:
    """The storage of the rehearsal, and the output of its command."""
    files = {"backbones.resnet50.weights": "resnet50.pt", "backbones.resnet50.ptyl": "swag.safetensors"}
    sets = [word for key, value in (SHRUNK | files).items() for word in ("--set", f"{key}={value}")]
    prepared = deelbo_bench("prepare", "poster", *sets, data=data_root, where=place)
    assert prepared.returncode == 0, prepared.stderr
    done = deelbo_bench("run", "poster", "--storage", "out", *sets, data=data_root, where=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "out", done.stdout


def test_every_prior_and_method_runs(rehearsal: tuple[Path, str]) -> None:
    """Every prior and method completes its trials on both datasets."""
    records = list(RecordStore(str(rehearsal[0])).records())
    counts = Counter((r.spec.dataset, r.spec.prior, r.spec.stage) for r in records)
    each = {("l2-zero", "retrain"): 1, ("l2-sp", "retrain"): 2, ("ptyl", "retrain"): 1}
    each |= {(prior, "tune"): 2 for prior in ("l2-zero", "l2-sp", "ptyl")}
    each |= {(prior, "run"): 2 for prior in ("l2-zero", "l2-sp", "ptyl")}
    expected = {(dataset, *what): n for dataset in ("CIFAR-10", "Oxford-IIIT_Pet") for what, n in each.items()}
    assert counts == expected
    assert {record.status for record in records} == {"completed"}


def test_what_ran_is_on_the_record(rehearsal: tuple[Path, str]) -> None:
    """Records have the numerics, hashes of data and weights, and the D of the published network."""
    records = list(RecordStore(str(rehearsal[0])).records())
    assert {(r.spec.precision, r.spec.channels_last, r.spec.image_size) for r in records} == {("bf16", True, 32)}
    starts = {(r.spec.prior == "ptyl", r.versions["pretrained"]) for r in records}
    assert len(starts) == 2
    assert len({(r.spec.dataset, r.versions["data"]) for r in records}) == 2
    sizes = {(r.spec.dataset, r.state["dim_backbone"] + r.state["dim_head"]) for r in records}
    assert sizes == {("CIFAR-10", 23_528_522), ("Oxford-IIIT_Pet", 23_583_845)}


def test_every_table_and_figure_is_there(rehearsal: tuple[Path, str]) -> None:
    """The report has figures 1 and 2, and tables 2 and 3 for every prior, method and dataset."""
    report = rehearsal[0] / "report"
    third = pd.read_csv(report / "table3.csv")
    assert len(third) == 2 * 3 * 3
    assert third["mean"].between(0, 100).all()
    assert len(pd.read_csv(report / "table2.csv")) == 2 * 3 * 3
    curves = pd.read_csv(report / "curves.csv")
    whole = curves[(curves["cost"] == "train") & (curves["method"] == "map-gs") & (curves["prior"] == "l2-sp")]
    assert sorted(zip(whole["dataset"], whole["k"], strict=True)) == [
        (dataset, k) for dataset in ("CIFAR-10", "Oxford-IIIT_Pet") for k in (1, 2)
    ]
    for name in ("figure1.png", "figure2.png", "figure2.pdf", "report.html"):
        assert (report / name).stat().st_size > 10_000


def test_a_rehearsal_is_not_taken_for_the_paper(rehearsal: tuple[Path, str]) -> None:
    """The page lists the settings that differ from those of the published numbers."""
    page = (rehearsal[0] / "report" / "report.html").read_text()
    for words in ("steps = 3 (paper: 6000)", "image_size = 32 (paper: 224)", "images that were not verified"):
        assert words in page


def test_the_terminal_shows_the_table(rehearsal: tuple[Path, str]) -> None:
    """The terminal shows measured beside published results, within 80 columns."""
    lines = rehearsal[1].splitlines()
    assert any("DE ELBo" in line and "70.6 (68.7-72.7)" in line for line in lines)
    assert max(len(line) for line in lines if "(" in line and "ELBo " in line) <= 80
