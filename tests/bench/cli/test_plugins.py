"""Plug-ins on the command line: their names in a configuration, what is recorded of them, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench.cli.main import main
from bench.storage.records import RecordStore
from bench.utils.code import hash_module
from deelbo.plugins import _entry_points
from tests.helpers.plugins import write_plugin
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]
ROWS = CONTENT | {"dataset": "rows", "methods": {"elbo": {"learning_rates": [0.1]}}}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(plugins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command on a configuration in this process; return its exit code, output and errors."""
    monkeypatch.chdir(plugins.parent)

    def run(content: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        Path("mine.yaml").write_text(yaml.safe_dump(content))
        code = main([arguments[0], "mine.yaml", *arguments[1:]])
        return code, *capsys.readouterr()

    return run


def call_process(plugins: Path, content: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a configuration in another process, whose workers find the plug-ins, too."""
    (plugins.parent / "mine.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(plugins)]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", arguments[0], "mine.yaml", *arguments[1:]]
    return subprocess.run(command, cwd=plugins.parent, env=environment, capture_output=True, text=True, check=False)


def refuse(call: Call, content: dict[str, Any], problem: str, command: str = "plan") -> None:
    code, _, errors = call(content, command)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert problem in errors


def test_plan_of_a_dataset(call: Call) -> None:
    """A plug-in's dataset is planned by its name, and its sizes are checked."""
    code, output, errors = call(ROWS, "plan")
    assert code == 0, errors
    assert "rows, N = 100" in output
    refuse(call, ROWS | {"n": [400]}, "rows: n = 400 is larger than the pool of 200")


def test_built_in_names_look_for_no_plugin(call: Call) -> None:
    """The metadata of installed packages, which takes long to read, are not read for names that deelbo has."""
    assert call(CONTENT, "plan")[0] == 0
    assert _entry_points.cache_info().misses == 0


def test_a_plugin_that_fails(plugins: Path, call: Call) -> None:
    """It is named in one line if it is used or a name is unknown; a benchmark that does not need it is planned."""
    write_plugin(plugins, "bad-data", {"my_bad": "raise SystemExit(7)"}, {"deelbo.datasets": {"bad": "my_bad:X"}})
    problem = "the plug-in bad-data 1.0, which has the dataset 'bad', cannot be imported (SystemExit: 7)"
    refuse(call, ROWS | {"dataset": "bad"}, problem)
    refuse(call, ROWS | {"dataset": "worse"}, problem)
    refuse(call, ROWS | {"dataset": "worse"}, "dataset = 'worse': expected one of CIFAR-10, ")
    assert call(ROWS, "plan")[0] == 0


def test_plan_of_a_method(call: Call) -> None:
    """A method of a plug-in is planned under its title; its keys and problems are reported as of others."""
    code, output, errors = call(CONTENT | {"methods": {"rule-of-thumb": None, "elbo": None}}, "plan")
    assert code == 0, errors
    assert "Rule of thumb" in output
    for methods, problem in (
        (
            {"rule-of-thumb": {"rate": 1}},
            "key methods.rule-of-thumb.rate: remove it, or use one of method, priors, learn",
        ),
        ({"rule-of-thumb": {"learning_rate": -1}}, "methods.rule-of-thumb.learning_rate = -1"),
        ({"thumb": None}, "methods.thumb: no method 'thumb': use one of map-gs, de-elbo"),
        ({"rule-of-thumb": {"method": "elbo"}}, "rule-of-thumb is a method and would stand for elbo"),
    ):
        refuse(call, CONTENT | {"methods": methods}, problem)
    change = {"methods": {"rule-of-thumb": None}, "priors": ["ptyl"]}
    refuse(call, CONTENT | change, "methods.rule-of-thumb: there is no rule for prior ptyl")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ENTRY = build", "it is of the type function, expected deelbo.pretrained.registry.BackboneEntry"),
        ("import no_such_module", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        ("ENTRY = BackboneEntry(build, channels=1)", "backbones.two-layers.weights is missing"),
        ("ENTRY = BackboneEntry(weights, channels=1, weights=weights)", "two-layers cannot be built (TypeError: "),
        ("ENTRY = BackboneEntry(lambda *_: 7, channels=1, weights=weights)", "two-layers returns a int"),
        ("ENTRY = BackboneEntry(build, weights=weights)", "two-layers takes images of 3 channels"),
    ],
)
def test_a_backbone_that_is_none(plugins: Path, call: Call, change: str, problem: str) -> None:
    """What a plug-in gives in place of a network is refused in one line."""
    with (plugins / "my_nets.py").open("a") as file:
        file.write(f"\n{change}\n")
    refuse(call, CONTENT | {"backbone": "two-layers"}, problem)


@pytest.mark.parametrize(("raised", "shown"), [("KeyError('x')", "KeyError: 'x'"), ("SystemExit(0)", "SystemExit: 0")])
def test_weights_that_cannot_be_loaded(plugins: Path, call: Call, raised: str, shown: str) -> None:
    """Whatever a plug-in's function raises is one line."""
    with (plugins / "my_nets.py").open("a") as file:
        file.write(f"\ndef lost():\n    raise {raised}\n\nENTRY = BackboneEntry(build, channels=1, weights=lost)\n")
    problem = f"the weights of two-layers cannot be loaded ({shown})"
    refuse(call, CONTENT | {"backbone": "two-layers", "resources": {"gpus_per_trial": 0}}, problem, "prepare")


def test_a_dataset_that_ends_the_program(plugins: Path, call: Call) -> None:
    (plugins / "my_data.py").write_text(
        (plugins / "my_data.py").read_text().replace("import torch", "raise SystemExit(0)")
    )
    refuse(call, ROWS, "rows cannot be loaded (SystemExit: 0): correct the data or the plug-in", "prepare")


def test_what_a_plugin_prints_is_not_in_the_json(plugins: Path, call: Call) -> None:
    with (plugins / "my_method.py").open("a") as file:
        file.write("\nprint('thumb')\n")
    code, output, errors = call(CONTENT | {"methods": {"rule-of-thumb": None}}, "plan", "--json")
    assert code == 0, errors
    assert json.loads(output)["methods"][0]["method"] == "rule-of-thumb"
    assert "thumb" in errors


def test_prepare_loads_a_dataset(call: Call) -> None:
    """The data of a plug-in are loaded, and nothing is downloaded."""
    code, output, errors = call(ROWS | {"backbone": "two-layers"}, "prepare")
    assert code == 0, errors
    assert "rows: 200 training and 40 test images" in output
    assert "download" not in output


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("def load(*_): return 7", "the plug-in my-data 1.0: rows: load returned int, expected deelbo.data.Task"),
        ("def load(root): pass", "the plug-in my-data 1.0: rows cannot be loaded (TypeError: load() takes 1 "),
        ("def load(*_): raise OSError('x')", "the plug-in my-data 1.0: rows cannot be loaded (OSError: x)"),
    ],
)
def test_a_dataset_that_is_none(plugins: Path, call: Call, change: str, problem: str) -> None:
    """A plug-in's dataset is loaded before any trial; what is none is refused in one line."""
    text = (plugins / "my_data.py").read_text()
    (plugins / "my_data.py").write_text(text.replace("ENTRY = ", f"{change}\n\n\nENTRY = "))
    refuse(call, ROWS, problem, "prepare")


