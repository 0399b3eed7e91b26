"""The Kubernetes objects, by strict schemas: a key that Kubernetes or KubeRay does not know is refused."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bench.cli.main import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
SCHEMAS = json.loads((Path(__file__).with_name("kubernetes-schema.json")).read_text())["objects"]
CONTENTS = [content for file in sorted(FOLDER.glob("*.yaml")) for content in yaml.safe_load_all(file.read_text())]
OFF = re.compile(r"^( *)#(?=\S)", re.MULTILINE)
"""Where a line is off: # without a space after it."""


def everything(name: str) -> str:
    """The text of a file with all of its lines on."""
    return OFF.sub(r"\1", (FOLDER / name).read_text())


def with_all() -> Any:
    """The RayJob with all of its lines on."""
    return yaml.safe_load(everything("rayjob.yaml"))


def identity(content: Any) -> str:
    """Which object that is."""
    return f"{content['apiVersion']} {content['kind']} {content['metadata']['name']}"


def check(content: dict[str, Any]) -> None:
    """By the object's own schema."""
    jsonschema.validate(content, SCHEMAS[f"{content['apiVersion']} {content['kind']}"])


def the(name: str) -> Any:
    """An object, to be changed at will."""
    (found,) = (content for content in CONTENTS if identity(content) == name)
    return copy.deepcopy(found)


def mappings(content: Any, schema: Any) -> Iterator[Any]:
    """All mappings in an object whose keys are not the user's own."""
    if isinstance(content, dict):
        if "properties" in schema:
            yield content
        for key, value in content.items():
            yield from mappings(value, schema.get("properties", {}).get(key, {}))
    if isinstance(content, list):
        for value in content:
            yield from mappings(value, schema.get("items", {}))


@pytest.mark.parametrize("content", CONTENTS, ids=identity)
def test_kubernetes_takes_it(content: dict[str, Any]) -> None:
    """All keys are known and of their kinds, and those that must be there are."""
    check(content)


@pytest.mark.parametrize("content", CONTENTS, ids=identity)
def test_an_unknown_key_anywhere_is_refused(content: dict[str, Any]) -> None:
    """A key that is not known is found at each level of the object, down to a container's probes."""
    content = copy.deepcopy(content)
    schema = SCHEMAS[f"{content['apiVersion']} {content['kind']}"]
    places = list(mappings(content, schema))
    assert len(places) >= 3
    for place in places:
        place["bogus"] = 1
        with pytest.raises(jsonschema.ValidationError, match="bogus"):
            check(content)
        del place["bogus"]


