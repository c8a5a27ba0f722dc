"""The manifests: Kubernetes' own kinds by their schema, offline; the RayCluster and what binds the files by what must agree."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

from effillm_server.catalog import load
from effillm_server.settings import PREFIX, Settings
from effillm_worker import node
from effillm_worker.fleet.offers import CLASS_PREFIX
from effillm_worker.fleet.scaling import bundles

FOLDER = Path(__file__).parents[2] / "deploy/kuberay"
DOCUMENTS: list[dict[str, Any]] = [
    document
    for file in sorted(FOLDER.glob("*.yaml"))
    if file.name not in ("kustomization.yaml", "images.yaml")
    for document in yaml.safe_load_all(file.read_text())
]
PLAIN = [one for one in DOCUMENTS if one["kind"] != "RayCluster"]
(CLUSTER,) = (one["spec"] for one in DOCUMENTS if one["kind"] == "RayCluster")
GROUPS = CLUSTER["workerGroupSpecs"]
# Of the pods that Ray's operator makes, its pod template is a Kubernetes one.
PODS = {one["metadata"]["name"]: one["spec"]["template"] for one in PLAIN if one["kind"] in ("Deployment", "Job")} | {
    "head": CLUSTER["headGroupSpec"]["template"], **{group["groupName"]: group["template"] for group in GROUPS}
}  # fmt: skip
KUBERNETES = "1.30"


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in PLAIN if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("document", PLAIN, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_fits_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["head", *(group["groupName"] for group in GROUPS)])
def test_a_pod_of_the_ray_cluster_fits_the_schema_of_pods(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **PODS[name].get("metadata", {})}}
    kubernetes_validate.validate(pod | {"spec": PODS[name]["spec"]}, KUBERNETES, strict=True)


def test_the_schema_check_does_find_mistakes() -> None:
    broken = json.loads(json.dumps(named("Deployment", "effillm-api")))
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_not_root_has_no_capabilities_and_writes_into_volumes_only(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in spec.get("volumes", [])}
    # The head's autoscaler asks Kubernetes for pods; nobody else talks to it.
    assert name == "head" or spec["automountServiceAccountToken"] is False


def test_the_cluster_has_a_group_per_class_that_starts_from_zero() -> None:
    assert [group["groupName"] for group in GROUPS] == ["a100", "rtx-4090", "t4", "cpu"]
    for group in GROUPS:
        name = group["groupName"]
        assert name in load().hardware
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert offered == {f"{CLASS_PREFIX}{name}": 1}, "what the fleet asks for"
        gpus = 0 if name == "cpu" else 1
        assert group["rayStartParams"]["num-gpus"] == str(gpus)
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
        assert container["image"] == ("effillm-worker-cuda" if gpus else "effillm-worker-cpu")
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert int(named("ConfigMap", "effillm-settings")["data"]["EFFILLM_AUTOSCALE"]) > 0


def test_rays_own_autoscaler_would_start_the_pods_that_the_fleet_asks_for() -> None:
    """Its reading of the cluster and its choice of nodes, without a Kubernetes."""
    cluster = {"metadata": {"name": "effillm", "namespace": "effillm"}, "spec": CLUSTER}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    score = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    asked = bundles({"t4": 5, "a100": 1, "cpu": 9, "rtx-4090": 0}, 2)
    started, unmet = get_nodes_for(types, {}, "headgroup", 18, asked, score)
    assert (started, unmet) == ({"t4": 2, "a100": 1, "cpu": 2}, [])
    none, unmet = get_nodes_for(types, {}, "headgroup", 18, bundles({"h100": 1}, 2), score)
    assert (none, len(unmet)) == ({}, 1), "a class without a group starts nothing"


def test_ray_asks_for_a_token_and_is_the_version_that_is_installed() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["rayVersion"] == ray.__version__
    environment = {one["name"]: one for one in PODS["effillm-fleet"]["spec"]["containers"][0]["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "effillm", "key": "auth_token"}
    ports = [port["containerPort"] for port in PODS["head"]["spec"]["containers"][0]["ports"]]
    assert ports == [6379], "neither dashboard nor client"


def test_every_command_is_one_that_its_program_understands() -> None:
    parser = node._parser()
    for name, template in PODS.items():
        command = template["spec"]["containers"][0].get("command", [])
        if command[:3] == ["python", "-m", "effillm_worker.node"]:
            parser.parse_args(command[3:])
        elif command[:3] == ["python", "-m", "effillm_worker.fleet"]:
            assert command[3] == "--node"
            parser.parse_args(command[4:])
        else:
            assert command in ([], ["python", "-m", "effillm_server.ledger.roles"]), name


def test_two_fleets_stand_ready_and_one_of_them_is_active() -> None:
    assert named("Deployment", "effillm-fleet")["spec"]["replicas"] == 2
    assert named("Deployment", "effillm-api")["spec"]["replicas"] == 2


def test_every_variable_is_a_setting_and_secrets_come_by_reference() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"HF_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    settings = named("ConfigMap", "effillm-settings")["data"]
    assert settings.keys() <= known
    Settings.from_environment(settings)
    secret = re.compile("DATABASE_URL|KEY|TOKEN$")
    for template in PODS.values():
        for one in template["spec"]["containers"][0].get("env", []):
            assert one["name"] in known
            assert not secret.search(one["name"]) or "secretKeyRef" in one["valueFrom"]
    assert not [one for one in PLAIN if one["kind"] == "Secret"]
    assert not any(secret.search(name) for name in settings)


def test_a_worker_is_given_its_own_login_and_no_other() -> None:
    keys = {
        name: {one["valueFrom"]["secretKeyRef"]["key"] for one in pod["spec"]["containers"][0].get("env", []) if "valueFrom" in one}
        for name, pod in PODS.items()
    }  # fmt: skip
    assert keys["effillm-migrate"] == {"owner-url"}
    assert keys["effillm-api"] == {"api-url", "admin-key", "hub-token"}
    assert keys["effillm-fleet"] == {"fleet-url", "auth_token"}
    assert keys["head"] == set()
    assert all(keys[group["groupName"]] == {"worker-url", "hub-token"} for group in GROUPS)


def test_kustomize_is_told_of_every_file_and_image() -> None:
    told = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert set(told["resources"]) == {file.name for file in FOLDER.glob("*.yaml")} - {
        "kustomization.yaml",
        "images.yaml",
    }
    used = {pod["spec"]["containers"][0]["image"] for pod in PODS.values()}
    assert used == {image["name"] for image in told["images"]}
