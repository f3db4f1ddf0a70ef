"""The manifest for KubeRay has no field that its resource lacks, and Ray reads from it what Serve's replicas ask for.

Field names are those of RayService in ray.io/v1 and of pods in v1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeDeploySchema

from glyphrun.sweeps.beside import serve_needs
from glyphrun.sweeps.nodes import Node
from glyphrun.sweeps.preflight import Need
from glyphrun_serve.app import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy/rayservice.yaml"

PULL = {"Always", "IfNotPresent", "Never"}
# A mapping of fields; [one] is a list; a type is a value, a set its values; {str: …} has any keys.
RESOURCES = {"requests": {str: str}, "limits": {str: str}}
MOUNT = {"name": str, "mountPath": str, "subPath": str, "readOnly": bool}
EXPRESSION = {"key": str, "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"}, "values": [str]}
POD = {
    "metadata": {"labels": {str: str}, "annotations": {str: str}},
    "spec": {
        "containers": [
            {
                "name": str,
                "image": str,
                "imagePullPolicy": PULL,
                "env": [{"name": str, "value": str}],
                "ports": [{"containerPort": int, "name": str, "protocol": {"TCP", "UDP", "SCTP"}}],
                "resources": RESOURCES,
                "volumeMounts": [MOUNT],
            }
        ],
        "volumes": [
            {
                "name": str,
                "emptyDir": {"medium": str, "sizeLimit": str},
                "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
            }
        ],
        "nodeSelector": {str: str},
        "tolerations": [
            {
                "key": str,
                "operator": {"Exists", "Equal"},
                "value": str,
                "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
            }
        ],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [EXPRESSION]}]
                }
            }
        },
        "serviceAccountName": str,
        "terminationGracePeriodSeconds": int,
    },
}
RAY_SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}},
    "spec": {
        "serveConfigV2": str,
        "rayClusterConfig": {
            "rayVersion": str,
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {
                "upscalingMode": {"Default", "Aggressive", "Conservative"},
                "idleTimeoutSeconds": int,
                "resources": RESOURCES,
                "image": str,
                "imagePullPolicy": PULL,
            },
            "headGroupSpec": {
                "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
                "enableIngress": bool,
                "rayStartParams": {str: str},
                "template": POD,
            },
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "numOfHosts": int,
                    "idleTimeoutSeconds": int,
                    "rayStartParams": {str: str},
                    "template": POD,
                }
            ],
        },
    },
}
REQUIRED = {
    "spec.rayClusterConfig.headGroupSpec": {"rayStartParams", "template"},
    "spec.rayClusterConfig.workerGroupSpecs": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def manifest() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def wrong(value: Any, known: Any, at: str = "") -> list[str]:
    """Fields that are unknown, of another type or value, or missing."""
    if isinstance(known, type):
        return [] if type(value) is known else [f"{at} is no {known.__name__}"]
    if isinstance(known, set):
        return [] if value in known else [f"{at} is none of {sorted(known)}"]
    if isinstance(known, list):
        return [said for one in value for said in wrong(one, known[0], at)]
    if str in known:
        return [said for key, inner in value.items() for said in wrong(inner, known[str], f"{at}.{key}")]
    found = [f"{at} lacks {key}" for key in REQUIRED.get(at, set()) - set(value)]
    for key, inner in value.items():
        found += wrong(inner, known[key], f"{at}.{key}".strip(".")) if key in known else [f"{at} has no {key}"]
    return found


def test_every_field_is_one_of_the_resource():
    resource = manifest()
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    assert wrong(resource, RAY_SERVICE) == []
    cluster = resource["spec"]["rayClusterConfig"]
    cluster["workerGroupSpecs"][0]["minReplica"] = cluster["workerGroupSpecs"][0].pop("minReplicas")
    cluster["autoscalerOptions"]["upscalingMode"] = "Fast"
    assert wrong(resource, RAY_SERVICE) == [
        "spec.rayClusterConfig.autoscalerOptions.upscalingMode is none of ['Aggressive', 'Conservative', 'Default']",
        "spec.rayClusterConfig.workerGroupSpecs lacks minReplicas",
        "spec.rayClusterConfig.workerGroupSpecs has no minReplica",
    ]


def test_volumes_that_are_mounted_are_declared_and_start_parameters_are_text():
    cluster = manifest()["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_ray_reads_from_the_groups_what_the_replicas_ask_for():
    """The reading is the one that Ray's autoscaler does in the head's pod."""
    cluster = manifest()["spec"]["rayClusterConfig"]
    resource = {"metadata": {"name": "glyphrun", "namespace": "default"}, "spec": cluster}
    groups = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    resources = groups["t4"]["resources"]
    assert {name: resources[name] for name in ("CPU", "GPU", "on_demand", "accelerator_type:T4")} == {
        "CPU": 4,
        "GPU": 1,
        "on_demand": 1,
        "accelerator_type:T4": 1,
    }
    (replicas,) = serve_needs(ROOT / "deploy/serve.yaml")
    node = Node("t4", resources, resources)
    assert Need("replica", replicas.resources).asked.keys() <= node.total.keys()
    assert groups["t4"]["min_workers"] == 0 and groups["t4"]["max_workers"] >= replicas.workers


def test_the_serve_config_in_it_is_the_one_beside_it_and_serve_takes_every_key():
    """Serve's own validator lets misspelt keys of deployments pass, so they are looked up."""
    config = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(manifest()["spec"]["serveConfigV2"]) == config
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    settings = ServeSettings.model_validate(application["args"])
    (recognizer,) = application["deployments"]
    assert set(recognizer) <= set(DeploymentSchema.model_fields)
    assert set(recognizer["ray_actor_options"]) <= set(RayActorOptionsSchema.model_fields)
    assert set(recognizer.get("autoscaling_config") or {}) <= set(AutoscalingConfig.model_fields)
    options = recognizer["ray_actor_options"]
    assert (options["num_cpus"], options["num_gpus"]) == (settings.cpus, settings.gpus)


def test_the_ray_of_the_manifest_is_the_one_of_the_image():
    version = manifest()["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"FROM rayproject/ray:{version}-" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
