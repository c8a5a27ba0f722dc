"""The manifests: each kind by its schema, offline; what binds the files by what must agree; scaling by Ray's own autoscaler."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint

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
(RAY_CLUSTER,) = (one for one in DOCUMENTS if one["kind"] == "RayCluster")
CLUSTER = RAY_CLUSTER["spec"]
GROUPS = CLUSTER["workerGroupSpecs"]
# Of the pods that Ray's operator makes, its pod template is a Kubernetes one.
PODS = {one["metadata"]["name"]: one["spec"]["template"] for one in PLAIN if one["kind"] in ("Deployment", "Job")} | {
    "head": CLUSTER["headGroupSpec"]["template"], **{group["groupName"]: group["template"] for group in GROUPS}
}  # fmt: skip
KUBERNETES = "1.30"
KUBERAY_SCHEMA = json.loads((Path(__file__).parent / "raycluster.schema.json").read_text())
# Settings that the manifests do not offer, and why.
NOT_OFFERED = {
    "DATABASE_URL_FILE": "the URL comes out of a Secret, as a variable", "ADMIN_KEY_FILE": "the key comes out of a Secret, as a variable",
    "REQUIRE_KEYS": "keys are always asked for beyond loopback", "PORT": "inside the pod; the Service has the one that is seen",
    "MODEL_ROOT": "a folder of models needs a volume of yours", "PRICES": "a file of prices needs a volume of yours",
    "RUNTIMES": "a pod has its image's environment only",
}  # fmt: skip


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


def test_the_ray_cluster_fits_the_schema_of_kuberay() -> None:
    jsonschema.Draft202012Validator.check_schema(KUBERAY_SCHEMA)
    jsonschema.validate(RAY_CLUSTER, KUBERAY_SCHEMA)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda spec: spec.update(workerGroups=[]), "'workerGroups' was unexpected"),
        (lambda spec: spec["workerGroupSpecs"][0].update(maxReplica=3), "'maxReplica' was unexpected"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"), "'maxReplicas' is a required property"),
        (lambda spec: spec["workerGroupSpecs"][0].update(replicas="0"), "is not of type 'integer'"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "is not of type 'string'"),
        (lambda spec: spec["autoscalerOptions"].update(version="v3"), "is not one of"),
        (lambda spec: spec["authOptions"].update(mode="tokens"), "is not one of"),
    ],
)
def test_the_schema_of_kuberay_finds_a_mistake(mistake: Callable[[dict[str, Any]], Any], said: str) -> None:
    broken = json.loads(json.dumps(RAY_CLUSTER))
    mistake(broken["spec"])
    with pytest.raises(jsonschema.ValidationError, match=re.escape(said)):
        jsonschema.validate(broken, KUBERAY_SCHEMA)


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


def read_by_autoscaler() -> dict[str, Any]:
    cluster = {"metadata": {"name": "effillm", "namespace": "effillm"}, "spec": CLUSTER}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return found


# As many devices of a class as the fleet may ask for; more processors than their group has, and a class without a group.
MOST = int(named("ConfigMap", "effillm-settings")["data"]["EFFILLM_AUTOSCALE"])
ASKED = bundles({"t4": 5, "a100": 1, "cpu": 9, "rtx-4090": 0, "h100": 1}, MOST)


def test_rays_own_autoscaler_would_start_the_pods_that_the_fleet_asks_for_as_far_as_there_are_any() -> None:
    """Its reading of the cluster and its choice of nodes, without a Kubernetes."""
    config = read_by_autoscaler()
    score = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    types, most = config["available_node_types"], config["max_workers"]
    started, unmet = get_nodes_for(types, {}, config["head_node_type"], most, ASKED, score)
    assert started == {"t4": MOST, "a100": 1, "cpu": 2}
    left = Counter(name for bundle in unmet for name in bundle)
    assert left == {f"{CLASS_PREFIX}h100": 1, f"{CLASS_PREFIX}cpu": MOST - 2}
    assert CLUSTER["autoscalerOptions"]["version"] == "v1", "which is the one asked here"


def test_rays_second_autoscaler_would_start_nothing_as_long_as_one_device_cannot_be_had() -> None:
    """Why the manifest asks for the first. When this fails, the second has become a choice."""
    assert launched_by_second([one for one in ASKED if one != {f"{CLASS_PREFIX}h100": 1}][-1:]) == {"t4": 1}
    assert launched_by_second(ASKED) == {}


def launched_by_second(asked: list[dict[str, float]]) -> dict[str, int]:
    """Pods that version 2 would start when the fleet asks for these devices."""
    config = AutoscalingConfig(read_by_autoscaler(), skip_content_hash=True)
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle) for bundle in asked])
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            cluster_resource_constraints=[ClusterResourceConstraint(resource_requests=requests)],
        )
    )
    counted: Counter[str] = Counter()
    for launch in reply.to_launch:
        counted[launch.instance_type] += launch.count
    return {name: count for name, count in counted.items() if name != config.get_head_node_type()}


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
    secret = re.compile("DATABASE_URL|ADMIN_KEY|TOKEN$")
    for template in PODS.values():
        for one in template["spec"]["containers"][0].get("env", []):
            assert one["name"] in known
            assert not secret.search(one["name"]) or "secretKeyRef" in one["valueFrom"]
    assert not [one for one in PLAIN if one["kind"] == "Secret"]
    assert not any(secret.search(name) for name in settings)


def test_every_setting_can_be_given_or_says_why_not() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    given = set(named("ConfigMap", "effillm-settings")["data"])
    given |= {one["name"] for pod in PODS.values() for one in pod["spec"]["containers"][0].get("env", [])}
    offered = {name.removeprefix(PREFIX) for name in given if name.startswith(PREFIX)}
    assert settings - offered == NOT_OFFERED.keys()
    assert offered <= settings


def test_a_pod_for_a_gpu_may_run_where_the_taint_of_gpus_keeps_others_away() -> None:
    for group in GROUPS:
        tolerated = group["template"]["spec"].get("tolerations", [])
        expected = (
            []
            if group["groupName"] == "cpu"
            else [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        )
        assert tolerated == expected


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
