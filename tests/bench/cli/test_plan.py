"""The output of `plan`: trials per method, every trial, and hours, compared with counts by hand."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.config.benchmark import make_methods
from bench.config.loading import load_benchmark

Row = dict[str, str]
Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Run `plan`, and return what it prints."""

    def call(*arguments: str) -> str:
        assert main(["plan", *arguments]) == 0
        return capsys.readouterr().out

    return call


def table(text: str) -> list[Row]:
    """Return the rows of the table that have numbers, by column; a number belongs to the heading that it ends under."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if re.search(r"\bmethod\b.*\btune\b", line))
    ends = {found.end(): found[0] for found in re.finditer(r"\S+", lines[at])}
    rows, where = [], ""
    for line in lines[at + 2 :]:
        words = re.split(r"\s{2,}", line.strip())
        numbers = {ends[found.end()]: found[0] for found in re.finditer(r"\S+", line) if found.end() in ends}
        numbers.pop("method", None)
        if not numbers and "N = " in line:
            where = " ".join(words)
        elif numbers:
            rows.append(numbers | {"where": where, "first": words[0], "second": words[1]})
            if words[0].endswith(" trials"):  # the totals end the table
                break
        elif line and rows and "all " in rows[-1]["first"]:
            break
    return rows


def count(row: Row, stage: str) -> int:
    return int(row.get(stage, "0").replace(",", ""))


def test_plan_of_the_head_alone(told: Told) -> None:
    """A step of the head is little more than a forward pass, a third of a whole one."""
    given = ("quickstart", "--images-per-second", "10", "--set", "training.steps=100000")
    hours = [
        float(table(told(*given, "--set", f"training.train={train}"))[-1]["hours"].replace(",", ""))
        for train in ("all", "head")
    ]
    assert hours[1] == pytest.approx(hours[0] / 3, rel=0.02)
    assert "With training.train = head all do" in told(*given, "--set", "training.train=head")


def test_plan_counts_the_quickstart(told: Told) -> None:
    """The quickstart has 3 seeds of 24 + 24, 4 and 4 trials, 168 in all."""
    text = told("quickstart")
    rows = table(text)
    assert [(row["first"], row["second"]) for row in rows[:-1]] == [
        ("L2-SP", "MAP + GS"),
        ("L2-SP", "DE ELBo"),
        ("L2-SP", "ELBo"),
    ]
    assert {row["where"] for row in rows[:-1]} == {"mnist-digits, N = 100 digits-resnet"}
    assert [[count(row, stage) for stage in ("tune", "retrain", "run")] for row in rows] == [
        [72, 72, 0],
        [0, 0, 12],
        [0, 0, 12],
        [72, 72, 24],
    ]
    assert rows[-1]["first"] == "all 168 trials"
    assert "3 cells of (dataset, N, seed): 72 tuning runs, 72 retrainings, 12 DE ELBo runs, 12 ELBo runs." in text


POSTER = {"tune": 5184, "retrain": 468, "run": 432}


def test_the_poster_is_the_papers(play: Any) -> None:
    """It has the paper's 18 cells, 5,184 tuning runs, 468 retrainings and 216 DE ELBo runs, and 216 of the ELBo."""
    benchmark = load_benchmark("poster")
    methods = make_methods(benchmark)
    assert len({(method.cell.dataset, method.cell.n, method.cell.seed) for method in methods}) == 18
    assert sum((method.stages() for method in methods), Counter()) == POSTER
    specs = [record.spec for record in play(benchmark)]
    assert Counter(spec.stage for spec in specs) == POSTER
    assert len({spec.key for spec in specs}) == len(specs) == 6084
    assert Counter(spec.method for spec in specs if spec.stage == "run") == {"de-elbo": 216, "elbo": 216}
    retrained = Counter(spec.prior for spec in specs if spec.stage == "retrain")
    assert retrained == {"l2-sp": 18 * 24, "l2-zero": 18, "ptyl": 18}


