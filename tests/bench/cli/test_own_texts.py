"""A benchmark on a file of the user's own texts, as one types it: planned, prepared, run, continued, and refused."""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bench.storage.records import RecordStore
from tests.helpers.tiny_bert import write_bert

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]
MINE = {
    "name": "mine",
    "datasets": {"news": {"csv": "news.csv", "text": ["title", "body"], "label": "class", "n": [20]}},
    "backbones": {"bert": {"model": "transformers:./bert", "max_length": 8}},
    "priors": ["l2-sp"],
    "seeds": [1001],
    "methods": {
        "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "retrain": "all"},
        "de-elbo": {"learning_rates": [0.1, 0.01]},
    },
    "training": {"steps": 4, "batch_size": 10, "posterior_passes": 1, "series_points": 1},
    "resources": {"gpus_per_trial": 0},
}


def deelbo_bench(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        cwd=where,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_benchmark_on_own_texts(tmp_path: Path) -> None:
    """MAP's grid of 2 x 2 and the DE ELBo run on a tiny BERT, are continued and reported; other texts are refused."""
    write_bert(tmp_path / "bert", pooler=False)
    rows = [
        ("title", "body", "class"),
        *((f"title {i}", f"{word} {i}", word) for word in ("king", "ball") for i in range(30)),
    ]
    with (tmp_path / "news.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    planned = deelbo_bench("plan", "mine.yaml", where=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "news, N = 20" in planned.stdout
    prepared = deelbo_bench("prepare", "mine.yaml", where=tmp_path)
    assert prepared.stdout.startswith("news: 48 training and 12 test texts, data ")
    assert prepared.stdout.count("lacks weights, which are initialized randomly: bert.pooler.dense.bias") == 1
    done = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = list(RecordStore(str(tmp_path / "out")).records())
    assert Counter(record.spec.stage for record in records) == {"tune": 4, "retrain": 4, "run": 2}
    assert {record.status for record in records} == {"completed"}
    assert {record.state["dim_head"] for record in records} == {2 * 33}
    (data,) = {record.versions["data"] for record in records}
    assert data in prepared.stdout
    assert {*pd.read_csv(tmp_path / "out" / "report" / "table3.csv")["n"]} == {20}
    longer = deelbo_bench(
        "run", "mine.yaml", "--storage", "out", "--set", "backbones.bert.max_length=9", where=tmp_path
    )
    assert longer.returncode == 2
    assert "holds trials that (started from pretrained weights" in longer.stderr
    again = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "10 done before" in again.stdout
    (tmp_path / "news.csv").write_text((tmp_path / "news.csv").read_text().replace("title 7,king", "title 7,war", 1))
    changed = deelbo_bench("run", "mine.yaml", "--storage", "out", where=tmp_path)
    assert changed.returncode == 2
    (line,) = changed.stderr.splitlines()
    assert f"holds trials that (saw other data of news: {data}, here " in line
