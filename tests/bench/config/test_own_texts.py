"""A user's own texts in a configuration: what is read, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.config.validation import check, check_data
from bench.doctor.examine import _own_sources
from bench.exceptions import ConfigError
from bench.execution.pretrained import load_pretrained_backbones
from tests.helpers.tiny_bert import write_bert

BASE = {
    "name": "mine",
    "backbones": {"resnet18": {}},
    "priors": ["l2-sp"],
    "seeds": [1001],
    "methods": {"de-elbo": {"learning_rates": [0.1]}},
}
NEWS = {"csv": "news.csv", "text": ["title", "body"], "label": "class", "n": [18, "all"]}


@pytest.fixture
def news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of three classes of ten texts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"Title {i}", f"{label} {i}", label) for label in "abc" for i in range(10)]
    with (tmp_path / "news.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("title", "body", "class"), *rows])
    return tmp_path / "news.csv"


def benchmark_of(change: dict[str, Any] | None = None, **settings: Any) -> Benchmark:
    return parse_benchmark(BASE | {"datasets": {"news": settings}} | (change or {}), "x")


def test_settings_of_texts(news: Path) -> None:
    """Columns and shares reach the reader with an absolute path; one column may be a word; a storage keeps them."""
    benchmark = benchmark_of(**NEWS, test_share=0.3)
    source = benchmark.source("news")
    assert source is not None
    assert (source.path, source.text, source.label, source.test_share) == (str(news), ("title", "body"), "class", 0.3)  # type: ignore[union-attr]
    kept = json.loads(json.dumps(benchmark.content()))
    assert parse_benchmark(kept, "x").source("news") == source
    single = benchmark_of(csv="news.csv", text="body", n=[10]).source("news")
    assert (single.text, single.label) == (("body",), "label")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"csv": None}, "datasets.news.csv = None: "),
        ({"text": []}, "datasets.news.text = []: must hold at least one value"),
        ({"text": ["a", "a"]}, "datasets.news.text = ['a', 'a']: must not hold a value twice"),
        ({"text": 3}, "datasets.news.text = 3: must be a list"),
        ({"n": [0]}, "datasets.news.n.0 = 0: must be a whole number of at least 1, or all"),
        ({"label": 3}, "datasets.news.label = 3: "),
        ({"test_share": 1}, "datasets.news.test_share = 1: "),
        (
            {"unreadable": "skip"},
            "unknown key datasets.news.unreadable: remove it, or use one of csv, text, label, n, ",
        ),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str) -> None:
    """A setting that is unknown or of the wrong type is named by its key."""
    with pytest.raises(ConfigError) as raised:
        benchmark_of(**NEWS | settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"csv": "gone.csv"}, {}, "news: there is no "),
        ({"text": ["headline"]}, {}, "has no column headline (its first line is 'title,body,class')"),
        ({"n": [25]}, {}, "news: n = 25 is larger than the pool of 24 training examples"),
        ({"n": [14]}, {}, "news: n = 14 leaves 4 examples of the smallest class"),
        ({}, {"training": {"image_size": 32}}, "image_size = 32, but news has texts: leave it out"),
        ({}, {}, "resnet18 takes images, news has text: choose another backbone or dataset"),
    ],
)
def test_what_does_not_fit_the_texts(news: Path, settings: dict[str, Any], change: dict[str, Any], words: str) -> None:
    """Columns, sizes and networks are checked against the file before anything starts."""
    with pytest.raises(ConfigError) as raised:
        check(benchmark_of(change, **NEWS | settings))
    assert words in str(raised.value)


@pytest.mark.usefixtures("news")
def test_texts_of_a_cluster_are_not_read_here() -> None:
    """For a job the file is the nodes' own, so that its path must be absolute."""
    with pytest.raises(ConfigError, match=r"datasets\.news: 'news\.csv' is relative to this machine"):
        check(benchmark_of(**NEWS), images_here=False)


def with_bert(path: object, **settings: Any) -> dict[str, Any]:
    return {"backbones": {"bert": {"model": f"transformers:{path}"} | settings}}


def test_two_text_networks_share_a_dataset(news: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reads the texts by its own tokenizer, the hash is one, and what a folder lacks is said once."""
    write_bert(news.parent / "one")
    write_bert(news.parent / "two", pooler=False)
    names = {"one": {"model": "transformers:./one", "max_length": 8}, "two": {"model": "transformers:two"}}
    benchmark = check(benchmark_of({"backbones": names}, **NEWS))
    assert benchmark.backbone_source("two").text_model == str(news.parent / "two")
    (hashed,) = check_data(benchmark, ["news"]).values()
    (again,) = check_data(check(benchmark_of(with_bert("one"), **NEWS)), ["news"]).values()
    assert hashed == again
    told: list[str] = []
    pretrained = load_pretrained_backbones(benchmark, make_methods(benchmark), told.append)
    assert pretrained.keys() == {"one", "two"}
    assert [line.partition(" lacks weights")[0] for line in told] == [f"two: {news.parent / 'two'}"]
    assert _own_sources(benchmark)["news"]["tokenizer"] == str(news.parent / "one")  # what `doctor` tries on nodes


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"model": "transformers:./gone"}, {}, "backbones.bert: there is no folder gone: give a folder of a model"),
        ({"head": "nose"}, {}, "backbones.bert: the head 'nose' must be a Linear layer"),
        ({"max_length": 17}, {}, "backbones.bert: max_length = 17 of "),
        ({"max_length": 0}, {}, "backbones.bert.max_length = 0: "),
        ({"normalization": {"mean": [0.5], "std": [0.5]}}, {}, "backbones.bert.normalization: texts are not normal"),
        ({}, {"datasets": {"CIFAR-10": [100]}}, "bert takes text, CIFAR-10 has images: choose another"),
        ({}, {"backbones": {"resnet18": {"max_length": 8}}}, "backbones.resnet18.max_length = 8: only texts have it"),
        ({}, {"methods": {"mine": {"method": "laplace"}}}, "methods.mine with backbones.bert: its gradients of single"),
        ({}, {"priors": ["ptyl"]}, "prior ptyl needs backbones.bert.ptyl"),
    ],
)
def test_text_networks_that_are_refused(
    news: Path, settings: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    """A folder, head, length or kind of data that does not fit is refused before anything starts."""
    write_bert(news.parent / "bert")
    content = BASE | with_bert(news.parent / "bert", **settings) | {"datasets": {"news": NEWS}} | change
    with pytest.raises(ConfigError) as raised:
        check(parse_benchmark(content, "x"))
    assert words in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.usefixtures("news")
def test_a_model_by_name_is_not_looked_for_in_advance() -> None:
    """A name of Hugging Face's passes the check, as `prepare` downloads it; until then the texts cannot be read."""
    benchmark = check(benchmark_of(with_bert("no/such-model"), **NEWS))
    with pytest.raises(ValueError, match="tokenizer of no/such-model cannot be read, which is not a folder here"):
        check_data(benchmark, ["news"])


@pytest.mark.parametrize(
    ("path", "fits"), [("/models/bert", True), ("org/bert", True), ("./bert", False), ("bert", False)]
)
def test_networks_of_a_cluster(news: Path, path: str, fits: bool) -> None:
    """For a job a folder must be absolute; it need not be here."""
    write_bert(news.parent / "bert")
    benchmark = benchmark_of(with_bert(path), **NEWS | {"csv": "/data/news.csv"})
    if fits:
        assert check(benchmark, images_here=False) == benchmark
        return
    with pytest.raises(ConfigError, match=rf"backbones\.bert: '{path}' is relative to this machine, not to the nodes"):
        check(benchmark, images_here=False)
