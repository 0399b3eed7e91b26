"""Sources of a report: what is loaded, what is left out and named, and the notes about it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.exceptions import RecordError
from bench.results.configurations import iterate_configurations
from bench.results.sources import label_sources, load_published, load_results, load_storage
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord

Fake = Callable[..., TrialRecord]
Publish = Callable[..., tuple[Path, Path]]


@pytest.fixture
def other(tmp_path: Path, tiny: Benchmark, play: Any, fill: Any) -> RecordStore:
    """Return a second storage of the same benchmark."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    return store


@pytest.mark.parametrize(
    ("storages", "expected"),
    [
        (["a"], ["a"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["x/1/a", "y/1/a", "b"], ["x/1/a", "y/1/a", "b"]),
        (["x/a", "a"], ["x/a", "a"]),
        (["memory://x/a", "/y/a"], ["x/a", "y/a"]),
    ],
)
def test_labels_are_short_and_unique(storages: list[str], expected: list[str]) -> None:
    """A label is as much of the end of a path as distinguishes it from the others."""
    assert label_sources(storages) == expected


def test_a_storage_twice_is_refused(storage: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same storage twice is refused, however it is spelled or linked."""
    monkeypatch.chdir(Path(storage.path()).parent)
    Path("link").symlink_to(storage.path())
    for again in (storage.url, storage.url + "/", "storage", "./storage", "link"):
        with pytest.raises(ValueError, match="a storage is given twice"):
            load_results([storage.url, again], [])


def test_two_storages_side_by_side(storage: RecordStore, other: RecordStore) -> None:
    """Each has its label in the column source, and its runs are those that it has alone."""
    both, left_out = load_results([storage.url, other.url], [])
    assert left_out == []
    assert [one.label for one in both] == ["storage", "other"]
    for one in both:
        assert one.frame["source"].eq(one.label).all()
        assert one.left_out == []
        assert len(one.frame) == 9
    (alone,), _ = load_results([storage.url], [])
    assert (alone.label, alone.title) == ("", "tiny")
    assert alone.frame["source"].eq("").all()


def test_a_storage_and_published_files(storage: RecordStore, publish: Publish) -> None:
    """The authors' results are a source of their own beside a storage; alone they need no label."""
    (ours, theirs), _ = load_results([storage.url], [publish()])
    assert (ours.label, theirs.label) == ("storage", "published")
    assert (ours.published, theirs.published) == (False, True)
    assert set(theirs.frame["source"]) == {"published"}
    (alone,), _ = load_results([], [publish()])
    assert (alone.label, alone.title) == ("", "published results")
    assert set(alone.frame["source"]) == {""}


def test_a_storage_may_be_called_published(storage: RecordStore, publish: Publish) -> None:
    """A folder of that name gets another label than the authors' files."""
    folder = Path(storage.path()).rename(Path(storage.path()).with_name("published"))
    (ours, theirs), _ = load_results([str(folder)], [publish()])
    assert ours.label != theirs.label


class Locked(MemoryFileSystem):  # type: ignore[misc]
    """A store that refuses all access."""

    protocol = "locked"

    def info(self, path: str, *_: Any, **__: Any) -> Any:
        raise PermissionError(f"{path}: not yours")

    ls = cat_file = info


fsspec.register_implementation("locked", Locked, clobber=True)
fsspec.register_implementation("unheard", "no_such_module.Unheard", clobber=True, errtxt="install unheard")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("nowhere", "nowhere holds no benchmark"),
        ("gopher://x", "gopher"),
        ("unheard://x", "install unheard"),
        ("locked://x", "not yours"),
    ],
)
def test_unreadable_storages_are_left_out(storage: RecordStore, bad: str, words: str) -> None:
    """A storage that is missing or unreachable is left out and named, and the other is reported."""
    for order in ([bad, storage.url], [storage.url, bad]):
        (good,), left_out = load_results(order, [])
        assert (len(good.frame), good.left_out) == (9, [])
        assert [words in line for line in left_out] == [True]
        assert len(left_out[0].splitlines()) == 1


def test_unreadable_files_are_left_out(storage: RecordStore, publish: Publish, tmp_path: Path) -> None:
    """They are named, one line each, and the storage is reported; and the other way round."""
    (tmp_path / "ragged.csv").write_text("a,b\n1,2,3\n1,2,3,4\n")
    for missing in ("missing.csv", "ragged.csv"):
        (good,), left_out = load_results([storage.url], [(tmp_path / missing, tmp_path / missing)])
        assert len(good.frame) == 9
        assert [missing in line for line in left_out] == [True]
        assert len(left_out[0].splitlines()) == 1
    (good,), left_out = load_results(["nowhere"], [publish()])
    assert len(good.frame) == 8
    assert ["nowhere holds no benchmark" in line for line in left_out] == [True]


