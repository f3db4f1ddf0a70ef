"""The cluster file starts what sweeps and Serve ask for, as Ray's own validator and autoscaler read it, and no other."""

from __future__ import annotations

import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from glyphrun.cluster_file import cluster_file_problems
from glyphrun.gcp import instance_problems, is_spot
from glyphrun.sweeps.beside import serve_needs
from glyphrun.sweeps.policies import Resources

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster.yaml"
PLACES = ("YOUR_PROJECT_ID", "YOUR_FILESTORE_ADDRESS")


def declared() -> dict[str, Any]:
    filled = FILE.read_text(encoding="utf-8")
    for place in PLACES:
        filled = filled.replace(place, "given")
    return yaml.safe_load(filled)


def problems(cluster: dict[str, Any], tmp_path: Path) -> list[str]:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster), encoding="utf-8")
    return [said.removeprefix(f"{file}: ") for said in cluster_file_problems(file)]


def test_only_what_is_yours_is_yet_to_fill_in(tmp_path):
    assert problems(declared(), tmp_path) == []
    said = cluster_file_problems(FILE)
    assert {place for place in PLACES if any(place in one for one in said)} == set(PLACES)
    assert all("put yours" in one for one in said)
    assert f"{FILE}: provider.project_id still has YOUR_PROJECT_ID: put yours" in said


def test_the_head_is_on_demand_and_t4_start_from_zero_and_end_when_idle():
    cluster = declared()
    kinds = cluster["available_node_types"]
    assert cluster["provider"]["type"] == "gcp"
    assert {name: is_spot(kind["node_config"]) for name, kind in kinds.items()} == {
        "head": False,
        "t4-spot": True,
        "t4-serve": False,
    }
    assert "GPU" not in kinds["head"]["resources"]
    for name in ("t4-spot", "t4-serve"):
        assert kinds[name]["min_workers"] == 0 < kinds[name]["max_workers"]
        assert 0 < kinds[name]["idle_timeout_s"] <= 900
    assert cluster["idle_timeout_minutes"] > 0


def test_trials_start_spot_machines_and_replicas_start_those_on_demand():
    """By the autoscaler that `ray up` starts, from no worker at all."""
    cluster = declared()
    config = AutoscalingConfig(deepcopy(cluster), skip_content_hash=True)

    def started(resources: dict[str, float], count: int) -> dict[str, int]:
        requests = [ResourceRequestUtil.make({name: amount for name, amount in resources.items() if amount})] * count
        reply = ResourceDemandScheduler(event_logger=None).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=config.get_node_type_configs(),
                max_num_nodes=config.get_max_num_nodes(),
                resource_requests=ResourceRequestUtil.group_by_count(requests),
            )
        )
        return {launch.instance_type: launch.count for launch in reply.to_launch}

    trial = Resources(cpus=4, gpus=1, accelerator_type="T4")
    assert started(trial.needed(1), 3) == {"t4-spot": 3}
    assert started(Resources().needed(1), 2) == {"t4-spot": 2}
    (replicas,) = serve_needs(ROOT / "deploy/serve.yaml")
    assert started(replicas.asked, replicas.workers) == {"t4-serve": 2}


def test_images_and_the_ray_of_the_lock_file_are_of_one_version():
    packages = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    ray_version = next(line.split("==")[1] for line in packages if line.startswith("ray=="))
    docker = declared()["docker"]
    for image in (docker["head_image"], docker["worker_image"]):
        assert image.startswith(f"rayproject/ray:{ray_version}-py311")
    assert docker["worker_image"].endswith("-gpu")
    assert f"FROM {docker['worker_image']}\n" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"