class TestRayJob:
    def test_tokens(self) -> None:
        """The cluster asks for a token, by a mode that KubeRay has, and of a Ray that can."""
        job = the("ray.io/v1 RayJob deelbo")
        cluster = job["spec"]["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
        cluster["authOptions"]["mode"] = "tokens"
        with pytest.raises(jsonschema.ValidationError, match="tokens"):
            check(job)

    def test_versions(self) -> None:
        """The image in the Dockerfile, the name of the image and rayVersion are the installed Ray's."""
        import ray

        cluster = the("ray.io/v1 RayJob deelbo")["spec"]["rayClusterSpec"]
        assert cluster["rayVersion"] == ray.__version__
        assert f"FROM rayproject/ray:{ray.__version__}-py311-gpu\n" in (FOLDER / "Dockerfile").read_text()
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        images = {box["image"] for group in groups for box in group["template"]["spec"]["containers"]}
        assert images == {f"CHANGE.example/deelbo:{ray.__version__}-py311"}

    def test_gpu_workers_from_zero(self) -> None:
        """No GPU is held while no trial waits, a worker has one whole GPU, and the head none."""
        cluster = the("ray.io/v1 RayJob deelbo")["spec"]["rayClusterSpec"]
        (group,) = cluster["workerGroupSpecs"]
        assert cluster["enableInTreeAutoscaling"]
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        (box,) = group["template"]["spec"]["containers"]
        assert box["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"

    def test_the_command_is_one_of_ours(self) -> None:
        """The entry point is a command line that `deelbo-bench` understands."""
        words = shlex.split(the("ray.io/v1 RayJob deelbo")["spec"]["entrypoint"])
        assert words[:3] == ["python", "-m", "bench"]
        options = build_parser().parse_args(words[3:])
        assert options.address == "auto"
        assert options.storage.startswith("s3://")

    def test_as_many_trials_at_once_as_workers_hold(self) -> None:
        """The entry point says how many trials run at once, which the driver cannot see while no worker is there: the
        GPUs that the group may have."""
        spec = the("ray.io/v1 RayJob deelbo")["spec"]
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        (box,) = group["template"]["spec"]["containers"]
        most = group["maxReplicas"] * int(box["resources"]["limits"]["nvidia.com/gpu"])
        options = build_parser().parse_args(shlex.split(spec["entrypoint"])[3:])
        assert options.set == [f"resources.slots={most}"]

    def test_what_failed_pays_for_no_second_cluster(self) -> None:
        """KubeRay does not try again: it would do so for failed trials and for input that was refused."""
        assert the("ray.io/v1 RayJob deelbo")["spec"]["backoffLimit"] == 0

    def test_a_pinned_type_starts_workers_from_zero(self) -> None:
        """With the line that names the GPU's type on, Ray's autoscaler knows of a worker, before there is one, that it
        holds a trial which pins resources.accelerator; with the line off it does not."""
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        from bench.config.sections import Resources
        from bench.ray_backend.capacity import trial_resources, trials_per_node

        wanted = trial_resources(Resources(cpus_per_trial=4, gpus_per_trial=1, accelerator="H100"))
        found = []
        for job in (the("ray.io/v1 RayJob deelbo"), with_all()):
            cluster = {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
            kinds = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
            found.append((kinds["gpu"]["max_workers"], trials_per_node(kinds["gpu"]["resources"], wanted)))
        assert found == [(8, 0), (8, 1)]


class TestData:
    def test_lines_that_are_off_are_valid(self) -> None:
        """Kubernetes takes the RayJob also with all of its lines on, and there are some."""
        job = with_all()
        assert job != the("ray.io/v1 RayJob deelbo")
        check(job)

    def test_head_and_workers_read_one_volume(self) -> None:
        """With its lines on, head and workers have the volume at the same path, to be read alone, and DEELBO_DATA names
        it; ImageNet weights are looked for there by the head, which alone reads them."""
        cluster = with_all()["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for pod in (group["template"]["spec"] for group in groups):
            (box,) = pod["containers"]
            (mount,) = (one for one in box["volumeMounts"] if one["name"] == "data")
            assert mount == {"name": "data", "mountPath": "/data", "readOnly": True}
            (volume,) = (one for one in pod["volumes"] if one["name"] == "data")
            assert volume == {"name": "data", "persistentVolumeClaim": {"claimName": "CHANGE", "readOnly": True}}
            assert {"name": "DEELBO_DATA", "value": mount["mountPath"]} in box["env"]
        head = groups[0]["template"]["spec"]["containers"][0]
        assert {"name": "TORCH_HOME", "value": "/data/torch"} in head["env"]

    def test_the_image_is_prepared_by_a_command_of_ours(self) -> None:
        """With its lines on, the Dockerfile sets DEELBO_DATA, copies a benchmark, then prepares that one."""
        lines = everything("Dockerfile").splitlines()
        words = [shlex.split(line) for line in lines if re.match("ENV|COPY|RUN deelbo-bench", line)]
        assert [line[0] for line in words] == ["ENV", "COPY", "RUN"]
        assert words[0][1].startswith("DEELBO_DATA=/home/ray/")  # where the image's user may write
        options = build_parser().parse_args(words[2][2:])
        assert words[2][2] == "prepare"
        assert options.config == words[1][2] + words[1][1]


class TestMlflow:
    def test_the_service_reaches_it_by_its_names(self) -> None:
        """MLflow answers by each name that the Service has in the cluster, the one in the RayJob among them, and by
        what port-forward shows; by no other name, and not by its address."""
        from mlflow.server.security_utils import is_allowed_host_header

        (box,) = the("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        (value,) = (one["value"] for one in box["env"] if one["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
        allowed = [host.strip() for host in value.split(",")]
        entry = the("ray.io/v1 RayJob deelbo")["spec"]["entrypoint"]
        asked = entry.split("--tracking-uri http://")[1].split()[0]
        for host in (asked, "mlflow:5000", "mlflow.deelbo.svc:5000", "localhost:5000", "127.0.0.1:15000"):
            assert is_allowed_host_header(allowed, host), host
        for host in ("evil.example", "evil.example:5000", "10.0.0.7:5000", "mlflow.deelbo.evil.example:5000"):
            assert not is_allowed_host_header(allowed, host), host

    def test_its_settings_are_mlflows(self) -> None:
        """Each variable and option is one that the installed MLflow reads."""
        from mlflow import environment_variables
        from mlflow.cli import server

        (box,) = the("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        options = {option for parameter in server.params for option in parameter.opts}
        assert {word for word in box["args"] if word.startswith("--")} <= options
        assert all(hasattr(environment_variables, one["name"]) for one in box["env"])
        read = {parameter.envvar for parameter in server.params}
        assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= read

    def test_the_image_has_the_driver_that_the_address_asks_for(self) -> None:
        """The database's address, as it is written down, is one that SQLAlchemy reads, for the driver that the image
        installs: what postgresql:// alone stands for has changed."""
        from sqlalchemy import make_url

        text = (FOLDER / "mlflow.yaml").read_text()
        (address,) = re.findall(r"MLFLOW_BACKEND_STORE_URI=(\S+)", text)
        driver = make_url(address).get_dialect().driver
        assert f"{driver}-binary" in (FOLDER / "Dockerfile").read_text().split("RUN pip install")[1].split()

    def test_no_password_is_in_the_files(self) -> None:
        """Database and object store are named by Secrets, none of which is in the files."""
        (box,) = the("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        assert [one["secretRef"]["name"] for one in box["envFrom"]] == ["mlflow-store", "deelbo-object-store"]
        assert not any(content["kind"] == "Secret" for content in CONTENTS)

    def test_it_is_not_open_to_all(self) -> None:
        """The Service is the cluster's alone and finds the Deployment's pods; its policy lets in the namespace."""
        service, deployment = the("v1 Service mlflow"), the("apps/v1 Deployment mlflow")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["type"] == "ClusterIP"
        assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
        policy = the("networking.k8s.io/v1 NetworkPolicy mlflow")["spec"]
        assert policy["podSelector"]["matchLabels"] == labels
        assert policy["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": 5000, "protocol": "TCP"}]}]