def test_plan_counts_the_poster(told: Told) -> None:
    """The rows of the poster add up to the totals of the table, which are the paper's."""
    text = told("poster")
    *rows, total = table(text)
    assert len({row["where"] for row in rows}) == 6
    assert len(rows) == 6 * 3 * 3
    for stage, expected in POSTER.items():
        assert sum(count(row, stage) for row in rows) == count(total, stage) == expected
    by_prior = Counter[str]()
    for row in rows:
        by_prior[row["first"]] += count(row, "retrain")
    assert by_prior == {"L2-SP": 432, "L2-zero": 18, "PTYL": 18}
    assert total["first"] == "all 6,084 trials"
    words = "18 cells of (dataset, N, seed): 5,184 tuning runs, 468 retrainings, 216 DE ELBo runs, 216 ELBo runs."
    assert words in text.splitlines()


def test_plan_lists_the_poster(told: Told) -> None:
    """`plan --trials` has a line for each of 6,084 trials, also for retrainings that are chosen later."""
    lines = told("poster", "--trials").splitlines()
    words = [line.split() for line in lines]
    stages = Counter(next(word for word in line if word in POSTER) for line in words)
    assert stages == POSTER
    assert len(lines) == 6084
    priors = Counter(next(w for w in line if w in ("l2-zero", "l2-sp", "ptyl")) for line in words if "retrain" in line)
    assert priors == {"l2-sp": 432, "l2-zero": 18, "ptyl": 18}
    keys = [line[0] for line in words if line[0] != "(chosen"]
    assert len(set(keys)) == len(keys) == 6084 - 36
    assert all(re.fullmatch(r"[0-9a-f]{20}", key) for key in keys)
    assert sum("retrain the best of 240" in line for line in lines) == 18


def test_plan_counts_the_follow_up(told: Told) -> None:
    """72 cells with a grid of 144 points, seven methods of 4 runs, and ten searches of 36 runs and retrainings."""
    methods = make_methods(load_benchmark("followup"))
    assert len({method.cell for method in methods}) == 72
    stages: dict[str, Counter[str]] = {}
    for method in methods:
        stages[method.name] = stages.get(method.name, Counter()) + method.stages()
    searches = {f"bo-{kind}seed-{seed}" for kind in ("", "10-") for seed in range(5)}
    learned = {"de-elbo", "elbo", "laplace", *(f"kappa-{share}" for share in ("0.01", "0.05", "0.3", "3"))}
    assert stages == (
        {"map-gs": Counter(tune=72 * 144, retrain=72)}
        | {name: Counter(tune=72 * 36, retrain=72 * 36) for name in searches}
        | {name: Counter(run=72 * 4) for name in learned}
    )
    starts = {method.name: method.settings.startup for method in methods if method.name in searches}
    assert starts == {name: 10 if name.startswith("bo-10-") else 1 for name in searches}
    total = table(told("followup"))[-1]
    assert {stage: count(total, stage) for stage in ("tune", "retrain", "run")} == sum(stages.values(), Counter())
    assert total["first"] == "at most 64,296 trials"


def test_plan_of_a_subset(told: Told) -> None:
    """With ``--only`` and ``--set`` the plan is that of the changed subset."""
    text = told("poster", "--set", "seeds=[1001]", "--only", "prior=ptyl,dataset=CIFAR-10,n=100")
    *rows, total = table(text)
    assert [(row["first"], row["second"]) for row in rows] == [
        ("PTYL", name) for name in ("MAP + GS", "DE ELBo", "ELBo")
    ]
    assert [count(total, stage) for stage in ("tune", "retrain", "run")] == [240, 1, 8]
    lines = told("poster", "--set", "seeds=[1001]", "--only", "prior=ptyl,dataset=CIFAR-10,n=100", "--trials")
    assert len(lines.splitlines()) == 249


def test_plan_gives_hours(told: Told) -> None:
    """The hours are those of the images by hand, an evaluated image counting a third of a trained one."""
    rows = table(told("quickstart", "--images-per-second", "100"))
    grid = 72 * (10_000 + 400 / 3) + 72 * (10_000 + 1000 / 3)
    runs = 12 * (10_000 + 2000 / 3)
    hours = [value / 100 / 3600 for value in (grid, runs, runs, grid + 2 * runs)]
    assert [row["hours"] for row in rows] == [f"{value:.2f}" for value in hours] == ["4.09", "0.36", "0.36", "4.80"]


