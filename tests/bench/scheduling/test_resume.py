"""Resuming a benchmark: its own records are reused, damaged files are quarantined, other benchmarks are refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.exceptions import RecordError
from bench.scheduling.resume import check_same_inputs, check_settings, load_for_resume
from bench.storage.records import RecordStore
from deelbo.pretrained.embedded import Pretrained


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "a"))


def test_a_new_storage_fits(store: RecordStore, tiny: Benchmark) -> None:
    """A storage that does not exist yet is anybody's, and asking makes none."""
    check_settings(store, tiny)
    assert not store.exists()


def test_a_benchmark_may_be_extended(store: RecordStore, tiny: Benchmark, content: dict[str, Any]) -> None:
    """More seeds, sizes, priors, datasets and backbones, another head and other resources keep the storage."""
    store.write_benchmark(tiny.content())
    del content["dataset"], content["n"], content["backbone"]
    content |= {
        "datasets": {"CIFAR-10": [100], "mnist-digits": [100, 1000]},
        "backbones": {"resnet50": {"weights": "here.pt"}, "digits-resnet": {"head": "fc"}},
        "priors": ["l2-sp", "ptyl"],
        "seeds": [1001, 7],
        "max_failures": 0,
        "resources": {"slots": 1, "gpus_per_trial": 0},
        "timed": False,
        "checkpoint_minutes": 5,
    }
    check_settings(store, parse_benchmark(content, "x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resources": {"cpus_per_trial": 2}}, "(resources.cpus_per_trial was 1 and is now 2)"),
        (
            {"name": "b", "training": {"steps": 8, "batch_size": 50, "image_size": 16}},
            "(name was 'tiny' and is now 'b'; training.steps was 4 and is now 8; "
            "training.image_size was None and is now 16)",
        ),
    ],
)
def test_another_benchmark_is_kept_out(
    store: RecordStore, tiny: Benchmark, content: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    """A storage that holds another benchmark, or one trained otherwise, is refused with all that differs."""
    store.write_benchmark(tiny.content())
    with pytest.raises(RecordError, match="change that back, or take another --storage") as refused:
        check_settings(store, parse_benchmark(content | change, "x"))
    assert words in str(refused.value)


def swag(factor: float) -> Pretrained:
    """A network of one weight with SWAG's posterior."""
    return Pretrained({"w": torch.ones(1)}, {"w": torch.ones(1)}, torch.ones(1), torch.full((1, 1), factor))


ONE, OTHER, SWAG, NEW_SWAG = Pretrained({"w": torch.ones(1)}), Pretrained({"w": torch.zeros(1)}), swag(1.0), swag(2.0)


@pytest.mark.parametrize(
    ("prior", "recorded", "local", "refused"),
    [
        ("l2-sp", None, {"digits-resnet": OTHER}, False),
        ("l2-sp", ONE, {"digits-resnet": ONE}, False),
        ("l2-sp", ONE, {"digits-resnet": OTHER}, True),
        ("l2-sp", ONE, {"resnet50": OTHER}, False),  # its own backbone does not run now
        ("l2-sp", ONE, {"resnet50": ONE, "digits-resnet": OTHER}, True),
        ("l2-sp", SWAG, {"digits-resnet": NEW_SWAG}, False),  # it did not start from SWAG's posterior
        ("ptyl", SWAG, {"digits-resnet": SWAG}, False),
        ("ptyl", SWAG, {"digits-resnet": NEW_SWAG}, True),
        ("ptyl", SWAG, {"digits-resnet": ONE}, False),  # SWAG's files are not read, as no trial needs them now
    ],
)
def test_other_pretrained_weights_are_refused(
    store: RecordStore, tiny: Benchmark, fake: Any, prior: str, recorded: Any, local: Any, refused: bool
) -> None:
    """A trial is compared with the weights of its own backbone from which its prior starts, if both are known."""
    spec = make_methods(tiny)[0].ask()
    assert spec is not None
    versions = {} if recorded is None else {"pretrained": recorded.fingerprint_for(prior)}
    records = [fake(replace(spec, prior=prior), versions=versions)]
    if not refused:
        check_same_inputs(store, records, {}, local)
        return
    here = local["digits-resnet"].fingerprint_for(prior)
    words = f"pretrained weights {versions['pretrained']}, here they are {here}.*take another --storage"
    with pytest.raises(RecordError, match=words):
        check_same_inputs(store, records, {}, local)


def test_other_images_are_refused(store: RecordStore, tiny: Benchmark, play: Any, fake: Any) -> None:
    """A trial that saw other images of its dataset is refused; one of a dataset that is not read, that does not say, or
    that failed, is not."""
    spec = play(tiny)[0].spec
    records = [fake(spec), fake(spec, versions={"data": "abc"}), fake(spec, "failed", versions={"data": "x"})]
    check_same_inputs(store, records, {"mnist-digits": "abc"}, {})
    check_same_inputs(store, records, {"CIFAR-10": "def"}, {})
    with pytest.raises(RecordError, match="saw other data of mnist-digits: abc, here def"):
        check_same_inputs(store, records, {"mnist-digits": "def"}, {})


def test_valid_records_are_loaded(storage: RecordStore, tiny: Benchmark, play: Any) -> None:
    """If all files are valid every record is loaded, and nothing is printed or moved."""
    lines: list[str] = []
    records, quarantined = load_for_resume(storage, tiny, lines.append)
    assert {record.key for record in records} == {record.key for record in play(tiny)}
    assert quarantined == []
    assert lines == []
    assert not storage.exists("damaged")


@pytest.mark.parametrize("folder", ["records", "series"])
def test_damaged_files_are_quarantined(storage: RecordStore, tiny: Benchmark, folder: str) -> None:
    """A damaged record or series is named and moved, with the trial's other file; other trials are loaded."""
    victim, *others = sorted(record.key for record in storage.records())
    file = Path(storage.path(folder, f"{victim}.json"))
    file.write_bytes(file.read_bytes()[:-7])
    lines: list[str] = []
    records, quarantined = load_for_resume(storage, tiny, lines.append)
    assert [record.key for record in records] == others
    assert quarantined == [victim]
    (line,) = lines
    assert f"{folder}/{victim}.json is damaged" in line
    assert "its trial runs again" in line
    names = storage.names("damaged")
    assert len(names) == 2
    assert all(f"{victim}.json" in name for name in names)
    assert next(name for name in names if folder in name) in line
    assert storage.read(victim) is None
    assert storage.series(victim) == []


def test_a_record_under_another_name_is_quarantined(storage: RecordStore, tiny: Benchmark) -> None:
    """A record whose file is named for another trial is no record of either."""
    one, other, *_ = (record.key for record in storage.records())
    Path(storage.path("records", f"{other}.json")).write_bytes(
        Path(storage.path("records", f"{one}.json")).read_bytes()
    )
    lines: list[str] = []
    keys = [record.key for record in load_for_resume(storage, tiny, lines.append)[0]]
    assert one in keys
    assert other not in keys
    assert f"it holds the record of {one}" in lines[0]


def test_partial_files_are_removed(storage: RecordStore, tiny: Benchmark) -> None:
    """Temporary files of killed writers are removed."""
    part = Path(storage.path("records", "abc.json.0123.part"))
    part.write_text("{")
    load_for_resume(storage, tiny, lambda line: None)
    assert not part.exists()


@pytest.mark.parametrize("text", ["{", '{"nane": "tiny"}'])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_configuration_is_written_again(
    storage: RecordStore, tiny: Benchmark, text: str, finished: bool
) -> None:
    """A damaged benchmark.json is named and quarantined, and the records, if there are any, are reused with the
    configuration at hand; each time again."""
    if not finished:
        for folder in ("records", "series"):
            shutil.rmtree(storage.path(folder))
    Path(storage.path("benchmark.json")).write_text(text)
    lines: list[str] = []
    assert len(load_for_resume(storage, tiny, lines.append)[0]) == 9 * finished
    assert "benchmark.json" in lines[0]
    assert "moved to damaged/" in lines[0]
    assert not storage.exists("benchmark.json")
    assert len(load_for_resume(storage, tiny, lines.append)[0]) == 9 * finished
    assert len(lines) == 1


def test_a_checkpoint_goes_with_its_result(storage: RecordStore, tiny: Benchmark) -> None:
    """Checkpoints of trials that have a result are removed; others stay."""
    done = f"checkpoints/{next(storage.records()).key}.pt"
    for name in (done, "checkpoints/other.pt"):
        storage.write_file(name, b"x")
    load_for_resume(storage, tiny, print)
    assert storage.names("checkpoints") == ["checkpoints/other.pt"]


def test_records_without_a_configuration_are_loaded(storage: RecordStore, tiny: Benchmark) -> None:
    """Without benchmark.json the records, which name all that they depend on, still count."""
    storage.remove("benchmark.json")
    assert len(load_for_resume(storage, tiny, lambda line: None)[0]) == 9


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_folder_is_quarantined(storage: RecordStore, tiny: Benchmark, kind: str) -> None:
    """A named pipe, reading which would block, or a folder in a record's place is a damaged record."""
    victim = next(storage.records()).key
    path = Path(storage.path("records", f"{victim}.json"))
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    lines: list[str] = []
    assert load_for_resume(storage, tiny, lines.append)[1] == [victim]
    assert "is damaged" in lines[0]
    assert not path.exists()
