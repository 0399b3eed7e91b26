"""Configurations that are read, and those that are refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import make_methods
from bench.config.loading import load_benchmark, parse_benchmark, preset_names
from bench.exceptions import ConfigError
from deelbo.limits import MIN_SIGMA

NAN, INF = float("nan"), float("inf")


def changed(content: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """Return the content with the key ``where`` set to ``value``; its parts are separated by slashes."""
    content = copy.deepcopy(content)
    *folders, last = where.split("/")
    inner = content
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return content


@pytest.mark.parametrize("name", ["digits", "followup", "news4", "poster", "quickstart", "transfer"])
def test_every_preset_is_read_back_equal(name: str) -> None:
    """A preset has its benchmark's name, and its content is read back from JSON as an equal benchmark."""
    benchmark = load_benchmark(name)
    assert name in preset_names()
    assert benchmark.name == name
    assert parse_benchmark(json.loads(json.dumps(benchmark.content(), allow_nan=False)), "x") == benchmark


def test_quickstart_is_what_was_promised() -> None:
    """The quickstart takes 24 tuning runs, 24 retrainings and twice 4 runs per seed."""
    benchmark = load_benchmark("quickstart")
    assert (benchmark.priors, benchmark.seeds) == (("l2-sp",), (1001, 2001, 3001))
    assert benchmark.datasets == {"mnist-digits": (100,)}
    specs: list[Any] = []
    for method in make_methods(benchmark):
        while (spec := method.ask()) is not None:
            specs.append(spec)
    asked = [(spec.method, spec.stage) for spec in specs if spec.seed == 1001]
    counts = {what: asked.count(what) for what in set(asked)}
    assert counts == {("map-gs", "tune"): 24, ("map-gs", "retrain"): 24, ("de-elbo", "run"): 4, ("elbo", "run"): 4}


def test_digits_and_transfer_go_beyond_the_published_grid() -> None:
    """Grids of `digits` and `transfer` have the published strengths and 0.1, at which BO's ranges end."""
    published = (0.01, 0.001, 0.0001, 0.00001, 0.000001, 0)
    methods = load_benchmark("digits").methods
    for grid in (methods["map-gs"], methods["random"], methods["asha"], load_benchmark("transfer").methods["map-gs"]):
        assert grid.weight_decays == (0.1, *published)
    assert methods["bo"].alpha == methods["bo"].beta == (1e-6, 0.1)
    sizes = {prior: methods["map-gs"].max_trials(prior) for prior in ("l2-zero", "l2-sp", "ptyl")}
    assert sizes == {"l2-zero": 2 * 4 * 7, "l2-sp": 2 * 4 * 7, "ptyl": 4 * 5 * 7 + 1}
    for name in ("quickstart", "poster"):
        assert load_benchmark(name).methods["map-gs"].weight_decays == published


