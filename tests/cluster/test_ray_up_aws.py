"""Requests that Ray's AWS node provider makes for cluster/ray-up/aws.yaml, answered by moto's EC2 and IAM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

moto = pytest.importorskip("moto", reason="needs `pip install 'moto[ec2,iam]'`, which simulates AWS")
boto3 = pytest.importorskip("boto3", reason="needs `pip install boto3`: Ray's AWS node provider")

FILE = Path(__file__).resolve().parents[2] / "cluster" / "ray-up" / "aws.yaml"
ROLES = ("deelbo-head", "deelbo-worker")

pytestmark = [pytest.mark.slow, pytest.mark.cluster]  # starts no cluster, but concerns cluster files only


@pytest.fixture(scope="module")
def bootstrapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The file as `ray up` completes it before it starts a machine, where the two roles exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts a key into ~/.ssh
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        config = yaml.safe_load(FILE.read_text())
        patch.setenv("AWS_DEFAULT_REGION", config["provider"]["region"])
        with moto.mock_aws():
            from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
            from ray.autoscaler._private.util import prepare_config

            iam = boto3.client("iam")
            for name in ROLES:
                iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
                iam.create_instance_profile(InstanceProfileName=name)
                iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
            filled = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config))
            yield AWSNodeProvider.bootstrap_config(filled)


@pytest.fixture(scope="module")
def instances(bootstrapped: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One machine of each node type, as EC2 describes it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
    described = {}
    for kind, type_ in bootstrapped["available_node_types"].items():
        tags = {"ray-node-type": "head" if kind == "head" else "worker", "ray-user-node-type": kind}
        (made,) = provider.create_node(type_["node_config"], tags, 1)
        (described[kind],) = boto3.client("ec2").describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"]
    return described


def test_machines(instances: dict[str, dict[str, Any]]) -> None:
    """Each node type has the instance type, image, role and disk of the file; the disk is deleted with the machine."""
    kinds = yaml.safe_load(FILE.read_text())["available_node_types"]
    for name, one in instances.items():
        config = kinds[name]["node_config"]
        assert (one["InstanceType"], one["ImageId"]) == (config["InstanceType"], config["ImageId"])
        assert one["IamInstanceProfile"]["Arn"].endswith(f"/{config['IamInstanceProfile']['Name']}")
        (disk,) = one["BlockDeviceMappings"]
        (volume,) = boto3.client("ec2").describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        expected = config["BlockDeviceMappings"][0]["Ebs"]
        assert (volume["Size"], volume["VolumeType"]) == (expected["VolumeSize"], expected["VolumeType"])
        assert disk["Ebs"]["DeleteOnTermination"] is True


def test_security_group(instances: dict[str, dict[str, Any]]) -> None:
    """All machines are in one security group of Ray's, which admits SSH from anywhere and its members, nothing else."""
    groups = {group["GroupId"] for one in instances.values() for group in one["SecurityGroups"]}
    (group,) = boto3.client("ec2").describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    inside, ssh = group["IpPermissions"]
    assert (inside["IpProtocol"], inside["IpRanges"]) == ("-1", [])
    assert {pair["GroupId"] for pair in inside["UserIdGroupPairs"]} == groups
    assert (ssh["FromPort"], ssh["ToPort"], ssh["UserIdGroupPairs"]) == (22, 22, [])
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == ["0.0.0.0/0"]


def test_key_pair(bootstrapped: dict[str, Any], instances: dict[str, dict[str, Any]]) -> None:
    """Ray makes one key pair; its private key is a local file that only its owner can read."""
    (name,) = {one["KeyName"] for one in instances.values()}
    key = Path(bootstrapped["auth"]["ssh_private_key"])
    assert key.stem == name
    assert key.stat().st_mode & 0o777 == 0o600


def test_roles(bootstrapped: dict[str, Any]) -> None:
    """Ray uses the two roles that the file names, and creates none."""
    assert bootstrapped["head_node"] == {}
    assert sorted(role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]) == sorted(ROLES)
