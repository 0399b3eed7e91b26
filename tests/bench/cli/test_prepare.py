"""`prepare` downloads what a benchmark reads, or says in one line what is missing."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main
from tests.helpers.news4 import write_news4

CONTENT: dict[str, Any] = {
    "name": "rehearsal",
    "datasets": {"CIFAR-10": [100, 400], "Fashion-MNIST": [200], "Oxford-IIIT_Pet": [370], "Flowers-102": [510]},
    "backbones": {"resnet50": {}},
    "priors": ["l2-sp"],
    "seeds": [1],
    "methods": {"de-elbo": {}},
    "training": {"steps": 2, "image_size": 32},
    "verify_data": False,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty all places of data and weights, and send network requests to a closed port of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEELBO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("DEELBO_DATA", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def written(tmp_path: Path, **change: Any) -> str:
    """Write the configuration, and return its path."""
    file = tmp_path / "rehearsal.yaml"
    file.write_text(yaml.safe_dump(CONTENT | change, sort_keys=False))
    return str(file)


def refused(capsys: pytest.CaptureFixture[str], config: str) -> tuple[str, str]:
    """Check exit code 2 and one line on stderr; return it, and what was printed before."""
    assert main(["prepare", config]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("deelbo-bench: ")
    assert len(error.splitlines()) == 1
    return error, out


def files_of(root: Path) -> list[Path]:
    """Return the files of the datasets without decoded images."""
    return sorted(path for path in root.rglob("*") if "deelbo-cache" not in path.parts)


def test_what_is_there_is_read_once(
    data_root: Path, resnet50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With everything available, `prepare` prints sizes and hashes, and needs no network."""
    before = files_of(data_root)
    config = written(tmp_path, data=str(data_root), backbones={"resnet50": {"weights": str(resnet50)}})
    assert main(["prepare", config]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    patterns = [
        r"CIFAR-10: 400 training and 60 test images, data [0-9a-f]{16}",
        r"Fashion-MNIST: 200 training and 30 test images, data [0-9a-f]{16}",
        r"Oxford-IIIT_Pet: 4\d\d training and 74 test images, data [0-9a-f]{16}",
        r"Flowers-102: 510 training and 102 test images, data [0-9a-f]{16}",
        r"resnet50: pretrained weights [0-9a-f]{16}",
    ]
    lines = out.splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert files_of(data_root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rehearsal.yaml"]
    assert main(["prepare", config]) == 0
    assert capsys.readouterr().out == out


def test_the_embedded_benchmark_needs_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits preset needs no download."""
    monkeypatch.setenv("DEELBO_CACHE", str(cache))
    assert main(["prepare", "digits"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mnist-digits: 4,000 training and 1,000 test images, data ")
    assert second.startswith("digits-resnet: pretrained weights ")


def test_a_missing_file_of_weights(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file of weights is one line, after the datasets."""
    config = written(tmp_path, data=str(data_root), backbones={"resnet50": {"weights": "mine/weights.pt"}})
    error, out = refused(capsys, config)
    assert "backbones.resnet50: " in error
    assert "mine/weights.pt" in error
    assert error.endswith("; the datasets are ready\n")
    assert out.count("training and") == 4


def test_a_missing_posterior(
    data_root: Path, resnet50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file of PTYL's prior is one line, after the datasets."""
    settings = {"weights": str(resnet50), "ptyl": "swag.safetensors"}
    config = written(tmp_path, data=str(data_root), backbones={"resnet50": settings}, priors=["l2-sp", "ptyl"])
    error, _ = refused(capsys, config)
    assert "swag.safetensors" in error
    assert error.endswith("; the datasets are ready\n")


def test_a_missing_dataset_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With verify_data: false a missing dataset is not downloaded, but reported with its folder."""
    error, out = refused(capsys, written(tmp_path, data=str(tmp_path / "mine")))
    assert "CIFAR-10" in error
    assert str(tmp_path / "mine") in error
    assert out == ""
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("dataset", "n"), [("CIFAR-10", 100), ("Fashion-MNIST", 100), ("Oxford-IIIT_Pet", 370), ("Flowers-102", 510)]
)
def test_a_dataset_without_a_network(dataset: str, n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network, a missing dataset is one line that says what to do."""
    config = written(tmp_path, datasets={dataset: [n]}, data=str(tmp_path / "data"), verify_data=True)
    error, _ = refused(capsys, config)
    assert f"{dataset} could not be downloaded to {tmp_path / 'data'}" in error
    assert "network" in error


def test_weights_without_a_network(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network, missing ImageNet weights are one line, after the datasets."""
    error, out = refused(capsys, written(tmp_path, data=str(data_root)))
    assert "resnet50" in error
    assert "could not be downloaded" in error
    assert "set `weights` to a local file" in error
    assert out.count("training and") == 4
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_what_cannot_run_is_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid configuration is refused before anything is downloaded."""
    config = written(tmp_path, datasets={"CIFAR-10": [105]}, verify_data=True)
    error, out = refused(capsys, config)
    assert "n = 105" in error
    assert out == ""
    assert not (tmp_path / "cache").exists()


def test_run_does_not_fetch(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` never downloads: missing datasets or weights are one line that names `prepare`."""
    for change in ({"data": str(tmp_path / "data"), "verify_data": True}, {"data": str(data_root)}):
        settings = ["--set", "resources.gpus_per_trial=0", "--storage", "storage"]  # a GPU would be missing first
        assert main(["run", written(tmp_path, **change), *settings]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "deelbo-bench prepare" in error
    assert not Path("storage").exists()
    assert not Path("torch").exists()


def test_a_text_network_that_cannot_be_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name of Hugging Face's that is not in the cache is asked for, and one line says that there is no network."""
    (tmp_path / "news.csv").write_text("body,class\n" + "x,a\ny,b\n" * 20)
    texts = {"news": {"csv": "news.csv", "text": "body", "label": "class", "n": [20]}}
    config = written(tmp_path, datasets=texts, backbones={"bert": {"model": "transformers:no/bert"}}, training={})
    error, out = refused(capsys, config)
    assert "bert: the tokenizer of no/bert cannot be read, which is not a folder here, perhaps because" in out
    assert "no/bert could not be downloaded from Hugging Face" in error
    assert "try again with a network, or give the folder of a model" in error


def test_the_preset_of_texts_names_the_file_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan news4` says in one line which file it needs; with it, it needs neither torch nor the network's files."""
    assert main(["plan", "news4"]) == 2
    assert f"news4: there is no {tmp_path}/news4.csv: correct the path" in capsys.readouterr().err
    write_news4(tmp_path)
    code = "import sys; from bench.cli.main import main; sys.exit(main(['plan', 'news4']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for n in ("400", "4000", "40000", "120000"):
        assert f"news4, N = {n}" in done.stdout
