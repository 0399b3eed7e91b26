"""A user's own images in a configuration: what is read, what is refused, and what ``n: all`` stands for."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli.main import main
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import load_benchmark, parse_benchmark
from bench.config.validation import check, check_data
from bench.exceptions import ConfigError

BASE = {
    "name": "mine",
    "backbones": {"resnet18": {}},
    "priors": ["l2-sp"],
    "seeds": [1001],
    "methods": {"de-elbo": {"learning_rates": [0.1]}},
    "training": {"image_size": 32},
}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of three classes of ten images, below the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEELBO_DATA", str(tmp_path / "data"))
    for c, label in enumerate(("cat", "dog", "owl")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (80 * c, 9 * i, 0)).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def benchmark_of(name: str = "photos", change: dict[str, Any] | None = None, **settings: Any) -> Benchmark:
    return parse_benchmark(BASE | {"datasets": {name: settings}} | (change or {}), "x")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"datasets": {"photos": {"folder": "./photos", "n": [18]}}}, "chosen"),
        ({"datasets": {"photos": {"folder": "./photos", "n": [18]}}, "keep": "none"}, "none"),
        ({"datasets": {"CIFAR-10": [100]}}, "none"),
        ({"dataset": "CIFAR-10", "n": [100], "keep": "all"}, "all"),
    ],
)
def test_models_of_own_images_are_kept(change: dict[str, Any], expected: str) -> None:
    """Unless the configuration says otherwise; others only where it says so. It may be changed on a storage."""
    benchmark = parse_benchmark(BASE | change, "x")
    assert benchmark.keep == benchmark.content()["keep"] == expected
    assert benchmark.identity_settings() == benchmark.model_copy(update={"keep": "all"}).identity_settings()


def test_only_the_quickstart_keeps_models_of_its_own() -> None:
    kept = {name: load_benchmark(name).keep for name in ("quickstart", "digits", "poster", "followup")}
    assert kept == {"quickstart": "chosen", "digits": "none", "poster": "none", "followup": "none"}


def test_an_unknown_way_to_keep_models_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"keep = 'best': .*'none', 'chosen' or 'all'"):
        parse_benchmark(BASE | {"datasets": {"CIFAR-10": [100]}, "keep": "best"}, "x")


def test_all_is_the_number_of_training_images(photos: Path) -> None:
    """``all`` is replaced once by the number of training images, which a storage keeps; a twofold size is one."""
    asked = benchmark_of(folder="./photos", n=[18, 24, "all"])
    assert asked.content()["datasets"]["photos"]["n"] == [18, 24, "all"]
    with pytest.raises(ConfigError, match=r"datasets\.photos\.n = all is known only where its data are"):
        make_methods(asked)
    benchmark = check(asked)
    assert benchmark.sizes == {"photos": (18, 24)}
    assert [method.cell.n for method in make_methods(benchmark)] == [18, 24]
    kept = json.loads(json.dumps(benchmark.content()))
    assert kept["datasets"]["photos"]["folder"] == "./photos"
    assert parse_benchmark(kept, "x").sizes == {"photos": (18, 24)}


def test_sources(photos: Path) -> None:
    """Folder, manifest and their settings reach the reader with an absolute path; published datasets have none."""
    source = benchmark_of(folder="photos", n=["all"], test_share=0.3, unreadable="skip").source("photos")
    assert source is not None
    assert (source.path, source.is_manifest, source.test_share, source.skip_unreadable) == (
        str(photos),
        False,
        0.3,
        True,
    )
    manifest = benchmark_of(csv="~/labels.csv", n=[10]).source("photos")
    assert manifest is not None
    assert (manifest.path, manifest.is_manifest) == (str(Path.home() / "labels.csv"), True)
    assert load_benchmark("poster").source("CIFAR-10") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": [10]}, "datasets.photos: neither folder nor csv is given: give one of them"),
        ({"folder": "a", "csv": "b", "n": [10]}, "datasets.photos: folder and csv are both given"),
        ({"folder": "a"}, "key datasets.photos.n is missing: add it"),
        ({"folder": "a", "n": []}, "datasets.photos.n = []: must hold at least one value"),
        ({"folder": "a", "n": [10, 10]}, "datasets.photos.n = [10, 10]: must not hold a value twice"),
        ({"folder": "a", "n": 10}, "datasets.photos.n = 10: must be a list"),
        ({"folder": "a", "n": ["most"]}, "datasets.photos.n.0 = 'most': must be a whole number of at least 1, or all"),
        ({"folder": "a", "n": [True]}, "datasets.photos.n.0 = True: must be a whole number"),
        ({"folder": "a", "n": [0]}, "datasets.photos.n.0 = 0: must be a whole number"),
        ({"folder": "a", "n": [10], "test_share": 1}, "datasets.photos.test_share = 1: "),
        ({"folder": "a", "n": [10], "unreadable": "maybe"}, "datasets.photos.unreadable = 'maybe': "),
        ({"folder": 3, "n": [10]}, "datasets.photos.folder = 3: "),
        ({"path": "a", "n": [10]}, "unknown key datasets.photos.path: remove it, or use one of folder, csv, n, "),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str) -> None:
    """A setting that is missing, unknown or of the wrong type is named by its key."""
    with pytest.raises(ConfigError) as raised:
        benchmark_of(**settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "change", "settings", "words"),
    [
        ("CIFAR-10", {}, {}, "datasets.CIFAR-10 is no name for data of your own"),
        ("../photos", {}, {}, "datasets.../photos is no name for data of your own"),
        ("photos", {"backbones": {"digits-resnet": {}}}, {}, "takes images of 1 channel, those of photos have 3"),
        ("photos", {}, {"folder": "none"}, "photos: there is no "),
        ("photos", {}, {"n": [25]}, "photos: n = 25 is larger than the pool of 24 training examples: choose n <= 24"),
        (
            "photos",
            {},
            {"n": [14]},
            "photos: n = 14 leaves 4 examples of the smallest class, which has 8 of 24",
        ),
    ],
)
def test_what_does_not_fit_the_images(
    photos: Path, name: str, change: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    """Names, networks and sizes are checked against the folder before any image is opened."""
    benchmark = benchmark_of(name, change, **({"folder": str(photos), "n": [18]} | settings))
    with pytest.raises(ConfigError) as raised:
        check(benchmark)
    assert words in str(raised.value)


def test_files_that_are_left_out_are_told(photos: Path) -> None:
    """Files beside the images are counted and one is named; those that are skipped count, too, and change N."""
    (photos / "owl" / "notes.txt").write_text("x")
    (photos / "owl" / "0.png").write_bytes(b"")
    told: list[str] = []
    check(benchmark_of(folder="photos", n=[18]), told.append)
    assert told == [f"photos: files that are left out: 1, such as {photos}/owl/notes.txt"]
    benchmark = check(benchmark_of(folder="photos", n=["all"], unreadable="skip"), told.append)
    assert told[1].startswith("photos: files that are left out: 2, ")
    assert benchmark.sizes["photos"][0] in (23, 24)  # the unreadable file may have been held out


def test_images_are_read_anew_before_each_run(photos: Path) -> None:
    """The hash follows the folder within one process, and a file that has become unreadable is named."""
    benchmark = check(benchmark_of(folder="photos", n=["all"]))
    before = check_data(benchmark, ["photos"])
    assert check_data(benchmark, ["photos"]) == before
    Image.new("RGB", (8, 8), (255, 255, 255)).save(photos / "owl" / "0.png")
    after = check_data(benchmark, ["photos"])
    assert before.keys() == after.keys() == {"photos"}
    assert before != after
    (photos / "owl" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 30 images .* owl/0\.png \(empty\).* set datasets\.photos\.unreadable"):
        check_data(benchmark, ["photos"])


@pytest.mark.parametrize(("path", "fits"), [("/nowhere/photos", True), ("~/photos", True), ("./photos", False)])
def test_images_of_a_cluster_are_not_listed_here(path: str, fits: bool) -> None:
    """For a job, images are the nodes' own: only an absolute path is accepted, and nothing is listed."""
    benchmark = benchmark_of(folder=path, n=[18, "all"])
    if fits:
        assert check(benchmark, images_here=False) == benchmark
        return
    with pytest.raises(ConfigError, match=r"datasets\.photos: './photos' is relative to this machine"):
        check(benchmark, images_here=False)


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "--storage", "/shared", "--address", "http://127.0.0.1:9"],
        ["doctor", "--address", "http://127.0.0.1:9"],
    ],
)
def test_commands_for_a_cluster_refuse_a_relative_folder(
    command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`submit` and `doctor` of a cluster refuse a folder of this machine before they connect, in one line."""
    content = BASE | {"datasets": {"photos": {"folder": "./photos", "n": ["all"]}}}
    (photos.parent / "mine.json").write_text(json.dumps(content))
    assert main([command[0], "mine.json", *command[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "datasets.photos: './photos' is relative to this machine, not to the nodes" in line
