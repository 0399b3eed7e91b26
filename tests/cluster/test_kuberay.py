"""Kubernetes objects of cluster/kuberay, checked by schemas that refuse keys unknown to Kubernetes and KubeRay."""

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
DISABLED = re.compile(r"^( *)#(?=\S)", re.MULTILINE)
"""Start of a disabled line: # without a space after it."""


def enable_all(name: str) -> str:
    """Return the text of a file with its disabled lines enabled."""
    return DISABLED.sub(r"\1", (FOLDER / name).read_text())


def full_job() -> Any:
    """Return the RayJob with its disabled lines enabled."""
    return yaml.safe_load(enable_all("rayjob.yaml"))


def identity(content: Any) -> str:
    """Version, kind and name of an object."""
    return f"{content['apiVersion']} {content['kind']} {content['metadata']['name']}"


def validate(content: dict[str, Any]) -> None:
    """Validate an object by the schema of its kind."""
    jsonschema.validate(content, SCHEMAS[f"{content['apiVersion']} {content['kind']}"])


def load(name: str) -> Any:
    """Return a copy of an object."""
    (found,) = (content for content in CONTENTS if identity(content) == name)
    return copy.deepcopy(found)


def mappings(content: Any, schema: Any) -> Iterator[Any]:
    """Yield the mappings in an object whose keys the schema defines."""
    if isinstance(content, dict):
        if "properties" in schema:
            yield content
        for key, value in content.items():
            yield from mappings(value, schema.get("properties", {}).get(key, {}))
    if isinstance(content, list):
        for value in content:
            yield from mappings(value, schema.get("items", {}))


@pytest.mark.parametrize("content", CONTENTS, ids=identity)
def test_objects_are_valid(content: dict[str, Any]) -> None:
    """All keys are known and have values of their types, and required keys are there."""
    validate(content)


@pytest.mark.parametrize("content", CONTENTS, ids=identity)
def test_an_unknown_key_anywhere_is_refused(content: dict[str, Any]) -> None:
    """An unknown key is refused at each level of the object, down to the probes of a container."""
    content = copy.deepcopy(content)
    schema = SCHEMAS[f"{content['apiVersion']} {content['kind']}"]
    places = list(mappings(content, schema))
    assert len(places) >= 3
    for place in places:
        place["bogus"] = 1
        with pytest.raises(jsonschema.ValidationError, match="bogus"):
            validate(content)
        del place["bogus"]


