"""What the commands check, and what `plan` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.commands import check, check_start, claim, plan
from bench.config import Benchmark, ConfigError, load_benchmark, parse_benchmark, preset_names
from bench.records import RecordError, RecordStore


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_run(name: str) -> None:
    """Dataset, backbone, head and sizes of every preset exist and fit together."""
    check(load_benchmark(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": [100, 4010]}, ["n = 4010", "pool of 4000", "n <= 4000"]),
        ({"n": [105]}, ["n = 105", "multiple of the 10 classes", "try 100"]),
        ({"n": [20]}, ["n = 20", "n >= 50"]),
        ({"dataset": "imagenet"}, ["dataset = 'imagenet'", "mnist-digits"]),
        ({"backbone": "resnet5000"}, ["backbone = 'resnet5000'", "digits-resnet"]),
        ({"head": "nose"}, ["'nose'", "fc"]),
        ({"head": "conv1"}, ["'conv1'", "Linear"]),
        ({"resources": {"gpus_per_trial": 2}}, ["gpus_per_trial = 2", "1 at most"]),
    ],
)
def test_what_does_not_fit_is_named(content: dict[str, Any], change: dict[str, Any], words: list[str]) -> None:
    """What the types cannot say is refused in one line: what came, what was expected."""
    with pytest.raises(ConfigError) as caught:
        check(parse_benchmark(content | change, "x"))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def test_the_whole_pool_may_be_used(content: dict[str, Any]) -> None:
    """N equal to the pool is accepted, and so is the head that the network has."""
    check(parse_benchmark(content | {"n": [50, 4000], "head": "fc"}, "x"))


def test_a_storage_is_claimed_once(tiny: Benchmark, tmp_path: Path) -> None:
    """A new storage becomes the benchmark's; claiming it again keeps it so."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    first = (tmp_path / "a" / "benchmark.json").read_bytes()
    claim(store, tiny)
    assert (tmp_path / "a" / "benchmark.json").read_bytes() == first
    content = store.read_benchmark()
    assert content is not None
    assert parse_benchmark(content, "x") == tiny


def test_a_benchmark_may_be_extended(tiny: Benchmark, tmp_path: Path) -> None:
    """More seeds, sizes, priors and other resources keep the storage, which then has the new configuration."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    more = tiny.model_copy(
        update={"seeds": (1001, 7), "n": (100, 1000), "priors": ("l2-sp", "ptyl"), "max_failures": 0}
    )
    claim(store, more)
    content = store.read_benchmark()
    assert content is not None
    assert content["seeds"] == [1001, 7]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"name": "other"}, "name was 'tiny' and is now 'other'"), ({"head": "fc"}, "head was None and is now 'fc'")],
)
def test_another_benchmark_is_kept_out(tiny: Benchmark, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """A storage that holds another benchmark is refused with what differs, and stays as it was."""
    store = RecordStore(str(tmp_path / "a"))
    claim(store, tiny)
    first = (tmp_path / "a" / "benchmark.json").read_bytes()
    with pytest.raises(RecordError, match=words):
        claim(store, tiny.model_copy(update=change))
    assert (tmp_path / "a" / "benchmark.json").read_bytes() == first


def test_plan_counts_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    """The plan of the quickstart: 3 seeds of 48, 4 and 4 trials, 168 in all; nothing runs."""
    assert plan("quickstart", None) == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
    counts = {row[2]: row[4] for row in rows}
    assert counts == {"MAP + GS": "144", "DE ELBo": "12", "ELBo": "12", "": "168"}


def test_plan_gives_hours(capsys: pytest.CaptureFixture[str]) -> None:
    """With the seconds of a step the plan has hours: 168 trials x 200 steps x 1.5 s = 14 h."""
    assert plan("quickstart", 1.5) == 0
    assert "14.00" in capsys.readouterr().out
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="--seconds-per-step must be a positive number"):
            plan("quickstart", bad)


def test_other_pretrained_weights_are_refused(tiny: Benchmark, play: Any, fake: Any, tmp_path: Path) -> None:
    """A storage whose trials started from other pretrained weights is not continued; records without a word are."""
    store, (one, other, *_) = RecordStore(str(tmp_path / "s")), [record.spec for record in play(tiny)]
    store.write(fake(one), [])
    check_start(store, "abc")
    store.write(fake(other, versions={"pretrained": "abc"}), [])
    check_start(store, "abc")
    with pytest.raises(RecordError, match="pretrained weights abc, here they are def"):
        check_start(store, "def")
