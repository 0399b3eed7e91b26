"""A benchmark on a folder of the user's own images, as one types it: planned, prepared, run, continued, and refused."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from bench.storage.records import RecordStore
from deelbo.pretrained.backbones import build_backbone

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]
MINE = {
    "name": "mine",
    "datasets": {"photos": {"folder": "./photos", "n": [20, "all"]}},
    "backbones": {"resnet18": {"weights": "resnet18.pt"}},
    "priors": ["l2-sp"],
    "seeds": [1001],
    "methods": {
        "map-gs": {"learning_rates": [0.01], "weight_decays": [0.01]},
        "de-elbo": {"learning_rates": [0.01]},
    },
    "training": {"steps": 2, "batch_size": 20, "image_size": 32, "posterior_passes": 1, "series_points": 1},
    "resources": {"gpus_per_trial": 0},
}


def write_class(folder: Path, brightness: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(brightness)
    for i in range(30):
        pixels = random.integers(brightness, brightness + 90, (36, 30, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")


def deelbo_bench(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=os.environ | {"DEELBO_DATA": str(where / "data"), "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        cwd=where,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_benchmark_on_own_images(tmp_path: Path) -> None:
    """Two methods run at N = 20 and on all images, are continued and reported; after a change the folder is refused."""
    for i, label in enumerate(("big cat", "Füchse", "犬")):
        write_class(tmp_path / "photos" / label, 70 * i)
    torch.save(build_backbone("resnet18", 1000)[0].state_dict(), tmp_path / "resnet18.pt")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    planned = deelbo_bench("plan", "mine.yaml", where=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert {"photos, N = 20", "photos, N = 72"} <= {line.split("  ")[0].strip() for line in planned.stdout.splitlines()}
    prepared = deelbo_bench("prepare", "mine.yaml", where=tmp_path)
    assert prepared.stdout.startswith("photos: 72 training and 18 test images, data ")
    done = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = list(RecordStore(str(tmp_path / "out")).records())
    assert Counter((r.spec.n, r.spec.stage) for r in records) == {
        (n, stage): 1 for n in (20, 72) for stage in ("tune", "retrain", "run")
    }
    assert {record.status for record in records} == {"completed"}
    (data,) = {record.versions["data"] for record in records}
    assert data in prepared.stdout
    assert sorted(pd.read_csv(tmp_path / "out" / "report" / "table3.csv")["n"]) == [20, 20, 72, 72]
    again = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6 done before" in again.stdout
    (tmp_path / "photos" / "犬" / "0.jpg").unlink()
    changed = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert changed.returncode == 2
    (line,) = changed.stderr.splitlines()
    assert f"holds trials that (saw other data of photos: {data}, here " in line
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    reported = deelbo_bench("report", "out", where=tmp_path)  # which needs no images
    assert reported.returncode == 0, reported.stderr
