"""The YAML files for `ray up`, checked by Ray's own schema and preparation."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from bench.cli.main import build_parser
from bench.config.loading import load_benchmark
from bench.config.validation import check

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "ray-up"
NAMES = ("aws", "on-premise")


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The content of a file as it is."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{request.param}.yaml").read_text())
    return content


def enable_all(name: str) -> dict[str, Any]:
    """Return the content of a file with its disabled lines (# without a space after it) enabled."""
    text = re.sub(r"^( *)#(?=\S)", r"\1", (FOLDER / f"{name}.yaml").read_text(), flags=re.MULTILINE)
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Complete and validate a configuration as `ray up` does before it calls a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(config)
    validate_config(whole)
    return whole


def test_files_are_valid(config: dict[str, Any]) -> None:
    """Ray's schema, which refuses unknown keys, and its preparation accept the file."""
    whole = prepare(config)
    assert whole["head_start_ray_commands"] == config["head_start_ray_commands"]


def test_an_unknown_key_is_refused(config: dict[str, Any]) -> None:
    """Validation finds a key that Ray does not know."""
    with pytest.raises(ValidationError, match="max_wrokers"):
        prepare(config | {"max_wrokers": 2})


def test_autoscaling_from_zero() -> None:
    """On AWS no GPU machine runs while no trial waits, and the head has no GPU and is not a worker."""
    whole = prepare(yaml.safe_load((FOLDER / "aws.yaml").read_text()))
    kinds = whole["available_node_types"]
    assert whole["head_node_type"] == "head"
    assert (kinds["head"]["resources"]["GPU"], kinds["head"]["max_workers"]) == (0, 0)
    assert (kinds["gpu"]["resources"]["GPU"], kinds["gpu"]["min_workers"]) == (1, 0)
    assert 0 < kinds["gpu"]["max_workers"] <= whole["max_workers"]


def test_all_machines_are_workers() -> None:
    """On premise each address of worker_ips is a worker, and max_workers counts them all."""
    whole = prepare(yaml.safe_load((FOLDER / "on-premise.yaml").read_text()))
    (kind,) = whole["available_node_types"].values()
    addresses = whole["provider"]["worker_ips"]
    assert whole["max_workers"] == kind["max_workers"] == kind["min_workers"] == len(set(addresses))
    assert whole["provider"]["head_ip"] not in addresses


def test_workarounds_on_premise() -> None:
    """The head gets its address and the older autoscaler, which starts all workers; a worker's start command never
    fails, as Ray would not retry it; and `ray` is on the path of `ray down`."""
    whole = yaml.safe_load((FOLDER / "on-premise.yaml").read_text())
    (head,) = (line for line in whole["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in whole["worker_start_ray_commands"] if "ray start" in line)
    assert "--node-ip-address=$RAY_CLOUD_INSTANCE_ID" in head
    assert "RAY_enable_autoscaler_v2=0" in head
    assert worker.endswith(" || true")
    assert any("PATH=~/deelbo-venv/bin:$PATH" in line and "~/.bashrc" in line for line in whole["setup_commands"])


def test_tokens_are_required_and_in_no_command(config: dict[str, Any]) -> None:
    """Each `ray start` has RAY_AUTH_MODE=token, and the token is copied as a file."""
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert not re.search(r"RAY_AUTH_TOKEN\b", yaml.safe_dump(config))


def test_dashboard_and_mlflow_listen_on_loopback(config: dict[str, Any]) -> None:
    """The dashboard and MLflow listen on the head's loopback only; users reach them by a tunnel."""
    text = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in text
    assert "--host 127.0.0.1 --port 5000" in text
    assert "0.0.0.0" not in text  # noqa: S104 - must not occur


def test_options_of_ray_and_mlflow_exist(config: dict[str, Any]) -> None:
    """The installed versions have each option of `ray start` and `mlflow server`."""
    from mlflow.cli import server
    from ray.scripts.scripts import start

    lines = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for name, command in (("ray start", start), ("mlflow server", server)):
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        called = [line.split(name, 1)[1] for line in lines if name in line]
        assert called, name
        for line in called:
            words = shlex.split(line.split(">")[0].rstrip(" )&"))
            given = {word.split("=")[0] for word in words if word.startswith("--")}
            assert given, line
            assert given <= known, given - known


def test_versions_of_the_images() -> None:
    """The images on AWS have the versions of Ray and Python installed here; Ray refuses a driver with others."""
    import ray

    images = yaml.safe_load((FOLDER / "aws.yaml").read_text())["docker"]
    wanted = f"rayproject/ray:{ray.__version__}-py{sys.version_info.major}{sys.version_info.minor}-"
    assert images["head_image"] == f"{wanted}cpu"
    assert images["worker_image"] == f"{wanted}gpu"


@pytest.mark.parametrize(("name", "key"), [("aws", "setup_commands"), ("on-premise", "head_setup_commands")])
def test_data_is_prepared(name: str, key: str) -> None:
    """With its disabled line, the file is valid and the head fetches data before Ray starts; on AWS all nodes do, on
    premise the folder is the DEELBO_DATA of Ray's nodes."""
    whole = prepare(enable_all(name))
    unchanged = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    (line,) = set(whole[key]) - set(prepare(unchanged)[key])
    assert line in whole["head_setup_commands"]
    assert (line in whole["worker_setup_commands"]) == (name == "aws")
    before, words = line.split("deelbo-bench ")
    options = build_parser().parse_args(shlex.split(words))
    benchmark = load_benchmark(options.config, options.set)
    check(benchmark)
    assert "ptyl" not in benchmark.priors  # needs a file of the user's, without which `prepare` and `ray up` fail
    assert benchmark.datasets
    if name == "on-premise":
        (data,) = re.findall(r"DEELBO_DATA=\S+", before)
        starts = [
            one for kind in ("head", "worker") for one in unchanged[f"{kind}_start_ray_commands"] if "ray start" in one
        ]
        assert [f" {data} ray start" in one for one in starts] == [True, True]


def test_documented_commands_are_valid() -> None:
    """Each command line of `deelbo-bench` in the files and the README of cluster/ is valid."""
    parent = FOLDER.parent
    files = [parent / "README.md", *(file for kind in ("*.yaml", "*.sbatch") for file in parent.rglob(kind))]
    lines = [line for file in files for line in re.findall(r"deelbo-bench ([^`#\n]+)", file.read_text())]
    commands = [words for words in map(shlex.split, lines) if len(words) > 1]
    assert sum(words[0] == "submit" for words in commands) >= 3
    for words in commands:
        assert build_parser().parse_args(words)
