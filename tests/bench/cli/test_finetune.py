"""`finetune` and `predict` as a person types them: interrupted, continued, predicted with, and refused."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bench
import deelbo
from bench.cli.main import main
from deelbo.training.evaluation import calibration_error
from tests.helpers.tiny_bert import write_bert

NETWORK = """from torch import nn


def build(num_classes):
    start = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*start, nn.Linear(64, num_classes))
"""
CLASSES = {"Füchse, rot": 0, "big cat": 60, "犬": 120}
OWN = ["--backbone", "finetune_net:build", "--allow-import", "finetune_net", "--weights", "none"]
SHORT = ["--steps", "12", "--batch-size", "20", "--image-size", "16"]


def write_photos(folder: Path, count: int) -> None:
    for label, brightness in CLASSES.items():
        (folder / label).mkdir(parents=True)
        random = np.random.default_rng(brightness + count)
        for i in range(count):
            pixels = random.integers(brightness, brightness + 130, (24, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with images and a network."""
    write_photos(tmp_path / "photos" / "train", 12)
    (tmp_path / "finetune_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DEELBO_DATA", str(tmp_path / "data"))


def interrupt_after_a_trial(storage: Path) -> None:
    """Send Ctrl-C to this process once a trial has its record."""
    deadline = time.monotonic() + 200
    while not list(storage.glob("records/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_interrupted_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues after Ctrl-C, also while the model is copied; the predictions are the record's."""
    write_photos(tmp_path / "photos" / "test", 5)
    command = ["finetune", "photos", *OWN, *SHORT, "--out", "model", "--set", "resources.cpus_per_trial=1"]
    thread = threading.Thread(target=interrupt_after_a_trial, args=[tmp_path / "deelbo-runs" / "finetune-model"])
    thread.start()
    assert main(command) == 130
    thread.join()
    assert "trials left: the same command continues" in capsys.readouterr().out
    assert not Path("model").exists()
    with monkeypatch.context() as patch:
        patch.setattr("bench.finetune.finetune.calibration_error", interrupt)
        assert main(command) == 130
    assert "stopped before the model was copied: the same command continues" in capsys.readouterr().out
    assert not Path("model").exists()
    assert main(command) == 0
    assert not Path(".model.part").exists()
    out = capsys.readouterr().out
    assert " done before, " in out
    record = deelbo.load_model("model", allow_import=["finetune_net"]).metadata["record"]
    assert f"learning rate {record['spec']['learning_rate']:g} of 4" in out
    assert f"accuracy  {record['metrics']['test_acc']:.1%} of 15 test examples" in out
    (chosen,) = bench.load("deelbo-runs/finetune-model").chosen().to_dict("records")
    assert chosen["key"] == record["key"]
    card = Path("model/README.md").read_text()
    assert str(tmp_path) not in card
    assert "photos: 36 training and 15 test examples" in card
    assert main(["predict", "model", "photos/test", "--out", "p.json"]) == 2
    assert "--allow-import" in capsys.readouterr().err
    assert main(["predict", "model", "photos/test", "--out", "p.json", "--allow-import", "finetune_net"]) == 0
    rows = json.loads(Path("p.json").read_text())
    truth = [Path(row["path"]).parent.name for row in rows]
    right = [np.mean([row["label"] == t for row, t in zip(rows, truth, strict=True) if t == c]) for c in CLASSES]
    assert float(torch.tensor(right, dtype=torch.float64).mean()) == record["metrics"]["test_acc"]
    names = list(rows[0]["probabilities"])
    probabilities = torch.tensor([list(row["probabilities"].values()) for row in rows])
    labels = torch.tensor([names.index(label) for label in truth])
    nll = torch.nn.functional.nll_loss(probabilities.log(), labels)
    assert float(nll) == pytest.approx(record["metrics"]["test_nll"], rel=1e-4)
    assert f"calibration error {calibration_error(probabilities, labels):.3f}" in out
    capsys.readouterr()
    Path("photos/test/big cat/bad.png").write_bytes(b"")
    arguments = ["predict", "model", "photos/test", "--allow-import", "finetune_net", "--unreadable", "skip"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert [row["label"] for row in csv.DictReader(printed.out.splitlines())] == [row["label"] for row in rows]
    assert printed.err == "left out: photos/test/big cat/bad.png (empty)\n"
    assert main(command) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


@pytest.mark.long
def test_without_a_test_set(capsys: pytest.CaptureFixture[str]) -> None:
    """All images are trained on, and nothing is said of accuracy."""
    arguments = ["finetune", "photos/train", *OWN, *SHORT, "--out", "model", "--set", "resources.cpus_per_trial=1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "train: 36 training examples; build, 12 steps of 20 at 16 px" in out
    assert "accuracy  not measured, as there is no test set: see --test-share" in out
    assert "no report" not in out
    assert "36 training and 0 test examples" in Path("model/README.md").read_text()


@pytest.mark.long
def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text network is fine-tuned, and knows at prediction which columns it was trained on."""
    write_bert(tmp_path / "bert")
    rows = [[f"title {i}", f"{word} {i}", word] for word in ("king", "ball") for i in range(20)]
    with Path("news.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["title", "body", "class"], *rows])
    text = ["--text", "title", "--text", "body", "--label", "class", "--backbone", "transformers:./bert"]
    training = ["--max-length", "8", "--steps", "20", "--batch-size", "10", "--test-share", "0.2", "--out", "model"]
    assert main(["finetune", "news.csv", *text, *training]) == 0
    assert "predict . TEXTS.csv" in Path("model/README.md").read_text()
    capsys.readouterr()
    assert main(["predict", "model", "news.csv"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [line["path"] for line in lines] == [f"news.csv:{i + 2}" for i in range(40)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no "),
        (["photos", "--text", "title"], "photos is not a file"),
        (["photos/train/big cat"], "lies in no folder of a class"),
        (["photos", "--backbone", "resnet5000"], "backbone = 'resnet5000'"),
        (["photos", "--backbone", "finetune_net:build"], "add --allow-import finetune_net"),
        (["photos", *OWN[:-2]], "backbones.build.weights is missing"),
        (["photos", *OWN, "--head", "nose"], "the head 'nose' must be a Linear layer"),
        (["photos", *OWN, "--steps", "0"], "training.steps = 0"),
        (["photos", *OWN, "--test-share", "1"], "datasets.photos.test_share = 1"),
        (["photos", *OWN, "--image-size", "-1"], "training.image_size = -1"),
        (["photos", *OWN, "--seed", "-1"], "seeds.0 = -1"),
        (["photos", *OWN, "--set", "training.steps"], "--set takes KEY=VALUE"),
        (["photos", *OWN, "--set", "seeds=[1, 2]"], "finetune trains one model by a method that learns the strengths"),
        (["photos", *OWN, "--set", "methods={map-gs: {}}"], "use `run` instead"),
        (["photos", *OWN, "--set", "keep=none"], "and keeps it"),
        (["photos", *OWN, "--out", "photos"], "--out photos exists and is not an empty folder"),
        (["photos", "--batchnorm", "melted"], "melted"),
        (["photos", "--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_refused(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input is one line and exit code 2, before anything is written."""
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main(["finetune", "--out", "model", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "photos"], "nowhere has no model.json: give the folder of a saved model"),
        (["photos", "nowhere.png"], "there is no nowhere.png"),
        (["photos", "photos", "--out", "out.txt"], "expected a name that ends with .csv or .json"),
        (["photos", "photos", "--unreadable", "maybe"], "maybe"),
    ],
)
def test_predict_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input is one line and exit code 2."""
    try:
        code = main(["predict", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
