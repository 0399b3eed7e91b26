"""Generate kubernetes-schema.json: schemas of the objects in cluster/kuberay.

    pip download --no-deps kubernetes==36.0.0 -d /tmp/wheels
    python -m tests.cluster.make_schema /tmp/wheels/kubernetes-36.0.0-py2.py3-none-any.whl

It covers what these files use: all keys that an object may have, with the types of those that occur; other keys are
refused. Kubernetes' objects are read from the models of its Python client, generated for Kubernetes 1.36 (Apache-2.0).
KubeRay's, listed below, are the fields of ray.io/v1 in the reference that KubeRay 1.6.2 generates from the Go types of
its CRD (Apache-2.0, ray-project/kuberay, docs/reference/api.md).
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
OBJECTS = HERE.parents[1] / "cluster" / "kuberay"
KUBERAY = {
    "RayJob": {"apiVersion": "str", "kind": "str", "metadata": "V1ObjectMeta", "spec": "RayJobSpec"},
    "RayJobSpec": {
        "activeDeadlineSeconds": "int",
        "backoffLimit": "int",
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "V1PodTemplateSpec",
        "metadata": "dict[str, str]",
        "clusterSelector": "dict[str, str]",
        "submitterConfig": "object",
        "managedBy": "str",
        "deletionStrategy": "object",
        "entrypoint": "str",
        "runtimeEnvYAML": "str",
        "jobId": "str",
        "submissionMode": "str:K8sJobMode HTTPMode InteractiveMode SidecarMode",
        "entrypointResources": "str",
        "entrypointNumCpus": "float",
        "entrypointNumGpus": "float",
        "ttlSecondsAfterFinished": "int",
        "preRunningDeadlineSeconds": "int",
        "shutdownAfterJobFinishes": "bool",
        "suspend": "bool",
    },
    "RayClusterSpec": {
        "upgradeStrategy": "object",
        "authOptions": "AuthOptions",
        "suspend": "bool",
        "managedBy": "str",
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": "dict[str, str]",
        "enableInTreeAutoscaling": "bool",
        "gcsFaultToleranceOptions": "object",
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": "str",
        "workerGroupSpecs": "list[WorkerGroupSpec]",
    },
    "AuthOptions": {"enableK8sTokenAuth": "bool", "secretName": "str", "mode": "str:disabled token"},
    "AutoscalerOptions": {
        "resources": "V1ResourceRequirements",
        "image": "str",
        "imagePullPolicy": "str",
        "securityContext": "V1SecurityContext",
        "idleTimeoutSeconds": "int",
        "upscalingMode": "str:Default Aggressive Conservative",
        "version": "str:v1 v2",
        "env": "list[V1EnvVar]",
        "envFrom": "list[V1EnvFromSource]",
        "volumeMounts": "list[V1VolumeMount]",
    },
    "HeadGroupSpec": {
        "template": "V1PodTemplateSpec",
        "headService": "V1Service",
        "enableIngress": "bool",
        "resources": "dict[str, str]",
        "labels": "dict[str, str]",
        "rayStartParams": "dict[str, str]",
        "serviceType": "str",
    },
    "WorkerGroupSpec": {
        "suspend": "bool",
        "groupName": "str",
        "replicas": "int",
        "minReplicas": "int",
        "maxReplicas": "int",
        "idleTimeoutSeconds": "int",
        "resources": "dict[str, str]",
        "labels": "dict[str, str]",
        "rayStartParams": "dict[str, str]",
        "template": "V1PodTemplateSpec",
        "scaleStrategy": "object",
        "numOfHosts": "int",
    },
}
REQUIRED = {
    "RayClusterSpec": ["headGroupSpec"],
    "HeadGroupSpec": ["template"],
    "WorkerGroupSpec": ["groupName", "template"],
}
SIMPLE = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
QUANTITY = {"type": ["string", "integer"]}


class Models:
    """Types by name: their fields with the types of these, and their required fields."""

    def __init__(self, wheel: Path) -> None:
        self._wheel = zipfile.ZipFile(wheel)
        self._files = {Path(name).stem.replace("_", ""): name for name in self._wheel.namelist() if "/models/" in name}

    def fields(self, kind: str) -> tuple[dict[str, str], list[str]]:
        """Return the types of the fields by their names in YAML, and the required fields."""
        if kind in KUBERAY:
            return KUBERAY[kind], REQUIRED.get(kind, [])
        text = self._wheel.read(self._files[kind.lower()]).decode()
        (model,) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))
        tables = {
            target.id: ast.literal_eval(node.value)
            for node in model.body
            if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
            if target.id in ("openapi_types", "attribute_map")
        }
        names = tables["attribute_map"]
        required = sorted({names[name] for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)})
        return {names[name]: kind for name, kind in tables["openapi_types"].items()}, required


def schema_of(kind: str, values: list[Any], models: Models) -> dict[str, Any]:
    """Return the schema of a type, as deep as the values go."""
    if kind.startswith("list["):
        inner = [item for value in values for item in value]
        return {"type": "array", "items": schema_of(kind[5:-1], inner, models) if inner else {}}
    if kind.startswith("dict["):
        inner = [item for value in values for item in value.values()]
        held = kind[5:-1].split(", ")[1]
        # cpu: 2 and cpu: "2" are the same quantity, which is a str in the models of the client
        quantities = any(re.search("cpu|memory", key) for value in values for key in value)
        return {"type": "object", "additionalProperties": QUANTITY if quantities else schema_of(held, inner, models)}
    base, _, choices = kind.partition(":")
    if base in SIMPLE:
        plain: dict[str, Any] = {"type": SIMPLE[base]}
        if base == "object" and all(isinstance(value, str | int) for value in values):
            plain = dict(QUANTITY)  # IntOrString
        return plain | ({"enum": choices.split()} if choices else {})
    fields, required = models.fields(kind)
    deeper = {}
    for name, held in sorted(fields.items()):
        inner = [value[name] for value in values if isinstance(value, dict) and name in value]
        deeper[name] = schema_of(held, inner, models) if inner else {}
    return {"type": "object", "properties": deeper, "additionalProperties": False} | (
        {"required": required} if required else {}
    )


def main(wheel: Path) -> None:
    """Write the file."""
    models = Models(wheel)
    objects: dict[str, list[Any]] = {}
    for file in sorted(OBJECTS.glob("*.yaml")):
        for content in yaml.safe_load_all(file.read_text()):
            objects.setdefault(f"{content['apiVersion']} {content['kind']}", []).append(content)
    whole: dict[str, Any] = {
        "source": f"{wheel.name.split('-py')[0]} (Apache-2.0); KubeRay 1.6.2, docs/reference/api.md (Apache-2.0)",
        "made by": "tests/cluster/make_schema.py",
        "objects": {},
    }
    for name, contents in sorted(objects.items()):
        kind = name.split()[1]
        whole["objects"][name] = schema_of(kind if kind in KUBERAY else f"V1{kind}", contents, models)
        whole["objects"][name]["required"] = ["apiVersion", "kind", "metadata", "spec"]
    (HERE / "kubernetes-schema.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