class TestRayJob:
    def test_tokens(self) -> None:
        """The cluster requires a token, by a mode that KubeRay has and a Ray that supports it."""
        job = load("ray.io/v1 RayJob deelbo")
        cluster = job["spec"]["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
        cluster["authOptions"]["mode"] = "tokens"
        with pytest.raises(jsonschema.ValidationError, match="tokens"):
            validate(job)

    def test_versions(self) -> None:
        """The base image, the tags of the images and rayVersion have the version of the installed Ray."""
        import ray

        cluster = load("ray.io/v1 RayJob deelbo")["spec"]["rayClusterSpec"]
        assert cluster["rayVersion"] == ray.__version__
        assert f"FROM rayproject/ray:{ray.__version__}-py311-gpu\n" in (FOLDER / "Dockerfile").read_text()
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        images = {box["image"] for group in groups for box in group["template"]["spec"]["containers"]}
        assert images == {f"CHANGE.example/deelbo:{ray.__version__}-py311"}

    def test_gpu_workers_from_zero(self) -> None:
        """Without waiting trials there is no GPU node; a worker has one whole GPU, and the head none."""
        cluster = load("ray.io/v1 RayJob deelbo")["spec"]["rayClusterSpec"]
        (group,) = cluster["workerGroupSpecs"]
        assert cluster["enableInTreeAutoscaling"]
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        (box,) = group["template"]["spec"]["containers"]
        assert box["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"

    def test_entry_point(self) -> None:
        """The entry point is a valid command line of `deelbo-bench`."""
        words = shlex.split(load("ray.io/v1 RayJob deelbo")["spec"]["entrypoint"])
        assert words[:3] == ["python", "-m", "bench"]
        options = build_parser().parse_args(words[3:])
        assert options.address == "auto"
        assert options.storage.startswith("s3://")

    def test_slots(self) -> None:
        """The entry point sets resources.slots to the maximum number of GPUs: the driver sees no future workers."""
        spec = load("ray.io/v1 RayJob deelbo")["spec"]
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        (box,) = group["template"]["spec"]["containers"]
        most = group["maxReplicas"] * int(box["resources"]["limits"]["nvidia.com/gpu"])
        options = build_parser().parse_args(shlex.split(spec["entrypoint"])[3:])
        assert options.set == [f"resources.slots={most}"]

    def test_no_retry(self) -> None:
        """KubeRay does not retry: it would start another cluster also after failed trials and refused input."""
        assert load("ray.io/v1 RayJob deelbo")["spec"]["backoffLimit"] == 0

    def test_a_pinned_gpu_type_starts_workers(self) -> None:
        """Ray's autoscaler expects a future worker to fit a trial with resources.accelerator only if the line that
        names the GPU type is enabled."""
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        from bench.config.sections import Resources
        from bench.ray_backend.capacity import trial_resources, trials_per_node

        wanted = trial_resources(Resources(cpus_per_trial=4, gpus_per_trial=1, accelerator="H100"))
        fits = []
        for job in (load("ray.io/v1 RayJob deelbo"), full_job()):
            cluster = {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
            kinds = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
            fits.append((kinds["gpu"]["max_workers"], trials_per_node(kinds["gpu"]["resources"], wanted)))
        assert fits == [(8, 0), (8, 1)]


class TestData:
    def test_disabled_lines_are_valid(self) -> None:
        """The RayJob has disabled lines, and is valid with them."""
        job = full_job()
        assert job != load("ray.io/v1 RayJob deelbo")
        validate(job)

    def test_head_and_workers_read_one_volume(self) -> None:
        """With its disabled lines, head and workers mount the volume read-only at the path in DEELBO_DATA, and the
        head, which alone reads ImageNet weights, looks for them there."""
        cluster = full_job()["spec"]["rayClusterSpec"]
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

    def test_data_in_the_image(self) -> None:
        """With its disabled lines, the Dockerfile sets DEELBO_DATA, copies a benchmark, and prepares it."""
        lines = enable_all("Dockerfile").splitlines()
        words = [shlex.split(line) for line in lines if re.match("ENV|COPY|RUN deelbo-bench", line)]
        assert [line[0] for line in words] == ["ENV", "COPY", "RUN"]
        assert words[0][1].startswith("DEELBO_DATA=/home/ray/")  # writable by the user of the image
        options = build_parser().parse_args(words[2][2:])
        assert words[2][2] == "prepare"
        assert options.config == words[1][2] + words[1][1]


class TestMlflow:
    def test_allowed_hosts(self) -> None:
        """MLflow accepts the host names of its Service, including the one in the RayJob, and of port-forward; it
        refuses other names and its address."""
        from mlflow.server.security_utils import is_allowed_host_header

        (box,) = load("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        (value,) = (one["value"] for one in box["env"] if one["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
        allowed = [host.strip() for host in value.split(",")]
        entry = load("ray.io/v1 RayJob deelbo")["spec"]["entrypoint"]
        asked = entry.split("--tracking-uri http://")[1].split()[0]
        for host in (asked, "mlflow:5000", "mlflow.deelbo.svc:5000", "localhost:5000", "127.0.0.1:15000"):
            assert is_allowed_host_header(allowed, host), host
        for host in ("evil.example", "evil.example:5000", "10.0.0.7:5000", "mlflow.deelbo.evil.example:5000"):
            assert not is_allowed_host_header(allowed, host), host

    def test_settings_exist(self) -> None:
        """The installed MLflow has each variable and option."""
        from mlflow import environment_variables
        from mlflow.cli import server

        (box,) = load("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        options = {option for parameter in server.params for option in parameter.opts}
        assert {word for word in box["args"] if word.startswith("--")} <= options
        assert all(hasattr(environment_variables, one["name"]) for one in box["env"])
        read = {parameter.envvar for parameter in server.params}
        assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= read

    def test_database_driver(self) -> None:
        """SQLAlchemy selects the driver that the image installs for the documented address of the database; the
        default driver of postgresql:// has changed between its versions."""
        from sqlalchemy import make_url

        text = (FOLDER / "mlflow.yaml").read_text()
        (address,) = re.findall(r"MLFLOW_BACKEND_STORE_URI=(\S+)", text)
        driver = make_url(address).get_dialect().driver
        assert f"{driver}-binary" in (FOLDER / "Dockerfile").read_text().split("RUN pip install")[1].split()

    def test_secrets(self) -> None:
        """Credentials of database and object store come from Secrets, none of which is in the files."""
        (box,) = load("apps/v1 Deployment mlflow")["spec"]["template"]["spec"]["containers"]
        assert [one["secretRef"]["name"] for one in box["envFrom"]] == ["mlflow-store", "deelbo-object-store"]
        assert not any(content["kind"] == "Secret" for content in CONTENTS)

    def test_network(self) -> None:
        """The Service is reachable only in the cluster and selects the Deployment's pods; the policy admits the
        namespace."""
        service, deployment = load("v1 Service mlflow"), load("apps/v1 Deployment mlflow")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["type"] == "ClusterIP"
        assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
        policy = load("networking.k8s.io/v1 NetworkPolicy mlflow")["spec"]
        assert policy["podSelector"]["matchLabels"] == labels
        assert policy["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": 5000, "protocol": "TCP"}]}]