def test_no_readable_source_is_refused(tmp_path: Path) -> None:
    """If nothing can be read the first problem is the error."""
    with pytest.raises(ValueError, match="first holds no benchmark"):
        load_results([str(tmp_path / "first"), str(tmp_path / "second")], [(tmp_path / "a.csv", tmp_path / "b.csv")])


def test_pairs_of_several_datasets(publish: Publish, tmp_path: Path) -> None:
    """A pair per dataset makes one source; a bad pair, or a second one of a dataset, is left out and named."""
    good, pet, bad = publish("CIFAR-10"), publish("Pet", cells=[(370, 1)]), (tmp_path / "x.csv", tmp_path / "y.csv")
    found = load_published([good, bad, pet, good])
    assert set(found.frame["dataset"]) == {"CIFAR-10", "Pet"}
    assert len(found.frame) == 16
    missing, twice = found.left_out
    assert "x.csv" in missing
    assert "other files are of CIFAR-10 with resnet50, too" in twice
    with pytest.raises(ValueError, match=r"x\.csv"):
        load_published([bad])


def test_rows_that_cannot_be_used_are_named(publish: Publish) -> None:
    """A cell that an unusable row removes is named, and the other cells are loaded."""
    found = load_published([publish(cells=[(100, 1), (100, 2)], runtime=-1.0)])
    assert set(found.frame["seed"]) == {2}
    assert ["left out: l2-sp, N = 100, seed 1" in line for line in found.left_out] == [True]


def test_a_damaged_record_is_left_out(storage: RecordStore, tiny: Benchmark) -> None:
    """A damaged record is named; the cell of its method is not shown, the rest is."""
    record = next(record for record in storage.records() if record.spec.stage == "tune")
    path = Path(storage.path("records", f"{record.key}.json"))
    path.write_text("{")
    found = load_storage(storage)
    assert [str(path) in line and "damaged" in line for line in found.left_out] == [True]
    assert {cell["method"] for cell, _ in iterate_configurations(found.frame)} == {"de-elbo", "elbo"}
    assert "map-gs mnist-digits digits-resnet l2-sp N = 100 seed 1001" in found.notes[0]


def test_a_storage_of_damaged_records_is_refused(storage: RecordStore) -> None:
    """If no record can be read the error says that they are damaged."""
    for path in Path(storage.path("records")).iterdir():
        path.write_text("{")
    with pytest.raises(RecordError, match="is damaged"):
        load_storage(storage)


@pytest.mark.parametrize("damage", ["[1]", "{"])
def test_a_damaged_invocation_log_is_left_out(storage: RecordStore, damage: str) -> None:
    """A log of an invocation that cannot be read is named, and no trial is lost."""
    storage.write_run("20250101", {"account": "x"})
    Path(storage.path("runs", "20250101.json")).write_text(damage)
    found = load_storage(storage)
    assert len(found.frame) == 9
    assert ["20250101.json is damaged" in line for line in found.left_out] == [True]


def test_nothing_to_report_is_refused(tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path) -> None:
    """A storage without benchmark or records, with only failed ones, or half a grid, is refused with the reason."""
    with pytest.raises(RecordError, match="holds no benchmark"):
        load_storage(RecordStore(str(tmp_path / "a")))
    failed = play(tiny, lambda spec: fake(spec, "failed"))
    half = [record for record in play(tiny) if record.spec.stage == "tune"]
    for name, records, counts in (("b", [], "0 trials"), ("c", failed, "8 of them failed"), ("d", half, "4 trials")):
        store = fill(RecordStore(str(tmp_path / name)), tiny, records)
        with pytest.raises(RecordError, match=f"no method can be reported yet .*{counts}"):
            load_storage(store)


def test_missing_retraining_is_noted(storage: RecordStore, publish: Publish) -> None:
    """If none, only the best or some configurations were retrained, the notes say it, with the cells."""
    (note,) = load_storage(storage).notes
    assert "MAP + GS, L2-SP: only the best configuration was retrained" in note
    assert note.endswith("(N = 100 seed 1001).")
    cells = [(100, 1), (5000, 2)]
    words = ["the best configuration has no retrained run", "only the best configuration was retrained"]
    words += ["2 of 4 configurations were retrained"]
    for retrained, expected in enumerate(words):
        *_, note = load_published([publish(cells=cells, retrained=retrained)]).notes
        assert expected in note
        assert note.endswith("(N = 100 seed 1; N = 5,000 seed 2).")
    about, _ = load_published([publish(cells=cells)]).notes
    assert "no runs of the DE ELBo" in about


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_diverged_and_failed_runs_are_noted(
    status: str, tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path
) -> None:
    """They are counted for each method, with their effect."""

    def judge(spec: Any) -> TrialRecord:
        return fake(spec, status if spec.stage == "tune" and spec.learning_rate == 0.1 else "completed")

    found = load_storage(fill(RecordStore(str(tmp_path / "s")), tiny, play(tiny, judge)))
    lost = ["failed: " in line and line.count("out of luck") == 1 for line in found.left_out]
    assert lost == [True, True] * (status == "failed")
    notes = found.notes
    words = {"diverged": "the time counts, the rank is last", "failed": "left out"}
    (note,) = [note for note in notes if status in note]
    assert re.search(rf"MAP \+ GS, L2-SP: 2 .*{words[status]}", note)
    assert not any("DE ELBo, L2-SP" in note for note in notes)


