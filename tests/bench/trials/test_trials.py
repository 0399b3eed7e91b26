"""A trial's key, and its record as JSON."""

import hashlib
import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from bench.exceptions import FormatError
from bench.trials.record import TrialRecord
from bench.trials.spec import Cell, TrialSpec
from tests.helpers import tiny

SPEC = replace(tiny.SPEC, learning_rate=0.1, steps=200, posterior_passes=10, series_points=20)


def test_key_is_the_same_for_ever() -> None:
    """The key of a given trial never changes within a format: storages are continued by it."""
    assert SPEC.key == "b2c4faf1a003d730a2d5"


OPTIONAL = {"image_size": 64, "precision": "bf16", "channels_last": True, "compile": True}
OPTIONAL |= {"batchnorm": "frozen", "noise_until": 0.5, "final_batchnorm": "mean", "closing_batchnorm": "draw"}
OPTIONAL |= {"start_alpha": 0.01, "lr_scheduler": "constant", "validation_epoch": "best", "stop_after": 0.5}
OPTIONAL |= {"train": "head", "learner": "laplace", "kappa_share": 0.1, "groups": "layer", "optimizer": "prodigy"}
OPTIONAL |= {"predictive_draws": 2, "until": 0.3, "since": 0.1, "number": 0, "options": '{"every":10}'}


CHANGES = [{}, {"seed": 2001}, {"kappa": 0.1 + 0.2, "weight_decay": None}, {"head": "fc"}, OPTIONAL]


@pytest.mark.parametrize("change", [*CHANGES, *({name: value} for name, value in OPTIONAL.items())])
def test_the_key_is_a_hash_of_all_fields_that_are_not_at_their_defaults(change: dict[str, Any]) -> None:
    """Required fields are part of a trial's key, optional ones only if they are not at their defaults."""
    spec = replace(SPEC, **change)
    content = {name: value for name, value in asdict(spec).items() if name not in OPTIONAL or name in change}
    assert len(content.keys() - OPTIONAL.keys()) == len(fields(TrialSpec)) - len(OPTIONAL)
    assert spec.key == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def test_optional_fields_may_be_missing() -> None:
    """A record without its optional fields is read with their defaults, under the same key."""
    content = json.loads(record().to_json())
    for name in OPTIONAL:
        del content["spec"][name]
    read = TrialRecord.from_json(json.dumps(content))
    assert read.spec == SPEC
    assert read.key == content["key"]


def test_a_record_has_room_for_every_layer() -> None:
    """A state of 650 numbers, as a ResNet-50 has with a prior variance for each layer, is read back."""
    state = {f"{what}_layer4.{i}.conv1": float(i) for what in ("scale", "weight_decay") for i in range(325)}
    again = TrialRecord.from_json(replace(record(), state=state).to_json())
    assert again.state == state


def test_cell_is_where_methods_compete() -> None:
    """A trial's cell is its dataset, backbone, prior, N and seed, whatever its method."""
    cell = Cell("mnist-digits", "digits-resnet", "l2-sp", 100, 1001)
    assert SPEC.cell == replace(SPEC, method="elbo", stage="run", learning_rate=1.0).cell == cell
    assert replace(SPEC, dataset="CIFAR-10").cell != cell != replace(SPEC, backbone="resnet50").cell


def test_description_names_a_tied_strength_once() -> None:
    """For people, alpha = beta is one weight decay; PTYL's lambda and the head's own decay are two."""
    where, what = "mnist-digits digits-resnet", "n=100 seed=1001 map-gs tune lr 0.1"
    assert SPEC.describe() == f"{where} l2-sp {what} wd 0.01"
    ptyl = replace(SPEC, prior="ptyl", weight_decay=None, prior_scale=10.0)
    assert ptyl.describe() == f"{where} ptyl {what} lambda 10 head wd 0.01"
    untied = replace(SPEC, head_weight_decay=0.0)
    assert untied.describe() == f"{where} l2-sp {what} wd 0.01 head wd 0"


def record() -> TrialRecord:
    return TrialRecord(
        spec=SPEC,
        status="diverged",
        metrics={"val_nll": math.inf, "train_nll": math.nan, "val_acc": 0.1},
        state={"sigma": -math.inf, "lambda": 0.1 + 0.2},
        seconds={"train": 1.5},
        started=1700000000.123456,
        finished=1700000001.654321,
        attempt=3,
        concurrency=2,
        hardware={"device": "cpu", "threads": 1},
        versions={"torch": "2.8"},
        error="two\nlines",
    )


def test_record_survives_json() -> None:
    """A record read back from its JSON is the record, to the last bit, NaN and infinities included."""
    before, after = record(), TrialRecord.from_json(record().to_json())
    assert math.isnan(after.metrics["train_nll"])
    same = replace(after, metrics=after.metrics | {"train_nll": 0.0})
    assert same == replace(before, metrics=before.metrics | {"train_nll": 0.0})


def test_json_is_strict() -> None:
    """Numbers that JSON does not have are written as words, so that any reader can read them."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    content = json.loads(record().to_json(), parse_constant=refuse)
    assert content["metrics"] == {"val_nll": "inf", "train_nll": "nan", "val_acc": 0.1}
    assert content["state"]["sigma"] == "-inf"
    assert content["key"] == SPEC.key


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"spec": 3}', '{"spec": {}}', record().to_json()[:-20]],
)
def test_damaged_text_is_refused(text: str) -> None:
    """Text that is not a record is a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match="not a trial record"):
        TrialRecord.from_json(text)


def test_a_number_that_is_none_is_refused() -> None:
    """A metric that is not a number is a ValueError."""
    with pytest.raises(
        ValueError, match=r"metrics\.val_nll = 'much', expected a valid number or 'nan', 'inf' or '-inf'"
    ):
        TrialRecord.from_json(record().to_json().replace('"inf"', '"much"'))


def test_a_record_whose_key_does_not_fit_is_refused() -> None:
    """A record whose content was changed by hand no longer fits its key, and is refused."""
    with pytest.raises(ValueError, match=f"key '{SPEC.key}' does not fit"):
        TrialRecord.from_json(record().to_json().replace('"n": 100', '"n": 101'))


@pytest.mark.parametrize(("status", "good"), [("completed", True), ("diverged", True), ("failed", False)])
def test_a_diverged_run_is_a_result(status: str, good: bool) -> None:
    """Completed and diverged runs are results; failed ones are not."""
    assert replace(record(), status=status).succeeded is good


@pytest.mark.parametrize(("value", "read"), [(1.0000001, 1.0), (-1e-7, 0.0), (0.5, 0.5), (1.001, None), (-0.1, None)])
def test_an_accuracy_that_float32_rounded_is_clipped(value: float, read: float | None) -> None:
    """An accuracy that rounding moved out of 0 to 1 is clipped; one further out is refused."""
    text = replace(record(), metrics={"test_acc": value}).to_json()
    if read is None:
        with pytest.raises(ValueError, match="expected 0 to 1"):
            TrialRecord.from_json(text)
    else:
        assert TrialRecord.from_json(text).metrics == {"test_acc": read}


@pytest.mark.parametrize("version", ["1", "3", "true", '"2"', "null"])
def test_another_format_is_refused(version: str) -> None:
    """A record of the earlier format is told from a damaged one."""
    with pytest.raises(FormatError if version == "1" else ValueError, match="format"):
        TrialRecord.from_json(record().to_json().replace('"format": 2', f'"format": {version}'))
