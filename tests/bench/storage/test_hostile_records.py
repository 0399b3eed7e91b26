"""Storages with hostile files: each gives a record or an error, a report or one line per problem, no traceback."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Report = Callable[[], int]
KEYS = ("timed", "lost_seconds", "n", "key", "source", "seed", "status", "train", "error", "account", "epoch", "spec")


@pytest.fixture
def record(storage: RecordStore) -> dict[str, Any]:
    """The content of a record's file, with everything that a record may have."""
    content = json.loads(next(storage.records()).to_json())
    hardware = {"device": "cuda", "gpu": "A100", "gpu_gib": 80.0, "threads": 1, "node": "a", "cpu": "EPYC"}
    metrics = {"train_nll": "nan", "val_nll": 0.5, "val_acc": 0.9, "test_nll": "inf", "test_acc": 0.5}
    content |= {"hardware": hardware, "versions": {"torch": "2.8", "data": "0" * 16}, "error": "Traceback\nKeyError: 1"}
    return content | {"metrics": metrics, "state": content["state"] | {"dim_head": 10.0, "log_det_head": "-inf"}}


def as_json(content: Any) -> str:
    """JSON as any program may write it, with NaN, long integers and lone surrogates."""
    return json.dumps(content, default=lambda value: value.decode("latin1") if isinstance(value, bytes) else str(value))


def rekeyed(content: Any) -> Any:
    """The same content with a key that fits it."""
    try:
        spec = TrialSpec(**content["spec"])
        content["key"] = spec.key
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        spec = content.get("spec") if isinstance(content, dict) else None
        if spec is not None:
            words = json.dumps(spec, sort_keys=True, default=str)
            content["key"] = hashlib.sha256(words.encode()).hexdigest()[:20]
    return content


def typed(record: TrialRecord) -> None:
    """Assert that every field is of its type."""
    for name, value in asdict(record.spec).items():
        kind = TrialSpec.__annotations__[name]
        allowed = {"Text": str, "str": str, "Integer": int, "bool": bool}.get(kind.split(" ")[0], float)
        assert (value is None and "None" in kind) or type(value) is (int if name == "number" else allowed)
        assert not isinstance(value, str) or (len(value) <= 200 and value.isprintable())
    for numbers in (record.metrics, record.state, record.seconds):
        assert all(type(name) is str and type(value) is float for name, value in numbers.items())
    assert all(type(value) is str and value.isprintable() for value in record.versions.values())
    assert all(isinstance(value, str | int | float | None) for value in record.hardware.values())
    assert isinstance(record.error, str | None)
    assert type(record.timed) is bool
    assert "\n" not in record.describe_failure()
    json.loads(record.to_json())


def test_a_record_is_of_the_right_types_or_none(record: dict[str, Any], fuzz: Any, mutated: Any, garbled: Any) -> None:
    """Any content of a record's file is a record whose fields are of their types, or a ValueError of one short line."""
    seen: list[str] = []

    def read(text: str) -> None:
        try:
            typed(TrialRecord.from_json(text))
            seen.append("")
        except ValueError as error:
            seen.append(str(error))

    read(as_json(record))
    assert seen == [""]
    fuzz(100, mutated(record, keys=KEYS).map(rekeyed).map(as_json), read)
    fuzz(50, mutated(record, keys=KEYS).map(as_json), read)
    fuzz(50, garbled(as_json(record).encode()).map(lambda text: text.decode(errors="replace")), read)
    assert "" in seen[1:]
    assert all(words.isprintable() and len(words) < 300 for words in seen if words)
    assert len({words.split("=")[0] for words in seen}) > 10


WRONG = [
    *(("steps", "abc"), ("steps", 1.5), ("steps", True), ("seed", [1]), ("prior_scale", {}), ("channels_last", "yes")),
    *(("channels_last", 1), ("dataset", "a\nb"), ("dataset", "\x1b[2J"), ("dataset", "x" * 10_000_000), ("head", 3)),
    *(("n", 10**400), ("n", 2**63), ("learning_rate", None), ("learning_rate", "0.1"), ("learning_rate", False)),
    *(("kappa", "D/N"), ("image_size", 16.0), ("precision", None), ("learning_rate", 10**400)),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG)])
