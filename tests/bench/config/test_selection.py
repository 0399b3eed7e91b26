"""``--only`` runs a subset of a benchmark; a later call without it runs the rest."""

from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.config.selection import filter_methods
from bench.exceptions import ConfigError
from bench.methods.base import Method
from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord

CONTENT = {
    "name": "many",
    "datasets": {"CIFAR-10": [100, 1000], "Oxford-IIIT_Pet": [370]},
    "backbones": ["resnet50", "vit_b_16"],
    "priors": ["l2-zero", "l2-sp"],
    "seeds": [1, 2],
    "methods": {
        "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.1, 0]},
        "de-elbo": {"learning_rates": [0.1]},
        "elbo": {"learning_rates": [0.1]},
    },
}


@pytest.fixture
def many() -> Benchmark:
    """3 methods in each of 3 (dataset, N) x 2 backbones x 2 priors x 2 seeds."""
    return parse_benchmark(CONTENT, "x")


Competitor = tuple[str, str, str, str, int, int]


def names(methods: list[Method]) -> list[Competitor]:
    """Return each method as (method, dataset, backbone, prior, n, seed)."""
    cells = [(method.name, method.cell) for method in methods]
    return [(name, cell.dataset, cell.backbone, cell.prior, cell.n, cell.seed) for name, cell in cells]


EVERYTHING = [
    (method, dataset, backbone, prior, n, seed)
    for dataset, n in (("CIFAR-10", 100), ("CIFAR-10", 1000), ("Oxford-IIIT_Pet", 370))
    for backbone in ("resnet50", "vit_b_16")
    for prior in ("l2-zero", "l2-sp")
    for seed in (1, 2)
    for method in ("map-gs", "de-elbo", "elbo")
]


def test_without_it_everything_runs(many: Benchmark) -> None:
    """Without ``--only`` everything is selected, in order."""
    assert names(filter_methods(make_methods(many), None)) == EVERYTHING
    assert len(EVERYTHING) == 72


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ("method=de-elbo", lambda c: c[0] == "de-elbo"),
        ("dataset=CIFAR-10", lambda c: c[1] == "CIFAR-10"),
        ("backbone=vit_b_16", lambda c: c[2] == "vit_b_16"),
        ("prior=l2-sp", lambda c: c[3] == "l2-sp"),
        ("n=100", lambda c: c[4] == 100),
        ("seed=2", lambda c: c[5] == 2),
        ("n=100,n=370", lambda c: c[4] in (100, 370)),
        ("method=elbo,method=de-elbo", lambda c: c[0] in ("elbo", "de-elbo")),
        ("n=100,method=map-gs", lambda c: c[4] == 100 and c[0] == "map-gs"),
        ("n=100,seed=1,n=1000,prior=l2-zero", lambda c: c[4] in (100, 1000) and c[5] == 1 and c[3] == "l2-zero"),
        (" n = 100 , seed = 1 ", lambda c: c[4] == 100 and c[5] == 1),
        ("seed=1,seed=1", lambda c: c[5] == 1),
    ],
)
def test_a_subset_is_what_matches(many: Benchmark, only: str, kept: Any) -> None:
    """A key given twice allows either value, different keys must all match, and the order stays."""
    expected = [competitor for competitor in EVERYTHING if kept(competitor)]
    assert 0 < len(expected) < len(EVERYTHING)
    assert names(filter_methods(make_methods(many), only)) == expected


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("", ["--only takes KEY=VALUE", "''"]),
        ("n", ["--only takes KEY=VALUE", "'n'"]),
        ("n=", ["--only takes KEY=VALUE"]),
        ("n=100,", ["--only takes KEY=VALUE"]),
        ("n=100;seed=1", ["n=100;seed=1", "this benchmark has n 100, 1000, 370"]),
        ("stage=tune", ["--only stage=tune: no such key", "method, dataset, backbone, prior, n, seed"]),
        ("=100", ["no such key"]),
        ("n=101", ["--only n=101", "this benchmark has n 100, 1000, 370"]),
        ("n=0100", ["n 100, 1000, 370"]),
        ("prior=ptyl", ["--only prior=ptyl", "this benchmark has prior l2-zero, l2-sp"]),
        ("method=MAP + GS", ["this benchmark has method map-gs, de-elbo, elbo"]),
        ("dataset=CIFAR-10,n=370", ["--only dataset=CIFAR-10,n=370: nothing in this benchmark matches all of it"]),
    ],
)
def test_a_bad_subset_is_one_line(many: Benchmark, only: str, words: list[str]) -> None:
    """A bad form, an unknown key or value, or values that never occur together are refused in one line."""
    with pytest.raises(ConfigError) as caught:
        filter_methods(make_methods(many), only)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def run(benchmark: Benchmark, only: str | None, known: list[TrialRecord], fake: Any) -> list[TrialRecord]:
    """Return the records that a call with ``--only`` adds to the known ones."""
    race, made = TrialQueue(filter_methods(make_methods(benchmark), only), known), list[TrialRecord]()
    while (spec := race.ask()) is not None:
        made.append(fake(spec))
        race.tell(made[-1])
    assert race.finished
    assert race.num_completed == race.total
    return made


@pytest.mark.parametrize("only", ["method=map-gs", "n=100,prior=l2-sp", "dataset=Oxford-IIIT_Pet", "seed=2,n=1000"])
def test_a_later_call_runs_the_rest(many: Benchmark, only: str, fake: Any) -> None:
    """A later call without ``--only`` runs what is missing, and nothing twice."""
    everything = {record.key for record in run(many, None, [], fake)}
    first = run(many, only, [], fake)
    part = {(method.name, method.cell) for method in filter_methods(make_methods(many), only)}
    assert {(record.spec.method, record.spec.cell) for record in first} == part
    rest = run(many, None, first, fake)
    keys = [record.key for record in [*first, *rest]]
    assert len(keys) == len(set(keys))
    assert set(keys) == everything
    assert run(many, only, [*first, *rest], fake) == []
