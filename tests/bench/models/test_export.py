"""`export`: which model it takes, and what it refuses."""

import errno
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.storage.models import model_keys
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo import load_model
from tests.helpers.tiny import CONTENT

Fake = Callable[..., TrialRecord]
Fill = Callable[..., RecordStore]


def reversed_test(fake: Fake, spec: TrialSpec) -> TrialRecord:
    """A record whose test accuracy is the better, the worse it is by the method's own criterion."""
    record = fake(spec)
    value = record.metrics.get("objective", record.metrics.get("val_nll", 0.0))
    return replace(record, metrics=record.metrics | ({"test_acc": value / 3} if spec.is_tested else {}))


@pytest.fixture
def filled(tmp_path: Path, fake: Fake, play: Any, fill: Fill, keep_model: Any) -> Callable[..., RecordStore]:
    """Make a storage in which a benchmark is finished and every tested trial has a model."""

    def make(**changes: Any) -> RecordStore:
        benchmark: Benchmark = parse_benchmark(deepcopy(CONTENT) | changes, "x")
        records = play(benchmark, lambda spec: reversed_test(fake, spec))
        store = fill(RecordStore(str(tmp_path / "storage")), benchmark, records)
        for record in records:
            if record.spec.is_tested:
                keep_model(store, record)
        return store

    return make


def export(store: RecordStore, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = main(["export", store.url, "--out", str(out), *options])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def refusal(store: RecordStore, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the one line with which it is refused; nothing is written."""
    before = sorted(out.parent.rglob("*"))
    assert main(["export", store.url, "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sorted(out.parent.rglob("*")) == before
    return error


def test_the_choice_is_never_by_test_accuracy(filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several methods the DE ELBo, of several seeds the least objective, whatever the test says."""
    store = filled(seeds=[1001, 2001, 3001])
    runs = [record for record in store.records() if record.spec.method == "de-elbo"]
    best = min(runs, key=lambda record: record.metrics["objective"])
    assert best.metrics["test_acc"] == min(record.metrics["test_acc"] for record in runs)
    code, out = export(store, tmp_path / "out", capsys)
    assert code == 0, out
    assert f"{best.spec.describe()}: objective {best.metrics['objective']:.4g}, by which it was chosen" in out
    assert f"test accuracy {best.metrics['test_acc']:.2%} (class-balanced), NLL {best.metrics['test_nll']:.4g}" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.safetensors"}
    assert load_model(tmp_path / "out").classes == tuple("0123456789")


def test_a_subset_is_chosen_by_only(filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method that is tuned is chosen by the validation NLL of the tuning trial."""
    store = filled(seeds=[1001, 2001])
    code, out = export(store, tmp_path / "out", capsys, "--only", "method=map-gs,seed=2001")
    assert code == 0, out
    tuned = [r for r in store.records() if r.spec.stage == "tune" and r.spec.seed == 2001]
    best = min(tuned, key=lambda record: record.metrics["val_nll"])
    assert f"{replace(best.spec, stage='retrain').describe()}: val_nll {best.metrics['val_nll']:.4g}" in out


AMBIGUOUS: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"n": [100, 200]}, "there are chosen models of n 100, 200: choose by --only, such as --only n=100"),
    "prior and size": (
        {"n": [100, 200], "priors": ["l2-sp", "l2-zero"]},
        "prior l2-sp, l2-zero; n 100, 200: choose by --only, such as --only prior=l2-sp,n=100",
    ),
    "method": (
        {"methods": {name: CONTENT["methods"][name] for name in ("map-gs", "elbo")}},
        "of method elbo, map-gs: choose by --only, such as --only method=elbo",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_choice_is_refused(
    changes: dict[str, Any], expected: str, filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with what there is, and how to choose."""
    assert expected in refusal(filled(**changes), tmp_path / "out", capsys)


def test_a_folder_that_is_not_empty_is_refused(filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty one is taken; a file is none."""
    store, out = filled(), tmp_path / "out"
    out.mkdir()
    assert export(store, out, capsys)[0] == 0
    assert "is not an empty folder: give another --out" in refusal(store, out, capsys)
    assert "is not an empty folder" in refusal(store, out / "model.json", capsys)


def test_a_full_disk(
    filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the folder, in which no part of a model stays."""
    store, out = filled(), tmp_path / "out"
    out.mkdir()

    def write(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    found = refusal(store, out, capsys)
    assert f"{out} cannot be written" in found
    assert "No space left on device): free space there, or give another --out" in found


def test_a_model_that_is_missing_or_damaged_is_named(
    filled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to do: where its record is deleted, `run` trains it again."""
    store, out = filled(), tmp_path / "out"
    (key,) = [path.parent.name for path in Path(store.url).glob("models/*/model.json") if _is_chosen(store, path)]
    weights = Path(store.path("models", key, "model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    line = refusal(store, out, capsys)
    assert f"models/{key}/model.safetensors is damaged" in line
    for name in store.names(f"models/{key}"):
        store.remove(name)
    line = refusal(store, out, capsys)
    assert "mnist-digits digits-resnet l2-sp n=100 seed=1001 de-elbo run lr" in line
    assert f"was not kept: delete records/{key}.json in {store.path()}, and `run` with --set keep=chosen" in line


def _is_chosen(store: RecordStore, path: Path) -> bool:
    runs = [record for record in store.records() if record.spec.method == "de-elbo"]
    return path.parent.name == min(runs, key=lambda record: record.metrics["objective"]).key


def test_an_unfinished_benchmark_has_no_choice(
    tmp_path: Path, tiny: Benchmark, fake: Fake, fill: Fill, play: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor has one whose choice diverged."""
    records = play(tiny)
    store = fill(RecordStore(str(tmp_path / "storage")), tiny, records[:1])
    assert "no method has chosen a model that can be tested, 8 trials are left" in refusal(
        store, tmp_path / "out", capsys
    )
    for record in records:
        store.write(fake(record.spec, "diverged"), [])
    assert "no method has chosen a model that can be tested" in refusal(store, tmp_path / "out", capsys)
    assert model_keys(store) == []
