"""Plug-ins on the command line: their names in a configuration, what is recorded of them, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench.storage.records import RecordStore
from bench.utils.code import hash_module
from tests.helpers.plugins import write_backbone, write_dataset, write_method, write_plugin
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]
ROWS = CONTENT | {"dataset": "rows", "methods": {"elbo": {"learning_rates": [0.1]}}}


def call(folder: Path, content: dict[str, Any], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a configuration, with the plug-ins of a folder."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "COLUMNS": "200"} | variables
    command = [sys.executable, "-m", "bench", arguments[0], "mine.yaml", *arguments[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_plan_of_a_plugin(tmp_path: Path) -> None:
    """A plug-in's dataset is planned by its name, and its sizes are checked."""
    write_dataset(tmp_path)
    planned = call(tmp_path, ROWS, "plan")
    assert planned.returncode == 0, planned.stderr
    assert "rows, N = 100" in planned.stdout
    refused = call(tmp_path, ROWS | {"n": [400]}, "plan")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "rows: n = 400 is larger than the pool of 200" in refused.stderr


def test_a_plugin_that_fails(tmp_path: Path) -> None:
    """It is named in one line if it is used or a name is unknown; a benchmark that does not need it is planned."""
    write_plugin(tmp_path, "bad-data", {"bad_data": "raise SystemExit(7)"}, {"deelbo.datasets": {"bad": "bad_data:X"}})
    for dataset, problem in (("bad", "dataset 'bad', cannot be imported"), ("worse", "dataset = 'worse'")):
        refused = call(tmp_path, ROWS | {"dataset": dataset}, "plan")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert problem in refused.stderr
        assert (
            "the plug-in bad-data 1.0, which has the dataset 'bad', cannot be imported (SystemExit: 7)"
            in refused.stderr
        )
    assert call(tmp_path, CONTENT, "plan").returncode == 0


@pytest.mark.slow
def test_run_of_plugins(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a dataset, a network and a method of plug-ins, and of a variant of the method, are run and reported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for write in (write_dataset, write_backbone, write_method):
        write(tmp_path)
    methods = {"rule-of-thumb": None, "thumb-0.1": {"method": "rule-of-thumb", "learning_rate": 0.1}}
    change = {"methods": methods, "backbone": "two-layers", "resources": {"slots": 2, "gpus_per_trial": 0}}
    ran = call(tmp_path, ROWS | change, "run", "--storage", "storage", DEELBO_CACHE=str(cache))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = list(RecordStore(str(tmp_path / "storage")).records())
    assert {(record.status, record.spec.dataset) for record in records} == {("completed", "rows")}
    assert {record.spec.method for record in records} == methods.keys()
    for name, module in (("my-data", "my_data"), ("my-nets", "my_nets"), ("my-method", "my_method")):
        assert {record.versions[name] for record in records} == {"1.0"}
        assert {record.versions[f"{name} code"] for record in records} == {hash_module(module)}
    page = (tmp_path / "storage" / "report" / "report.html").read_text()
    assert "Rule of thumb" in page
    assert "thumb-0.1" in page


def test_plan_of_a_method(tmp_path: Path) -> None:
    """A method of a plug-in is planned under its title; its keys and problems are reported as of others."""
    write_method(tmp_path)
    planned = call(tmp_path, CONTENT | {"methods": {"rule-of-thumb": None, "elbo": None}}, "plan")
    assert planned.returncode == 0, planned.stderr
    assert "Rule of thumb" in planned.stdout
    for change, problem in (
        (
            {"methods": {"rule-of-thumb": {"rate": 1}}},
            "unknown key methods.rule-of-thumb.rate: remove it, or use one of",
        ),
        ({"methods": {"rule-of-thumb": None}, "priors": ["ptyl"]}, "methods.rule-of-thumb: there is no rule for prior"),
        ({"methods": {"thumb": None}}, "methods.thumb: no method 'thumb': use one of map-gs, de-elbo"),
        ({"methods": {"rule-of-thumb": {"method": "elbo"}}}, "rule-of-thumb is a method and would stand for elbo"),
    ):
        refused = call(tmp_path, CONTENT | change, "plan")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert problem in refused.stderr
    assert "learning_rate" in call(tmp_path, CONTENT | {"methods": {"rule-of-thumb": {"rate": 1}}}, "plan").stderr


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
def test_a_backbone_that_is_none(tmp_path: Path, change: str, problem: str) -> None:
    """What a plug-in gives in place of a network is refused in one line that names it."""
    write_backbone(tmp_path)
    with (tmp_path / "my_nets.py").open("a") as file:
        file.write(f"\n{change}\n")
    refused = call(tmp_path, CONTENT | {"backbone": "two-layers"}, "plan")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert problem in refused.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("def load(*_): return 7", "the plug-in my-data 1.0: rows: load returned int, expected deelbo.data.Task"),
        (
            "def load(root): pass",
            "the plug-in my-data 1.0: rows cannot be loaded (TypeError: load() takes 1 positional",
        ),
    ],
)
def test_a_dataset_that_is_none(tmp_path: Path, cache: Path, change: str, problem: str) -> None:
    """`prepare`, and `run` as it does, load a plug-in's dataset before any trial; what is none is refused in one line."""
    write_dataset(tmp_path)
    text = (tmp_path / "my_data.py").read_text()
    (tmp_path / "my_data.py").write_text(text.replace("ENTRY = ", f"{change}\n\n\nENTRY = "))
    refused = call(tmp_path, ROWS, "prepare", DEELBO_CACHE=str(cache))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused.stderr
    assert problem in refused.stderr
    (tmp_path / "my_data.py").write_text(text)
    assert "rows: 200 training and 40 test images" in call(tmp_path, ROWS, "prepare", DEELBO_CACHE=str(cache)).stdout


@pytest.mark.slow
def test_doctor_imports_allowed_packages(tmp_path: Path) -> None:
    """A package of the current folder is imported where trials run on this machine; what it lacks is named."""
    (tmp_path / "lab_nets.py").write_text(
        "def make(n):\n    import torch\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, n))\n"
    )
    content = CONTENT | {"backbones": {"mine": {"model": "lab_nets:make", "weights": "none"}}}
    content |= {"resources": {"gpus_per_trial": 0}, "methods": {"elbo": None}}
    del content["backbone"]
    examined = call(tmp_path, content, "doctor", "--allow-import", "lab_nets")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert re.search(r"^ok +plug-ins: lab_nets \(\w{12}\) here and on ", examined.stdout, re.MULTILINE)
    assert call(tmp_path, content, "doctor").returncode == 2