def test_plan_gives_hours_as_measured(told: Told, tmp_path: Path) -> None:
    """With measured rates each method has its own; a total is given only if all hours are known."""
    rates = {"map l2-sp": 100.0, "de-elbo l2-sp": 50.0}
    file = tmp_path / "speed.json"
    setting = {"size": 16, "batch": 50, "numerics": {"precision": "float32", "channels_last": False, "compile": False}}
    content = {"backbone": "digits-resnet", "environment": {"cpu": "abacus"}, "images_a_second": rates}
    content |= {"setting": setting}
    file.write_text(json.dumps(content))
    text = told("quickstart", "--speed", str(file))
    assert [row["hours"] for row in table(text)] == ["4.09", "0.71", "0.71", "5.52"]
    assert "hours of digits-resnet: 50 to 100 images a second, measured on abacus\n" in text
    file.write_text(json.dumps(content | {"images_a_second": {"map l2-sp": 100.0}}))
    assert [row.get("hours") for row in table(told("quickstart", "--speed", str(file)))] == ["4.09", None, None, None]


def test_plan_says_where_its_hours_come_from(told: Told) -> None:
    """Each backbone has a line on its rate: assumed for ResNet-50, unknown for others unless given."""
    assert "GPU-hours of resnet50: 320 images a second, assumed: the published runs' on an A100" in told("poster")
    unknown = told("followup")
    for name in ("vit_b_16", "convnext_tiny"):
        assert f"GPU-hours of {name}: not known: give --images-per-second, or --speed FILE" in unknown
    assert all(("GPU-hours" in row) == row["where"].endswith("resnet50") for row in table(unknown)[:-1])
    given = told("followup", "--images-per-second", "1000")
    assert "GPU-hours of vit_b_16: 1000 images a second, as given" in given
    assert all("GPU-hours" in row for row in table(given))


def test_hours_follow_the_seeds(told: Told) -> None:
    """One seed of three takes a third of the hours."""
    whole, third = (table(told("poster", *change))[-1] for change in ([], ["--set", "seeds=[1001]"]))
    hours = [float(row["GPU-hours"].replace(",", "")) for row in (whole, third)]
    assert hours[1] == pytest.approx(hours[0] / 3, abs=0.5)


def test_plan_as_json(told: Told) -> None:
    """One document with the same counts and hours as the table, and a row for each method and cell."""
    document = json.loads(told("quickstart", "--json", "--images-per-second", "100"))
    assert [document[name] for name in ("benchmark", "trials", "tune", "retrain", "run", "at_most")] == [
        "quickstart", 168, 72, 72, 24, False,
    ]  # fmt: skip
    assert document["hours"] == pytest.approx(4.80, abs=0.005)
    assert len(document["methods"]) == 9
    row = {"dataset": "mnist-digits", "backbone": "digits-resnet", "prior": "l2-sp", "n": 100, "seed": 1001}
    row |= {"method": "map-gs", "tune": 24, "retrain": 24, "run": 0, "at_most": False}
    first = document["methods"][0]
    assert first.pop("hours") == pytest.approx(4.09 / 3, abs=0.005)
    assert first == row
    assert json.loads(told("quickstart", "--json"))["hours"] is None
    halving = json.loads(told("quickstart", "--json", "--set", "methods={deelbo-halving: {}}"))
    assert (halving["at_most"], halving["trials"]) == (True, 21)


def test_plan_checks_first(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark that cannot run is refused as `run` refuses it."""
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps(content | {"n": [5000]}))
    assert main(["plan", str(file)]) == 2
    assert "pool of 4000" in capsys.readouterr().err


def test_plan_imports_nothing_slow() -> None:
    """`plan` of a preset needs no torch, pandas, scikit-learn or Ray, each of which takes a second to import."""
    code = (
        "import sys; from bench.cli.main import main; main(['plan', 'quickstart']);"
        "print({'torch', 'torchvision', 'sklearn', 'scipy', 'pandas', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_imports_nothing_slow() -> None:
    """`--help` imports the modules of all commands, none of which imports a third-party package."""
    code = "import sys, bench.cli.main as m; m.build_parser(); print({'pydantic', 'rich', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
