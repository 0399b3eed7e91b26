"""Storages with hostile files: each gives a record or an error, a report or one line per problem, no traceback."""

import datetime
import json
import re
from collections.abc import Callable
from contextlib import suppress
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
    with suppress(TypeError, ValueError, KeyError, AttributeError, RecursionError):
        content["key"] = TrialSpec(**content["spec"]).key
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


WRONG = {
    "spec.steps": ["abc", 1.5, True],
    "spec.seed": [[1]],
    "spec.prior_scale": [{}],
    "spec.channels_last": ["yes", 1],
    "spec.dataset": ["a\nb", "\x1b[2J", "x" * 10_000_000],
    "spec.head": [3],
    "spec.n": [10**400, 2**63],
    "spec.learning_rate": [None, "0.1", False, 10**400],
    "spec.kappa": ["D/N"],
    "spec.image_size": [16.0],
    "spec.precision": [None],
    "spec.batchnorm": [True],
    "error": [5, ["x"], "\ud800"],
    "status": [None, "done", 5],
    "attempt": [1.0, "1"],
    "concurrency": [True, [1]],
    "timed": [1],
    "lost_seconds": ["1", -1],
    "started": [None, 1e300],
    "finished": ["noon", 1e300],
    "hardware": [None, {"cpu": {"a": 1}}, {"cpu": ["a"]}, [["a", 1]], {"a\n": 1}, {"a": "\x1b[2J"}],
    "hardware.size": [{str(number): number for number in range(1000)}],
    "versions": [{"torch": 2}, {"torch": None}, "x", ["torch"]],
    "metrics": [{"val_nll": True}, {"val_nll": "NaN"}, {"val_nll": " 1"}, {"seed": 1}, {"status": 1}, {"key": 1}],
    "metrics.accuracy": [{"val_acc": 1.5}, {"test_acc": 80.0}, {"val_acc": "inf"}, {"test_acc": "high"}],
    "state": [{"a": None}, [["a", 1]], {"a": 10**400}],
    "seconds": [{"train": "inf"}, {"train": -1}, {}, {"train": 1.0, "select": 1e300}, {"evaluate": 1.0}],
    "key": [None, ["x" * 100_000]],
    "spec": [None, {"a" * 100_000: 1}],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, values in WRONG.items() for number in range(len(values))]
)
def test_a_value_of_a_wrong_type_is_damage(record: dict[str, Any], name: str, number: int) -> None:
    """A record with a value of another type than its field's, or an impossible one, is refused even if its key fits; a
    field of the spec is named."""
    field, value = name.partition(".")[0], WRONG[name][number]
    if name.startswith("spec."):
        record["spec"][name.removeprefix("spec.")] = value
        record, expected = rekeyed(record), rf"^not a trial record \({re.escape(name)} = "
    else:
        record[field], expected = value, "^(not a trial record|the record's key)"
    with pytest.raises(ValueError, match=expected) as refused:
        TrialRecord.from_json(as_json(record))
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


ACCOUNTS = ['"\\ud800"', '"\\u001b[2J"', f'"{"x" * 10**6}"', '["x"]', '{"a": 1}', "null", "3", "[" * 900 + "]" * 900]


@pytest.mark.parametrize("account", ACCOUNTS, ids=range(len(ACCOUNTS)))
def test_an_account_that_is_no_line(storage: RecordStore, report: Report, account: str, tmp_path: Path) -> None:
    """A run's summary that is not a text, or a strange one, does not prevent the report."""
    storage.write_file("runs/20250101T000000.json", f'{{"account": {account}}}'.encode())
    assert report() in (0, 1)
    assert (tmp_path / "pages" / "report.html").stat().st_size < 500_000


def test_ten_thousand_records_take_seconds(record: dict[str, Any]) -> None:
    """Reading a record takes less than 1 ms, so that 10,000 take seconds."""
    text, since = as_json(record), datetime.datetime.now(datetime.UTC)
    for _ in range(1000):
        TrialRecord.from_json(text)
    assert (datetime.datetime.now(datetime.UTC) - since).total_seconds() < 1
