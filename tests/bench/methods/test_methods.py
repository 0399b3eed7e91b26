"""The trials that each method asks for, and grid search's choice among their results."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark, parse_benchmark
from bench.methods import METHODS
from bench.methods.grid_search import MAPGridSearch
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.method_trials import FAILED, drive, judged, make, waiting

PAPER = {"name": "a", "dataset": "mnist-digits", "backbone": "digits-resnet", "n": [100], "seeds": [1001]}
NAN, INF = float("nan"), float("inf")
RATES, DECAYS = (0.1, 0.01, 0.001, 0.0001), (0.01, 0.001, 0.0001, 1e-5, 1e-6, 0.0)


def one_cell(prior: str, methods: dict[str, Any]) -> Benchmark:
    """A benchmark of one cell with the default grids."""
    return parse_benchmark(PAPER | {"priors": [prior], "methods": methods}, "x")


def grid(prior: str, **settings: Any) -> list[TrialSpec]:
    """The tuning trials of grid search."""
    return waiting(make(MAPGridSearch, prior, **settings))


@pytest.mark.parametrize(
    ("prior", "size", "untied"), [("l2-zero", 24, []), ("l2-sp", 24, []), ("ptyl", 240, []), ("l2-sp", 144, ["l2-sp"])]
)
def test_grid_search_tunes_then_retrains_the_best(prior: str, size: int, untied: list[str]) -> None:
    """Exactly the configuration with the lowest validation NLL is retrained, once all are tuned."""
    method = make(MAPGridSearch, prior, untied=untied)
    tuning = waiting(method)
    assert len({spec.key for spec in tuning}) == len(tuning) == size
    assert {spec.stage for spec in tuning} == {"tune"}
    for i, spec in enumerate(tuning):
        assert method.ask() is None
        method.tell(judged(spec, 0.5 if i == size // 3 else 1.0))
    assert waiting(method) == [replace(tuning[size // 3], stage="retrain")]


def test_strengths_are_tied_but_for_ptyl() -> None:
    """With L2-zero and L2-SP alpha = beta; PTYL has lambda in place of alpha, and its own beta."""
    assert all(spec.weight_decay == spec.head_weight_decay and spec.prior_scale is None for spec in grid("l2-sp"))
    ptyl = grid("ptyl")
    assert {spec.weight_decay for spec in ptyl} == {None}
    assert {spec.prior_scale for spec in ptyl} == {10.0**i for i in range(10)}
    assert {spec.head_weight_decay for spec in ptyl} == set(DECAYS)


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp"])
def test_an_untied_grid_has_alpha_and_beta_apart(prior: str) -> None:
    """An untied grid is every learning rate, alpha and beta, 4 x 6 x 6, and contains the tied grid."""
    specs = grid(prior, untied=[prior])
    points = [(spec.learning_rate, spec.weight_decay, spec.head_weight_decay) for spec in specs]
    assert sorted(points) == sorted((rate, alpha, beta) for rate in RATES for alpha in DECAYS for beta in DECAYS)
    assert len({spec.key for spec in specs}) == len(specs) == 144
    assert {spec.prior_scale for spec in specs} == {None}
    assert {spec.key for spec in grid(prior)} < {spec.key for spec in specs}


@pytest.mark.parametrize("prior", ["l2-zero", "ptyl"])
def test_other_priors_stay_tied(prior: str) -> None:
    """``untied`` does not change the grid of a prior that it does not name."""
    assert grid(prior, untied=["l2-sp"]) == grid(prior)


@pytest.mark.parametrize(
    ("prior", "methods", "expected"),
    [
        ("l2-sp", {"map-gs": {}}, {"tune": 24, "retrain": 1}),
        ("l2-sp", {"map-gs": {"retrain": "all"}}, {"tune": 24, "retrain": 24}),
        ("l2-sp", {"map-gs": {"untied": ["l2-sp"]}}, {"tune": 144, "retrain": 1}),
        ("l2-sp", {"map-gs": {"untied": ["l2-sp"], "retrain": {"l2-sp": "all"}}}, {"tune": 144, "retrain": 144}),
        ("l2-zero", {"map-gs": {"retrain": {"l2-sp": "all"}}}, {"tune": 24, "retrain": 1}),
        ("ptyl", {"map-gs": {"retrain": {"l2-sp": "all"}}}, {"tune": 240, "retrain": 1}),
        ("ptyl", {"de-elbo": {}}, {"run": 4}),
        ("l2-zero", {"elbo": {"learning_rates": [0.1]}}, {"run": 1}),
    ],
)
def test_stages_are_counted_beforehand(
    prior: str, methods: dict[str, Any], expected: dict[str, int], play: Any
) -> None:
    """A method that is not adaptive counts its trials of each stage before any has started."""
    benchmark = one_cell(prior, methods)
    (method,) = make_methods(benchmark)
    assert method.stages() == expected
    assert method.count() == sum(expected.values())
    assert Counter(record.spec.stage for record in play(benchmark)) == expected
    waiting(method)
    assert method.stages() == expected


def test_training_settings_reach_every_trial() -> None:
    """Trials have the training settings of the configuration, and the head of their backbone."""
    training = {
        "precision": "bf16",
        "channels_last": True,
        "compile": True,
        "image_size": 64,
        "steps": 7,
        "batchnorm": "frozen",
        "train": "head",
    }
    backbones = {"resnet50": {"head": "fc"}, "vit_b_16": {}}
    content = {"name": "a", "datasets": {"CIFAR-10": [100], "Oxford-IIIT_Pet": [370]}, "backbones": backbones}
    content |= {"priors": ["l2-sp"], "seeds": [1], "methods": {"map-gs": {}, "de-elbo": {}}, "training": training}
    specs = [spec for method in make_methods(parse_benchmark(content, "x")) for spec in waiting(method)]
    assert {tuple(getattr(spec, name) for name in training) for spec in specs} == {tuple(training.values())}
    assert {(spec.backbone, spec.head) for spec in specs} == {("resnet50", "fc"), ("vit_b_16", None)}
    assert {(spec.dataset, spec.n) for spec in specs} == {("CIFAR-10", 100), ("Oxford-IIIT_Pet", 370)}
    assert len({spec.key for spec in specs}) == len(specs) == 4 * (24 + 4)


def test_retrain_all_asks_for_everything_at_once() -> None:
    """With ``retrain: all`` every configuration is retrained, without waiting for tuning runs."""
    specs = grid("l2-sp", retrain="all")
    tuned = {spec for spec in specs if spec.stage == "tune"}
    assert {spec for spec in specs if spec.stage == "retrain"} == {replace(spec, stage="retrain") for spec in tuned}
    assert len(specs) == 48


@pytest.mark.parametrize("order", range(5))
def test_the_order_of_results_does_not_matter(order: int) -> None:
    """Grid search chooses the same configuration whatever the order of results; ties go to the lower key."""
    tuning = grid("l2-sp")
    values = {spec.key: [2.0, 1.0, 1.0, 3.0][i % 4] for i, spec in enumerate(tuning)}
    records = drive(make(MAPGridSearch), lambda spec: values.get(spec.key, 0.0), order)
    best = min((spec for spec in tuning if values[spec.key] == 1.0), key=lambda spec: spec.key)
    assert [record.spec for record in records if record.spec.stage == "retrain"] == [replace(best, stage="retrain")]


def with_status(spec: TrialSpec, status: str, nll: float) -> TrialRecord:
    return judged(spec, FAILED) if status == "failed" else replace(judged(spec, nll), status=status)


@pytest.mark.parametrize(
    ("best", "others"),
    [
        (("completed", 1e9), ("diverged", NAN)),
        (("completed", 1e9), ("diverged", INF)),
        (("completed", 5.0), ("diverged", 0.1)),
        (("diverged", NAN), ("failed", NAN)),
    ],
)
def test_completed_runs_rank_before_diverged_and_failed(best: tuple[str, float], others: tuple[str, float]) -> None:
    """A completed run is preferred to a diverged one, whatever its NLL, and a diverged one to a failed one."""
    method = make(MAPGridSearch)
    tuning = waiting(method)
    for i, spec in enumerate(tuning):
        method.tell(with_status(spec, *(best if i == 7 else others)))
    assert waiting(method) == [replace(tuning[7], stage="retrain")]


@pytest.mark.parametrize(("value", "count"), [(NAN, 1), (FAILED, 0)])
def test_without_a_completed_run(value: float | None, count: int) -> None:
    """If all runs diverge one is retrained, as its result is a result; if all fail none is."""
    method = make(MAPGridSearch)
    for spec in waiting(method):
        method.tell(judged(spec, value))
    assert len(waiting(method)) == count


@pytest.mark.parametrize("prior", ["l2-zero", "l2-sp", "ptyl"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [(method.name, {}) for method in METHODS if method.name != "bo"]
    + [("map-gs", {"retrain": "all"}), ("bo", {"sampler": "tpe", "trials": 12, "lambda": [1, 1e9]})],
)
def test_count_is_the_number_of_trials(prior: str, method: str, settings: dict[str, Any], fake: Any) -> None:
    """The count of a method is an upper bound before its trials, exact unless it is adaptive, and exact after them."""
    (made,) = make_methods(one_cell(prior, {method: settings}))
    before, asked = made.count(), 0
    state = {f"{prefix}weight_decay_{part}": 1e-3 for prefix in ("", "mean_") for part in ("backbone", "head")}
    state["best_share"] = 0.5
    assert before <= made.settings.max_trials(prior)
    while (spec := made.ask()) is not None:
        asked += 1
        made.tell(fake(spec, state=state))
    assert asked == made.count() <= before
    assert made.adaptive or asked == before


@pytest.mark.parametrize(
    ("method", "settings", "kappa"), [("de-elbo", {}, None), ("de-elbo", {"kappa": 12}, 12.0), ("elbo", {}, 1.0)]
)
def test_the_elbos_differ_in_kappa(method: str, settings: dict[str, Any], kappa: float | None) -> None:
    """ELBo and DE ELBo are one run per learning rate on all N; kappa is 1, or as given, or None for D/N."""
    (made,) = make_methods(one_cell("l2-sp", {method: settings}))
    assert [(spec.stage, spec.learning_rate, spec.kappa) for spec in waiting(made)] == [
        ("run", rate, kappa) for rate in RATES
    ]


def test_every_cell_has_every_method() -> None:
    """The preset `digits` has each of its methods in each of its 3 x 2 x 3 cells, and no two trials share a key."""
    benchmark = load_benchmark("digits", ["methods.bo.sampler=tpe"])
    methods = make_methods(benchmark)
    entries = sum(entry.runs_on(prior) for entry in benchmark.methods.values() for prior in benchmark.priors)
    assert len(methods) == len({(method.name, method.cell) for method in methods}) == entries * 2 * 3
    not_for_ptyl = ("laplace", "laplace-gram", "early-stopping", "early-stopping-constant", "de-elbo-layers")
    assert entries == 3 * len(benchmark.methods) - len(not_for_ptyl)
    keys = [spec.key for method in methods for spec in waiting(method)]
    assert len(keys) == len(set(keys))