def test_a_spec_of_wrong_types_is_damaged(record: dict[str, Any], name: str, value: Any) -> None:
    """A spec with a value of another type than its field's is refused, even if its key fits, and the field is named."""
    record["spec"][name] = value
    with pytest.raises(ValueError, match=rf"^not a trial record \(spec\.{name} = ") as refused:
        TrialRecord.from_json(as_json(rekeyed(record)))
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


FIELDS = [
    *(
        ("error", 5),
        ("error", ["x"]),
        ("error", "\ud800"),
        ("status", None),
        ("status", "done"),
        ("attempt", 1.0),
        ("attempt", "1"),
    ),
    *(("concurrency", True), ("timed", 1), ("lost_seconds", "1"), ("lost_seconds", -1), ("started", None)),
    *(
        ("hardware", {"cpu": {"a": 1}}),
        ("hardware", {"cpu": ["a"]}),
        ("hardware", [["a", 1]]),
        ("hardware", {"a\n": 1}),
    ),
    *(("hardware", {"a": "\x1b[2J"}), ("hardware", {str(i): i for i in range(1000)}), ("versions", {"torch": 2})),
    *(
        ("versions", {"torch": None}),
        ("versions", "x"),
        ("metrics", {"val_nll": True}),
        ("metrics", {"val_nll": "NaN"}),
    ),
    *(("metrics", {"val_nll": " 1"}), ("metrics", {"seed": 1}), ("metrics", {"status": 1}), ("metrics", {"key": 1})),
    *(("metrics", {"val_acc": 1.5}), ("state", {"a": None}), ("state", [["a", 1]]), ("state", {"a": 10**400})),
    *(("seconds", {"train": "inf"}), ("seconds", {"train": -1}), ("seconds", {}), ("finished", 1e300), ("key", None)),
    *(("key", ["x" * 100_000]), ("spec", None), ("spec", {"a" * 100_000: 1})),
]


@pytest.mark.parametrize(("name", "value"), FIELDS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FIELDS)])
def test_a_field_of_a_wrong_type_is_damage(record: dict[str, Any], name: str, value: Any) -> None:
    """A record with a value of another type than its field's, or an impossible one, is refused."""
    with pytest.raises(ValueError, match=r"^(not a trial record|the record's key)") as refused:
        TrialRecord.from_json(as_json(record | {name: value}))
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_does_not_have(record: dict[str, Any], word: str) -> None:
    """NaN and infinity as numbers, which JSON does not have, are refused."""
    text = as_json(record)
    for field in ('"started": ', '"gpu_gib": ', '"learning_rate": ', '"val_nll": '):
        at = text.index(field) + len(field)
        with pytest.raises(ValueError, match="not a trial record"):
            TrialRecord.from_json(text[:at] + word + text[text.index(",", at) :])


def test_an_error_of_nothing(record: dict[str, Any]) -> None:
    """A failed record whose error is blank or has control characters is described in one line."""
    for error in (None, "", " \n\t\n", "\x1b[31mred\n\x00", "x" * 1_000_000):
        failed = TrialRecord.from_json(as_json(record | {"status": "failed", "error": error}))
        assert failed.describe_failure().isprintable()
        assert len(failed.describe_failure()) < 600


@pytest.fixture
def report(storage: RecordStore, tmp_path: Path, sketch: None, capsys: pytest.CaptureFixture[str]) -> Report:
    """Call `report`: code 0 and an empty stderr; 1 and a line for each problem; or 2 and one line."""
    out = tmp_path / "pages"

    def call() -> int:
        code = main(["report", storage.url, "--out", str(out)])
        lines = capsys.readouterr().err.splitlines()
        assert code in (0, 1, 2)
        assert all(line.isprintable() and len(line) < 700 for line in lines)
        if code == 2:
            assert len(lines) == 1
        else:
            assert bool(lines) is bool(code)
            assert all(line.startswith("left out: ") for line in lines)
        return code

    return call