@pytest.mark.slow
def test_run_of_plugins(plugins: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a dataset, a network and a method of plug-ins, and of a variant of the method, are run and reported."""
    monkeypatch.setenv("DEELBO_CACHE", str(cache))
    methods = {"rule-of-thumb": None, "thumb-0.1": {"method": "rule-of-thumb", "learning_rate": 0.1}}
    change = {"methods": methods, "backbone": "two-layers", "resources": {"slots": 2, "gpus_per_trial": 0}}
    ran = call_process(plugins, ROWS | change, "run", "--storage", "storage")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = list(RecordStore(str(plugins.parent / "storage")).records())
    assert {(record.status, record.spec.dataset) for record in records} == {("completed", "rows")}
    assert {record.spec.method for record in records} == methods.keys()
    for name, module in (("my-data", "my_data"), ("my-nets", "my_nets"), ("my-method", "my_method")):
        assert {record.versions[name] for record in records} == {"1.0"}
        assert {record.versions[f"{name} code"] for record in records} == {hash_module(module)}
    page = (plugins.parent / "storage" / "report" / "report.html").read_text()
    assert "Rule of thumb" in page
    assert "thumb-0.1" in page


@pytest.mark.slow
def test_doctor_imports_allowed_packages(plugins: Path) -> None:
    """A package of the current folder is imported where trials run on this machine."""
    source = (
        "import torch\n\n\ndef make(n):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, n))\n"
    )
    (plugins.parent / "lab_nets.py").write_text(source)
    content = CONTENT | {"backbones": {"mine": {"model": "lab_nets:make", "weights": "none"}}}
    content |= {"resources": {"gpus_per_trial": 0}, "methods": {"elbo": None}}
    del content["backbone"]
    examined = call_process(plugins, content, "doctor", "--allow-import", "lab_nets")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert re.search(r"^ok +plug-ins: lab_nets \(\w{12}\) here and on ", examined.stdout, re.MULTILINE)
    refused = call_process(plugins, content, "doctor")
    assert (refused.returncode, "--allow-import lab_nets" in refused.stderr) == (2, True)