def changed(name: str, change: Any) -> list[str]:
    kind = deepcopy(declared()["available_node_types"][name])
    change(kind)
    return instance_problems(name, kind, head=name == "head")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("t4-spot", lambda kind: kind["node_config"].pop("machineType"), "machineType is missing"),
        ("t4-spot", lambda kind: kind["node_config"].pop("disks"), "disks is missing"),
        ("t4-spot", lambda kind: kind["node_config"]["disks"][0].update(boot=False), "disks has 0 with boot: true"),
        ("t4-spot", lambda kind: kind["node_config"]["disks"][0].update(autoDelete=False), "set autoDelete: true"),
        (
            "t4-spot",
            lambda kind: kind["node_config"]["disks"][0]["initializeParams"].pop("sourceImage"),
            "no initializeParams.sourceImage",
        ),
        (
            "t4-spot",
            lambda kind: kind["node_config"]["disks"][0]["initializeParams"].update(diskSizeGb=30),
            "diskSizeGb is 30",
        ),
        ("t4-spot", lambda kind: kind["node_config"].pop("metadata"), "lacks install-nvidia-driver"),
        ("t4-spot", lambda kind: kind["node_config"].pop("guestAccelerators"), "has 0 GPUs, and resources.GPU says 1"),
        (
            "t4-spot",
            lambda kind: kind["node_config"]["guestAccelerators"][0].update(acceleratorCount=3),
            "a machine has 1, 2 or 4 T4, not 3",
        ),
        (
            "t4-spot",
            lambda kind: kind["node_config"].update(machineType="n2-standard-8"),
            "a T4 goes into n1 machines alone",
        ),
        ("t4-spot", lambda kind: kind["node_config"].update(machineType="n1-standard-4"), "has 4 processors, and"),
        (
            "t4-serve",
            lambda kind: kind["node_config"]["scheduling"].update(onHostMaintenance="MIGRATE"),
            "onHostMaintenance must be TERMINATE",
        ),
        (
            "t4-spot",
            lambda kind: kind["node_config"].update(
                scheduling=[{"preemptible": True}, {"onHostMaintenance": "TERMINATE"}]
            ),
            "scheduling is one mapping in the API, not a list",
        ),
        (
            "t4-spot",
            lambda kind: kind["node_config"]["scheduling"].update(instanceTerminationAction="STOP"),
            "instanceTerminationAction is not DELETE",
        ),
        (
            "t4-spot",
            lambda kind: kind["node_config"]["scheduling"].update(automaticRestart=True),
            "automaticRestart is refused for spot machines",
        ),
        ("t4-spot", lambda kind: kind["resources"].pop("accelerator_type:T4"), "resources lacks accelerator_type:T4"),
        (
            "head",
            lambda kind: kind["node_config"]["scheduling"].update(provisioningModel="SPOT"),
            "makes the head a spot",
        ),
        (
            "head",
            lambda kind: kind["node_config"].update(guestAccelerator=[]),
            "guestAccelerator is not a key of the API: did you mean guestAccelerators?",
        ),
        (
            "head",
            lambda kind: kind["node_config"]["scheduling"].update(provisionModel="SPOT"),
            "provisionModel is not a key of the API: did you mean provisioningModel?",
        ),
    ],
)
def test_a_machine_that_would_not_start_or_be_of_use_is_named(name, change, said):
    found = changed(name, change)
    assert any(said in one for one in found), found
    assert all(one.startswith(f"available_node_types.{name}.") for one in found)


def test_what_ray_refuses_is_one_sentence(tmp_path):
    cluster = declared()
    cluster["available_node_types"]["t4-spot"]["resources"]["CPU"] = 0.5
    assert problems(cluster, tmp_path) == ["available_node_types.t4-spot.resources.CPU: 0.5 is not of type 'integer'"]
    assert any("idle_minutes" in said for said in problems({**declared(), "idle_minutes": 5}, tmp_path))
    (said,) = problems({**declared(), "head_node_type": "none"}, tmp_path)
    assert "`head_node_type` must be one of `available_node_types`" in said


def test_a_file_that_is_none_is_named(tmp_path):
    assert "cannot be read" in cluster_file_problems(tmp_path / "absent.yaml")[0]
    (tmp_path / "empty.yaml").write_text("")
    assert "holds no keys" in cluster_file_problems(tmp_path / "empty.yaml")[0]