def test_defaults_are_the_protocols() -> None:
    """The default grids and training settings are those of the papers."""
    methods = {"map-gs": {}, "de-elbo": None, "elbo": {}}
    content = {"name": "a", "dataset": "b", "backbone": "c", "priors": ["ptyl"], "n": [1], "seeds": [1]}
    benchmark = parse_benchmark(content | {"methods": methods}, "x")
    grid, ours, plain = (benchmark.methods[name] for name in methods)
    rates = (0.1, 0.01, 0.001, 0.0001)
    assert grid.learning_rates == ours.learning_rates == plain.learning_rates == rates
    assert grid.weight_decays == (0.01, 0.001, 0.0001, 0.00001, 0.000001, 0)
    assert grid.ptyl_lambdas == (1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
    assert grid.retrain_mode("ptyl") == "best"
    assert ours.kappa == "D/N"
    training = benchmark.training
    assert (training.steps, training.batch_size, training.momentum, training.clip_norm) == (6000, 128, 0.9, 1.0)
    assert (training.sigma, training.posterior_passes) == (1e-4, 10)


@pytest.mark.parametrize(
    ("backbones", "given", "expected"),
    [
        ({"backbone": "digits-resnet"}, {}, 0),
        ({"backbones": ["digits-resnet"]}, {"resources": {"slots": 2}}, 0),
        ({"backbone": "resnet50"}, {}, 1),
        ({"backbone": "resnet50"}, {"resources": {"slots": 2}}, 1),
        ({"backbone": "resnet50"}, {"resources": {"accelerator": "H100"}}, 1),
        ({"backbones": {"vit_b_16": {}, "digits-resnet": None}}, {"resources": {}}, 1),
        ({"backbone": "resnet50"}, {"resources": {"gpus_per_trial": 0}}, 0),
        ({"backbone": "resnet50"}, {"timed": False, "resources": {"gpus_per_trial": 0.5}}, 0.5),
        ({"backbone": "digits-resnet"}, {"resources": {"gpus_per_trial": 1}}, 1),
    ],
)
def test_a_trial_gets_a_whole_gpu_unless_its_network_needs_none(
    backbones: dict[str, Any], given: dict[str, Any], expected: float
) -> None:
    """A trial gets one GPU by default, and none if the embedded network is the only backbone."""
    rest = {"name": "a", "dataset": "b", "priors": ["l2-sp"], "n": [1], "seeds": [1], "methods": {"elbo": {}}}
    before = copy.deepcopy(content := rest | backbones | given)
    benchmark = parse_benchmark(content, "x")
    assert content == before
    kept = benchmark.content()["resources"]["gpus_per_trial"]
    assert (benchmark.resources.gpus_per_trial, kept) == (expected, expected)
    assert isinstance(kept, float)
    assert parse_benchmark(benchmark.content(), "x") == benchmark


def test_scientific_notation_of_yaml_1_1_is_a_number(tmp_path: Path) -> None:
    """1e-4, which YAML 1.1 reads as text, is read as 0.0001."""
    file = tmp_path / "a.yaml"
    file.write_text(
        "{name: a, dataset: b, backbone: c, priors: [l2-sp], n: [100], seeds: [1], "
        "methods: {map-gs: {weight_decays: [1e-4, 1e-1]}, de-elbo: {kappa: 1e2}}, training: {sigma: 1e-3}}"
    )
    benchmark = load_benchmark(str(file))
    assert benchmark.methods["map-gs"].weight_decays == (0.0001, 0.1)
    assert benchmark.methods["de-elbo"].kappa == 100.0
    assert benchmark.training.sigma == 0.001


def test_sigma_may_be_as_small_as_the_posterior_allows(content: dict[str, Any]) -> None:
    """The minimum of the posterior's sigma is accepted, and half of it is refused."""
    accepted = parse_benchmark(changed(content, "training/sigma", MIN_SIGMA), "x")
    assert accepted.training.sigma == MIN_SIGMA
    with pytest.raises(ConfigError, match=r"training\.sigma"):
        parse_benchmark(changed(content, "training/sigma", MIN_SIGMA / 2), "x")


RETRAIN = "methods/map-gs/retrain"
RATES = "methods/map-gs/learning_rates"
DECAYS = "methods/map-gs/weight_decays"
REFUSED = [
    ("color", "red", ["color", "unknown key", "seeds"]),
    (
        "methods/mine",
        {},
        ["methods.mine", "no method 'mine'", "map-gs, de-elbo, de-elbo-best, elbo", "methods.mine.method"],
    ),
    ("methods/map-gs/decays", [1], ["methods.map-gs.decays", "unknown key", "weight_decays"]),
    ("methods/de-elbo/kapa", 1, ["methods.de-elbo.kapa", "unknown key", "kappa"]),
    ("methods/elbo/kappa", 1, ["methods.elbo.kappa", "unknown key", "learning_rates"]),
    ("training/epochs", 3, ["training.epochs", "unknown key", "steps"]),
    ("resources/memory", 3, ["resources.memory", "unknown key", "slots"]),
    ("resources/accelerator", "H100", ["resources", "accelerator = H100", "gpus_per_trial = 0", "set gpus_per_trial"]),
    ("resources", None, ["resources", "None", "dictionary"]),
    ("resources", {"gpus_per_trial": None}, ["resources.gpus_per_trial", "None", "number"]),
    ("resources/accelerator", "two words", ["resources.accelerator", "'two words'"]),
    ("resources/accelerator", 100, ["resources.accelerator", "100", "string"]),
    (RATES, [0.1, -0.01], [f"{RATES.replace('/', '.')}.1", "-0.01", "greater than 0"]),
    (RATES, [0], [RATES.replace("/", "."), "0", "greater than 0"]),
    (DECAYS, [-1e-3], [DECAYS.replace("/", "."), "-0.001", "greater than or equal to 0"]),
    (DECAYS, ["big"], [DECAYS.replace("/", "."), "'big'", "must be a number"]),
    (DECAYS, [NAN], [DECAYS.replace("/", "."), "nan"]),
    (DECAYS, [INF], [DECAYS.replace("/", "."), "inf", "finite"]),
    (DECAYS, [".nan"], [DECAYS.replace("/", "."), "'.nan'", "must be a number"]),
    (DECAYS, [True], [DECAYS.replace("/", "."), "True", "must be a number"]),
    (DECAYS, [], [DECAYS.replace("/", "."), "[]", "at least one"]),
    (DECAYS, [0.1, "1e-1"], [DECAYS.replace("/", ".").rpartition(".")[2], "twice", "0.1"]),
    (DECAYS, 0.1, [DECAYS.replace("/", "."), "0.1"]),
    (RETRAIN, "none", [RETRAIN.replace("/", "."), "'none'", "best or all"]),
    ("methods/map-gs/ptyl_lambdas", [0], ["ptyl_lambdas", "greater than 0"]),
    (RETRAIN, "x", [f"{RETRAIN.replace('/', '.')} = 'x'"]),
    ("methods/de-elbo/kappa", "x", ["methods.de-elbo.kappa = 'x'"]),
    ("methods/de-elbo/kappa", -1, ["methods.de-elbo.kappa", "-1"]),
    ("methods", {}, ["methods", "at least one of map-gs, de-elbo, de-elbo-best, elbo"]),
    ("methods", None, ["methods", "None", "dictionary"]),
    ("methods", ["elbo"], ["methods", "['elbo']", "dictionary"]),
    ("priors", ["l2-one"], ["priors", "'l2-one'", "'l2-zero', 'l2-sp' or 'ptyl'"]),
    ("priors", [], ["priors", "[]", "at least one"]),
    ("priors", ["l2-sp", "l2-sp"], ["priors", "twice"]),
    ("n", 100, ["n = 100"]),
    ("n", [0], ["n.0", "0", "greater than or equal to 1"]),
    ("n", [100.0], ["n.0", "100.0", "integer"]),
    ("n", [100, 100], ["n = ", "twice"]),
    ("seeds", [True], ["seeds.0", "True", "integer"]),
    ("seeds", ["1001"], ["seeds.0", "'1001'", "integer"]),
    ("seeds", [-1], ["seeds.0", "-1", "greater than or equal to 0"]),
    ("training", None, ["training", "None", "dictionary"]),
    ("training/steps", True, ["training.steps", "True", "integer"]),
    ("training/steps", "many", ["training.steps", "'many'", "integer"]),
    ("training/momentum", 1, ["training.momentum", "1", "less than 1"]),
    ("training/clip_norm", 0, ["training.clip_norm", "0", "greater than 0"]),
    ("resources/slots", 0, ["resources.slots", "0", "greater than or equal to 1"]),
    ("name", "a/b", ["name = 'a/b': expected up to 64 letters"]),
    ("training/precision", "fp16", ["training.precision = 'fp16'", "'float32', 'tf32' or 'bf16'"]),
    ("training/channels_last", 1, ["training.channels_last = 1", "boolean"]),
    ("training/compile", "yes please", ["training.compile = 'yes please'", "boolean"]),
    ("training/batchnorm", False, ["training.batchnorm = False", "'train' or 'frozen'"]),
    ("training/image_size", 0, ["training.image_size = 0", "greater than or equal to 1"]),
    ("training/image_size", 64.0, ["training.image_size = 64.0", "integer"]),
    ("name", "../elsewhere", ["name", "'../elsewhere'"]),
    ("name", "<b>bold</b>", ["name", "'<b>bold</b>'"]),
    ("name", "good\n", ["name"]),
    ("max_failures", -1, ["max_failures", "-1"]),
    ("timed", "no", ["timed", "'no'", "boolean"]),
    ("timed", 0, ["timed", "0", "boolean"]),
    ("timed", None, ["timed", "None", "boolean"]),
    ("checkpoint_minutes", 0, ["checkpoint_minutes", "0", "greater than 0"]),
    ("checkpoint_minutes", INF, ["checkpoint_minutes", "inf", "finite"]),
    ("checkpoint_minutes", True, ["checkpoint_minutes", "True", "must be a number"]),
    ("checkpoint_minutes", 2.5, ["checkpoint_minutes = 2.5", "timed: true", "expected timed: false", "leave"]),
]


@pytest.mark.parametrize(("where", "value", "expected"), REFUSED, ids=[f"{w}={v!r}"[:50] for w, v, _ in REFUSED])
def test_nonsense_is_refused_by_name(content: dict[str, Any], where: str, value: Any, expected: list[str]) -> None:
    """An invalid value is refused in one line with the file, the key, the value and what was expected."""
    with pytest.raises(ConfigError) as caught:
        parse_benchmark(changed(content, where, value), "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert len(message.splitlines()) == 1
    for word in expected:
        assert word in message


def test_checkpoints_belong_to_runs_that_are_not_timed(content: dict[str, Any]) -> None:
    """Only an untimed benchmark may have checkpoints, which change neither its identity nor its trials."""
    plain = parse_benchmark(content, "x")
    untimed = parse_benchmark(content | {"timed": False, "checkpoint_minutes": "1e1"}, "x")
    assert (plain.timed, plain.checkpoint_minutes) == (True, None)
    assert (untimed.timed, untimed.checkpoint_minutes) == (False, 10)
    assert parse_benchmark(content | {"timed": False}, "x").checkpoint_minutes is None
    assert parse_benchmark(untimed.content(), "x") == untimed
    assert untimed.identity_settings() == plain.identity_settings()
    keys = [{spec.key for m in make_methods(b) for spec in iter(m.ask, None)} for b in (plain, untimed)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 8


@pytest.mark.parametrize("key", ["name", "dataset", "backbone", "priors", "n", "seeds", "methods"])
def test_a_key_without_default_must_be_there(content: dict[str, Any], key: str) -> None:
    """A missing key without a default is named."""
    del content[key]
    named = "backbones" if key == "backbone" else key
    with pytest.raises(ConfigError, match=rf"^x: key {named} is missing"):
        parse_benchmark(content, "x")


FILES = [
    ("just words", ["got str"]),
    ("- a\n- b\n", ["got list"]),
    ("", ["got nothing"]),
    ("name: a\nname: b\n", ["the key name is there twice", "keep one"]),
    ("n: {a: 1, b: {c: 1, c: 2}}\n", ["the key c is there twice"]),
    ("a: [1, 2", ["not a YAML file"]),
    ("a: !!python/object:os.system x", ["not a YAML file"]),
    ("name: 2024-13-45", ["not a YAML file"]),
    ("\x00", ["not a YAML file"]),
    ("\udcff\udcfe", ["not a YAML file"]),
]


@pytest.mark.parametrize(("text", "expected"), FILES, ids=[repr(text) for text, _ in FILES])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, expected: list[str]) -> None:
    """A file that is not YAML, or has no keys, is refused in one line."""
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        load_benchmark(str(file))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert len(message.splitlines()) == 1
    for word in expected:
        assert word in message


@pytest.mark.parametrize("name", ["quickstat", "missing/file.yaml", "n" * 300])
def test_a_missing_file_lists_the_presets(name: str) -> None:
    """A name that is neither a preset nor a file is refused with the list of presets; so is a folder."""
    with pytest.raises(ConfigError, match=r"^'\.' is not a file: give a YAML file"):
        load_benchmark(".")
    with pytest.raises(ConfigError) as caught:
        load_benchmark(name)
    assert repr(name[:50])[:-1] in str(caught.value)
    assert "digits, followup, news4, poster, quickstart, transfer" in str(caught.value)
