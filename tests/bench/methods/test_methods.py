"""What each method asks for, and what it makes of the answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark, parse_benchmark
from bench.methods import METHODS
from bench.methods.base import Method
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
PAPER = {"name": "a", "dataset": "mnist-digits", "backbone": "digits-resnet", "n": [100], "seeds": [1001]}


def paper(prior: str, methods: dict[str, Any]) -> Benchmark:
    """One cell with the default grids."""
    return parse_benchmark(PAPER | {"priors": [prior], "methods": methods}, "x")


def ask_all(method: Method) -> list[TrialSpec]:
    """Everything that may start now."""
    asked = []
    while (spec := method.ask()) is not None:
        asked.append(spec)
    return asked


def with_nll(spec: TrialSpec, fake: Fake, nll: float, status: str = "completed") -> TrialRecord:
    return fake(spec, status, metrics={"val_nll": nll})


@pytest.mark.parametrize(("prior", "size"), [("l2-zero", 24), ("l2-sp", 24), ("ptyl", 240)])
def test_grid_search_tunes_then_retrains_the_best(prior: str, size: int, fake: Fake) -> None:
    """Of 24 configurations (PTYL: 240) exactly that with the lowest validation NLL is trained again, on all N."""
    (method,) = make_methods(paper(prior, {"map-gs": {}}))
    tuning = ask_all(method)
    assert len({spec.key for spec in tuning}) == len(tuning) == size
    assert {spec.stage for spec in tuning} == {"tune"}
    winner = tuning[size // 3]
    for spec in tuning:
        assert method.ask() is None
        method.tell(with_nll(spec, fake, 0.5 if spec == winner else 1.0))
    assert ask_all(method) == [replace(winner, stage="retrain")]


def test_strengths_are_tied_but_for_ptyl() -> None:
    """With L2-zero and L2-SP alpha = beta; PTYL has lambda in alpha's place, and beta of its own."""
    tied = ask_all(make_methods(paper("l2-sp", {"map-gs": {}}))[0])
    assert all(spec.weight_decay == spec.head_weight_decay and spec.prior_scale is None for spec in tied)
    free = ask_all(make_methods(paper("ptyl", {"map-gs": {}}))[0])
    assert all(spec.weight_decay is None for spec in free)
    assert {spec.prior_scale for spec in free} == {10.0**i for i in range(10)}
    assert {spec.head_weight_decay for spec in free} == {0.01, 0.001, 0.0001, 1e-5, 1e-6, 0.0}


GRID = {"learning_rates": [0.1, 0.01, 0.001, 0.0001], "weight_decays": [0.01, 0.001, 0.0001, 1e-5, 1e-6, 0.0]}


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp"])
def test_an_untied_grid_has_alpha_and_beta_apart(prior: str) -> None:
    """Untied, the grid is every learning rate with every alpha and every beta: 4 x 6 x 6 = 144, each once."""
    asked = ask_all(make_methods(paper(prior, {"map-gs": {"untied": [prior]}}))[0])
    points = [(spec.learning_rate, spec.weight_decay, spec.head_weight_decay) for spec in asked]
    rates, decays = GRID["learning_rates"], GRID["weight_decays"]
    assert sorted(points) == sorted((rate, alpha, beta) for rate in rates for alpha in decays for beta in decays)
    assert len({spec.key for spec in asked}) == len(asked) == 144
    assert {spec.prior_scale for spec in asked} == {None}


def test_only_the_untied_prior_is_untied() -> None:
    """A prior that ``untied`` does not name keeps alpha = beta, and PTYL's grid is the same either way."""
    settings = {"map-gs": {"untied": ["l2-sp"]}}
    tied = ask_all(make_methods(paper("l2-zero", settings))[0])
    assert len(tied) == 24
    assert all(spec.weight_decay == spec.head_weight_decay for spec in tied)
    assert ask_all(make_methods(paper("ptyl", settings))[0]) == ask_all(make_methods(paper("ptyl", {"map-gs": {}}))[0])


def test_a_tied_grid_is_part_of_the_untied() -> None:
    """The tied points of an untied grid are the trials of the tied one: a storage that has them runs the others."""
    tied, untied = (
        {spec.key for spec in ask_all(make_methods(paper("l2-sp", {"map-gs": settings}))[0])}
        for settings in ({}, {"untied": ["l2-sp"]})
    )
    assert len(tied & untied) == 24


