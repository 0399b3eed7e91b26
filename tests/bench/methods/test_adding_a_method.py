"""A method is one file and one line: what docs/methods.md shows is done on a copy of the packages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.storage.records import RecordStore
from tests.helpers.tiny import CONTENT

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the packages with the method of the guide, and a configuration that uses it."""
    for name in ("bench", "deelbo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (file,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (line,) = re.findall(r"The line, in `METHODS`.*?\n\n(    \w+,\n)", GUIDE)
    (tmp_path / "bench" / "methods" / "rule_of_thumb.py").write_text(file)
    registry = tmp_path / "bench" / "methods" / "__init__.py"
    text = registry.read_text()
    assert text.count("METHODS: tuple[type[Method], ...] = (\n") == 1
    text = text.replace(
        "METHODS: tuple[type[Method], ...] = (\n", f"METHODS: tuple[type[Method], ...] = (\n{line}", 1
    ).replace("\n# in the order", "\nfrom bench.methods.rule_of_thumb import RuleOfThumb\n\n# in the order", 1)
    registry.write_text(text)
    methods = {"rule-of-thumb": None, "thumb-0.1": {"method": "rule-of-thumb", "learning_rate": 0.1}}
    content = CONTENT | {"methods": methods | {"elbo": {"learning_rates": [0.1]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that imports only the copy."""
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


RUN = """
import torch
from bench.config.benchmark import make_methods
from bench.config.loading import load_benchmark
from bench.execution.run_trial import TrialContext, run_trial
from bench.report.build import write_report
from bench.results.sources import load_storage
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from deelbo.pretrained.embedded import load_pretrained
from pathlib import Path

benchmark, store, start = load_benchmark("mine.yaml"), RecordStore("storage"), load_pretrained()
store.write_benchmark(benchmark.content())
queue = TrialQueue(make_methods(benchmark))
while (spec := queue.ask()) is not None:
    record, series = run_trial(spec, start, TrialContext(torch.device("cpu")))
    store.write(record, series)
    queue.tell(record)
write_report([load_storage(store)], Path("report"))
"""


@pytest.mark.slow
def test_a_method_is_one_file_and_one_line(copy: Path) -> None:
    """With the file and the line of the guide the method and a variant are planned, run and reported."""
    planned = call(copy, "-m", "bench", "plan", "mine.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "Rule of thumb" in planned.stdout
    assert "thumb-0.1" in planned.stdout
    ran = call(copy, "-c", RUN)
    assert ran.returncode == 0, ran.stderr
    records = list(RecordStore(str(copy / "storage")).records())
    assert {(record.spec.method, record.status) for record in records} == {
        (name, "completed") for name in ("rule-of-thumb", "thumb-0.1", "elbo")
    }
    mine = next(record for record in records if record.spec.method == "rule-of-thumb")
    assert mine.state["weight_decay_backbone"] == mine.state["weight_decay_head"] == 1e-4
    page = (copy / "report" / "report.html").read_text()
    assert "Rule of thumb" in page
    assert "thumb-0.1" in page


@pytest.mark.slow
def test_its_problem_is_reported(copy: Path) -> None:
    """A prior that the method does not support is refused before anything starts, with the method's message."""
    refused = call(copy, "-m", "bench", "plan", "mine.yaml", "--set", "priors=[l2-sp, ptyl]")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "methods.rule-of-thumb: there is no rule for prior ptyl" in refused.stderr