def test_an_unfinished_grid_is_noted(tiny: Benchmark, play: Any, fill: Any, tmp_path: Path) -> None:
    """A grid whose best was not retrained yet is not shown, and named with the trials that are left."""
    records = [record for record in play(tiny) if record.spec.stage != "retrain"]
    found = load_storage(fill(RecordStore(str(tmp_path / "s")), tiny, records))
    assert set(found.frame["method"]) == {"de-elbo", "elbo"}
    where = "mnist-digits digits-resnet l2-sp N = 100 seed 1001"
    assert found.notes == [f"Unfinished, 1 trials left, and not shown: map-gs {where}."]


def test_a_whole_benchmark_needs_no_notes(content: dict[str, Any], play: Any, fill: Any, tmp_path: Path) -> None:
    """If everything ran and was retrained there are no notes."""
    content["methods"]["map-gs"]["retrain"] = "all"
    benchmark = parse_benchmark(content, "x")
    found = load_storage(fill(RecordStore(str(tmp_path / "s")), benchmark, play(benchmark)))
    assert (found.notes, found.left_out) == ([], [])
    assert parse_benchmark(yaml.safe_load(found.config), "x") == benchmark


def test_hardware_and_versions(tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path) -> None:
    """There is a line per kind of machine with nodes and times, and all versions, without names of nodes."""
    count = iter(range(100))

    def judge(spec: Any) -> TrialRecord:
        i = next(count)
        facts = {"node": f"secret-{i % 2}", "cpu": "Slow 5", "threads": 1 + (spec.stage != "run")}
        facts |= {"gpu": "Fast 9"} if spec.method == "elbo" else {}
        versions = {"torch": "2.8.1" if spec.stage == "tune" else "2.9.0", "python": "3.11"}
        span = {"started": 1000.0 + i, "finished": 2000.0 + i}
        return fake(spec, hardware=facts, versions=versions, concurrency=2 + 6 * (spec.stage == "retrain"), **span)

    about = load_storage(fill(RecordStore(str(tmp_path / "s")), tiny, play(tiny, judge))).about
    assert about[0] == "9 trials: 9 completed."
    lines = {line.split(":")[0]: line for line in about}
    assert "5 trials on 2 nodes, at most 2-8 at once, 1970-01-01 00:16:" in lines["Slow 5, 2 threads a trial"]
    assert "2 trials on " in lines["Slow 5, 1 thread a trial"]
    assert "at most 2 at once" in lines["Fast 9, Slow 5, 1 thread a trial"]
    torch = re.search(r"torch (\S+) \((\d) trials\) and (\S+) \((\d) trials\)", lines["Versions"])
    assert torch is not None
    assert set(zip(torch.groups()[::2], torch.groups()[1::2], strict=True)) == {("2.8.1", "4"), ("2.9.0", "5")}
    assert "python 3.11" in lines["Versions"]
    assert "python 3.11 (" not in lines["Versions"]
    assert not any("secret" in line for line in about)


def test_records_without_hardware_and_versions(
    tiny: Benchmark, fake: Fake, play: Any, fill: Any, tmp_path: Path
) -> None:
    """Records without hardware and versions are reported, and that is noted."""
    records = play(tiny, lambda spec: fake(spec, hardware={}, versions={}))
    about = load_storage(fill(RecordStore(str(tmp_path / "s")), tiny, records)).about
    assert any(line.startswith("unknown: 9 trials on 1 node,") for line in about)
    assert "Versions were not recorded." in about


def test_records_of_other_trials_are_noted(storage: RecordStore, content: dict[str, Any]) -> None:
    """Records that the configuration no longer has are counted in a note."""
    assert not any("not asked for" in note for note in load_storage(storage).notes)
    content["methods"] = {"de-elbo": {"learning_rates": [0.1]}, "elbo": {"learning_rates": [0.1, 0.01, 0.001]}}
    storage.write_benchmark(parse_benchmark(content, "x").content())
    found = load_storage(storage)
    assert "6 of 9 records are not asked for by benchmark.json, and not shown." in found.notes
    assert (found.unfinished, len(found.frame)) == (1, 1)