def test_an_untied_grid_retrains_its_best(fake: Fake) -> None:
    """Of 144 configurations the best is trained again, with its own alpha and its own beta."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {"untied": ["l2-sp"]}}))
    tuning = ask_all(method)
    winner = next(spec for spec in tuning if (spec.weight_decay, spec.head_weight_decay) == (0.0, 0.01))
    for spec in tuning:
        method.tell(with_nll(spec, fake, 0.5 if spec == winner else 1.0))
    assert ask_all(method) == [replace(winner, stage="retrain")]


@pytest.mark.parametrize(
    ("prior", "methods", "expected"),
    [
        ("l2-sp", {"map-gs": {}}, {"tune": 24, "retrain": 1}),
        ("l2-sp", {"map-gs": {"retrain": "all"}}, {"tune": 24, "retrain": 24}),
        ("l2-sp", {"map-gs": {"untied": ["l2-sp"]}}, {"tune": 144, "retrain": 1}),
        ("l2-sp", {"map-gs": {"untied": ["l2-sp"], "retrain": {"l2-sp": "all"}}}, {"tune": 144, "retrain": 144}),
        ("ptyl", {"map-gs": {"retrain": {"l2-sp": "all"}}}, {"tune": 240, "retrain": 1}),
        ("ptyl", {"de-elbo": {}}, {"run": 4}),
        ("l2-zero", {"elbo": {"learning_rates": [0.1]}}, {"run": 1}),
    ],
)
def test_stages_are_counted_beforehand(
    prior: str, methods: dict[str, Any], expected: dict[str, int], play: Any
) -> None:
    """A method says how many trials of each stage it will take, before any is asked for and after; so many come."""
    benchmark = paper(prior, methods)
    (method,) = make_methods(benchmark)
    assert method.stages() == expected
    assert method.count() == sum(expected.values())
    assert Counter(record.spec.stage for record in play(benchmark)) == expected
    ask_all(method)
    assert method.stages() == expected


def test_training_settings_reach_every_trial() -> None:
    """Precision, memory layout, compilation and image size of the configuration are those of its trials; so is the head
    of the trial's backbone."""
    training = {"precision": "bf16", "channels_last": True, "compile": True, "image_size": 64, "steps": 7}
    backbones = {"resnet50": {"head": "fc"}, "vit_b_16": {}}
    content = {"name": "a", "datasets": {"CIFAR-10": [100], "Oxford-IIIT_Pet": [370]}, "backbones": backbones}
    content |= {"priors": ["l2-sp"], "seeds": [1], "methods": {"map-gs": {}, "de-elbo": {}}, "training": training}
    specs = [spec for method in make_methods(parse_benchmark(content, "x")) for spec in ask_all(method)]
    assert {tuple(getattr(spec, name) for name in training) for spec in specs} == {tuple(training.values())}
    assert {(spec.backbone, spec.head) for spec in specs} == {("resnet50", "fc"), ("vit_b_16", None)}
    assert {(spec.dataset, spec.n) for spec in specs} == {("CIFAR-10", 100), ("Oxford-IIIT_Pet", 370)}
    assert len({spec.key for spec in specs}) == len(specs) == 4 * (24 + 4)


def test_retrain_all_asks_for_everything_at_once() -> None:
    """With ``retrain: all`` every configuration is trained again, and none waits for the tuning runs."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {"retrain": "all"}}))
    asked = ask_all(method)
    tuned = {spec for spec in asked if spec.stage == "tune"}
    assert {spec for spec in asked if spec.stage == "retrain"} == {replace(spec, stage="retrain") for spec in tuned}
    assert len(asked) == 48


def test_retrain_may_differ_by_prior() -> None:
    """``retrain`` as a mapping says it for each prior; a prior it does not name is retrained at its best."""
    settings = {"map-gs": {"retrain": {"l2-sp": "all"}}}
    assert make_methods(paper("l2-sp", settings))[0].count() == 48
    assert make_methods(paper("l2-zero", settings))[0].count() == 25


@pytest.mark.parametrize("order", range(5))
def test_the_order_of_answers_does_not_matter(order: int, fake: Fake) -> None:
    """Told in any order, ties included, grid search chooses the same configuration."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    tuning = ask_all(method)
    records = [with_nll(spec, fake, [2.0, 1.0, 1.0, 3.0][i % 4]) for i, spec in enumerate(tuning)]
    random.Random(order).shuffle(records)  # noqa: S311
    for record in records:
        method.tell(record)
    tied = [spec for i, spec in enumerate(tuning) if i % 4 in (1, 2)]
    assert ask_all(method) == [replace(min(tied, key=lambda spec: spec.key), stage="retrain")]