def test_a_report_of_changed_records(
    storage: RecordStore, record: dict[str, Any], report: Report, fuzz: Any, mutated: Any, garbled: Any
) -> None:
    """With any content of a record's file, also with a fitting key, there is a report or one line says why not."""
    assert report() == 0
    key = record["key"]
    file, good = Path(storage.path("records", f"{key}.json")), as_json(record).encode()
    codes = set()

    def shown(content: bytes, name: str = key) -> None:
        other = Path(storage.path("records", f"{name}.json"))
        before = file.read_bytes()
        if other == file or all(one.isalnum() for one in name):
            other.write_bytes(content)
        codes.add(report())
        other.unlink(missing_ok=True)
        file.write_bytes(before)

    def consistent(content: Any) -> None:
        name = content.get("key") if isinstance(content, dict) else None
        shown(as_json(content).encode(), name if isinstance(name, str) and len(name) == 20 else key)

    inner = {name: value for name, value in record.items() if name not in ("spec", "key")}
    same_trial = mutated(inner, keys=KEYS).map(
        lambda changed: changed | {"spec": record["spec"], "key": key} if isinstance(changed, dict) else changed
    )
    fuzz(14, same_trial, consistent)
    fuzz(5, mutated(record, keys=KEYS).map(rekeyed), consistent)
    fuzz(3, garbled(good), shown)
    assert codes >= {0, 1}


def test_a_report_beside_changed_files(
    storage: RecordStore, report: Report, fuzz: Any, mutated: Any, garbled: Any
) -> None:
    """With any content of benchmark.json, a series or a run's summary there is a report, or one line says why not."""
    account = {"started": "x", "account": "9 trials in 24 s", "ran": 9, "failures": ["a"], "utilization": 0.5}
    storage.write_run("20250101T000000", account)
    codes = set()
    for folder, examples in ((".", 12), ("runs", 6), ("series", 3)):
        name = sorted(Path(storage.path(folder)).glob("*.json"))[0]
        good = name.read_bytes()

        def shown(content: bytes, file: Path = name, before: bytes = good) -> None:
            file.write_bytes(content)
            codes.add(report())
            file.write_bytes(before)

        changed = mutated(json.loads(good), keys=KEYS).map(as_json).map(str.encode)
        fuzz(examples * 2 // 3, changed, shown)
        fuzz(examples // 3, garbled(good, (b"\xff", b"[" * 5000, b"NaN", b'"\\ud800"', b"9" * 5000)), shown)
    assert codes == {0, 1, 2}


@pytest.mark.parametrize(
    "account", ["\ud800", "\x1b[2J", "x" * 1_000_000, ["x"], {"a": 1}, None, 3, "[" * 900 + "]" * 900]
)
def test_an_account_that_is_no_line(storage: RecordStore, report: Report, account: Any, tmp_path: Path) -> None:
    """A run's summary that is not a text, or a strange one, does not prevent the report."""
    nested = isinstance(account, str) and account.startswith("[")
    text = as_json({"account": account}) if not nested else '{"account": ' + str(account) + "}"
    Path(storage.path("runs")).mkdir()
    Path(storage.path("runs", "20250101T000000.json")).write_text(text)
    assert report() in (0, 1)
    assert (tmp_path / "pages" / "report.html").stat().st_size < 500_000


def test_ten_thousand_records_take_seconds(record: dict[str, Any]) -> None:
    """Reading a record takes less than 1 ms, so that 10,000 take seconds."""
    text, since = as_json(record), datetime.datetime.now(datetime.UTC)
    for _ in range(1000):
        TrialRecord.from_json(text)
    assert (datetime.datetime.now(datetime.UTC) - since).total_seconds() < 1
