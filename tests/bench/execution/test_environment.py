"""The hardware and the versions that a record has."""

from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter

from bench.execution.environment import hardware, versions
from bench.trials.json_fields import Facts, Text


def test_a_cpu_repeats_a_trial() -> None:
    """On a CPU a trial is repeatable to the bit."""
    found = hardware(torch.device("cpu"))
    assert found["repeatable"] is True
    assert found["threads"] == torch.get_num_threads()


def test_a_gpu_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a trial is not repeatable; the record has the GPU's name and its memory in GiB."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100\n")
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = hardware(torch.device("cuda"))
    assert (found["repeatable"], found["gpu"], found["gpu_gib"]) == (False, "NVIDIA A100", 80.0)


def test_a_record_may_hold_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware and versions can be read back from a record, whatever the name of the machine."""
    monkeypatch.setattr("platform.node", lambda: "\x1b[31mnode\n" * 100)
    found = hardware(torch.device("cpu"))
    assert TypeAdapter(Facts).validate_python(found, strict=True) == found
    assert TypeAdapter(dict[Text, Text]).validate_python(versions(), strict=True) == versions()