@pytest.mark.parametrize("nll", [float("nan"), float("inf")])
def test_a_diverged_run_never_wins(nll: float, fake: Fake) -> None:
    """A run whose validation NLL is not finite loses against any finite one."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    tuning = ask_all(method)
    for spec in tuning:
        method.tell(with_nll(spec, fake, 1e9) if spec == tuning[-1] else with_nll(spec, fake, nll, "diverged"))
    assert ask_all(method) == [replace(tuning[-1], stage="retrain")]


def test_a_diverged_run_with_a_finite_number_never_wins(fake: Fake) -> None:
    """A run that diverged loses, even where its last look at the validation images gave a finite NLL."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    tuning = ask_all(method)
    for spec in tuning:
        method.tell(with_nll(spec, fake, 5.0) if spec == tuning[-1] else with_nll(spec, fake, 0.1, "diverged"))
    assert ask_all(method) == [replace(tuning[-1], stage="retrain")]


def test_where_all_diverge_one_is_retrained(fake: Fake) -> None:
    """A grid that diverged everywhere still has one configuration trained again: its result is a result."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    for spec in ask_all(method):
        method.tell(fake(spec, "diverged"))
    assert len(ask_all(method)) == 1


def test_a_failed_run_never_wins(fake: Fake) -> None:
    """A run that failed loses against one that diverged; where all failed nothing is trained again."""
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    tuning = ask_all(method)
    for spec in tuning:
        method.tell(fake(spec, "diverged" if spec == tuning[7] else "failed"))
    assert ask_all(method) == [replace(tuning[7], stage="retrain")]
    (method,) = make_methods(paper("l2-sp", {"map-gs": {}}))
    for spec in ask_all(method):
        method.tell(fake(spec, "failed"))
    assert ask_all(method) == []


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp", "ptyl"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [(method.name, {}) for method in METHODS if method.name != "bo"]
    + [("map-gs", {"retrain": "all"}), ("bo", {"sampler": "tpe", "trials": 12, "lambda": [1, 1e9]})],
)
def test_count_is_what_is_asked(prior: str, method: str, settings: dict[str, Any], fake: Fake) -> None:
    """A method knows beforehand how many trials it will ask for, or, where results decide, the most; then its count
    comes down to what it asked for."""
    (made,) = make_methods(paper(prior, {method: settings}))
    before, asked = made.count(), 0
    assert before <= made.settings.max_trials(prior)
    while (spec := made.ask()) is not None:
        asked += 1
        learned = {f"mean_weight_decay_{group}": 1e-3 for group in ("backbone", "head")}
        made.tell(fake(spec, state=learned))
    assert asked == made.count() <= before
    assert made.adaptive or asked == before


def test_the_elbos_differ_in_kappa() -> None:
    """DE ELBo leaves kappa to the code (D/N), ELBo sets it to 1; both are single runs on all N."""
    de_elbo, elbo = make_methods(paper("l2-sp", {"de-elbo": {}, "elbo": {}}))
    assert [(spec.stage, spec.learning_rate, spec.kappa) for spec in ask_all(de_elbo)] == [
        ("run", rate, None) for rate in (0.1, 0.01, 0.001, 0.0001)
    ]
    assert {(spec.stage, spec.kappa) for spec in ask_all(elbo)} == {("run", 1.0)}


def test_kappa_can_be_set() -> None:
    """A number given for kappa reaches every run of the DE ELBo."""
    (method,) = make_methods(paper("l2-sp", {"de-elbo": {"kappa": 12}}))
    assert {spec.kappa for spec in ask_all(method)} == {12.0}


def test_every_cell_has_every_method() -> None:
    """The full table has each of its methods in each of its 3 x 2 x 3 cells, and no two trials share a key."""
    benchmark = load_benchmark("digits", ["methods.bo.sampler=tpe"])
    methods = make_methods(benchmark)
    entries = sum(entry.runs_on(prior) for entry in benchmark.methods.values() for prior in benchmark.priors)
    assert len(methods) == len({(method.name, method.cell) for method in methods}) == entries * 2 * 3
    assert entries == 3 * len(benchmark.methods) - 2  # Laplace and a variance for each layer do not fit PTYL
    keys = [spec.key for method in methods for spec in ask_all(method)]
    assert len(keys) == len(set(keys))
