"""Whether the machines of a cluster file are such that Google's cloud starts them: its instances, read without a cloud.

Names and values are those of the resource ``instances`` of the Compute Engine API, version 1. Ray hands node_config over to
it unread, so that a mistake in one shows only when the first worker is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

INSTANCE = {
    "advancedMachineFeatures",
    "canIpForward",
    "confidentialInstanceConfig",
    "deletionProtection",
    "description",
    "disks",
    "displayDevice",
    "guestAccelerators",
    "hostname",
    "labels",
    "machineType",
    "metadata",
    "minCpuPlatform",
    "networkInterfaces",
    "networkPerformanceConfig",
    "params",
    "reservationAffinity",
    "resourcePolicies",
    "scheduling",
    "serviceAccounts",
    "shieldedInstanceConfig",
    "sourceInstanceTemplate",  # of Ray, which passes it on beside the instance
    "sourceMachineImage",
    "tags",
}
SCHEDULING = {
    "automaticRestart",
    "instanceTerminationAction",
    "locationHint",
    "maxRunDuration",
    "nodeAffinities",
    "onHostMaintenance",
    "onInstanceStopAction",
    "preemptible",
    "provisioningModel",
    "terminationTime",
}
T4, T4_RESOURCE, T4_COUNTS = "nvidia-tesla-t4", "accelerator_type:T4", (1, 2, 4)
GPU_DISK_GB = 100  # the image with its driver, the container, and torch with its CUDA libraries take 50


def is_spot(node_config: Mapping[str, Any]) -> bool:
    """True for a machine that Google may take back at any time."""
    scheduling = node_config.get("scheduling")
    if not isinstance(scheduling, dict):
        return False
    return scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible"))


def instance_problems(name: str, node_type: Mapping[str, Any], *, head: bool = False) -> list[str]:
    """What is wrong with a node type of a cluster file, a sentence each, with the key and what to do."""
    instance = node_type.get("node_config") or {}
    at = f"available_node_types.{name}.node_config"
    found = [
        *_unknown(at, instance, INSTANCE),
        *_machine(at, instance, node_type.get("resources") or {}),
        *_disks(at, instance),
        *_scheduling(at, instance, head=head),
    ]
    return [*found, *_accelerators(at, instance, node_type.get("resources") or {})]


def _unknown(at: str, given: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for key in given:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            yield f"{at}.{key} is not a key of the API" + (f": did you mean {near[0]}?" if near else "")


def _machine(at: str, instance: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    machine = instance.get("machineType")
    if not isinstance(machine, str):
        if "sourceInstanceTemplate" not in instance:
            yield f"{at}.machineType is missing: name one, such as n1-standard-8"
        return
    cores = re.fullmatch(r"[a-z]\w*-(?:standard|highmem|highcpu)-(\d+)", machine)
    if cores and resources.get("CPU", 0) > int(cores[1]):
        yield f"{at}.machineType {machine} has {cores[1]} processors, and resources.CPU says {resources['CPU']}: lower it"


def _disks(at: str, instance: Mapping[str, Any]) -> Iterator[str]:
    disks = instance.get("disks")
    if not isinstance(disks, list) or not disks:
        yield f"{at}.disks is missing: it needs one that boots, with initializeParams.sourceImage"
        return
    boots = [disk for disk in disks if isinstance(disk, dict) and disk.get("boot")]
    if len(boots) != 1:
        yield f"{at}.disks has {len(boots)} with boot: true: it needs exactly one"
        return
    made = boots[0].get("initializeParams") or {}
    if not made.get("sourceImage"):
        yield f"{at}.disks: the one that boots has no initializeParams.sourceImage: name an image with a driver"
    if not boots[0].get("autoDelete"):
        yield f"{at}.disks: the one that boots stays, and is paid for, when its node is gone: set autoDelete: true"
    size = int(made.get("diskSizeGb") or 0)
    if instance.get("guestAccelerators") and size < GPU_DISK_GB:
        yield f"{at}.disks: diskSizeGb is {size}: the driver, the container and torch need {GPU_DISK_GB}"


def _scheduling(at: str, instance: Mapping[str, Any], *, head: bool) -> Iterator[str]:
    scheduling = instance.get("scheduling", {})
    if not isinstance(scheduling, dict):
        # Ray's own examples have a list here, which the API does not define.
        yield f"{at}.scheduling is one mapping in the API, not a list: drop the dashes"
        return
    yield from _unknown(f"{at}.scheduling", scheduling, SCHEDULING)
    if head and is_spot(instance):
        yield f"{at}.scheduling makes the head a spot machine, and with it goes the whole cluster: leave it on demand"
    if is_spot(instance):
        if scheduling.get("automaticRestart"):
            yield f"{at}.scheduling.automaticRestart is refused for spot machines: set it to false"
        if scheduling.get("provisioningModel") == "SPOT" and scheduling.get("instanceTerminationAction") != "DELETE":
            yield (
                f"{at}.scheduling.instanceTerminationAction is not DELETE: machines that were taken back would stay as "
                "stopped ones, with disks that are paid for"
            )


def _accelerators(at: str, instance: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    cards = instance.get("guestAccelerators") or []
    count = sum(int(card.get("acceleratorCount", 0)) for card in cards)
    if count != resources.get("GPU", 0):
        yield (
            f"{at}.guestAccelerators has {count} GPUs, and resources.GPU says {resources.get('GPU', 0)}: the autoscaler "
            "goes by resources; make them equal"
        )
    if not cards:
        return
    scheduling = instance.get("scheduling")
    if isinstance(scheduling, dict) and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield f"{at}.scheduling.onHostMaintenance must be TERMINATE: machines with a GPU cannot be moved"
    items = (instance.get("metadata") or {}).get("items") or []
    driver = {str(item.get("key")): item.get("value") for item in items}.get("install-nvidia-driver")
    if str(driver) != "True":
        yield f'{at}.metadata.items lacks install-nvidia-driver: without it the image starts with no driver; set it to "True"'
    for card in cards:
        if card.get("acceleratorType") != T4:
            continue
        if not str(instance.get("machineType", "")).startswith("n1-"):
            yield f"{at}.machineType is {instance.get('machineType')}, and a T4 goes into n1 machines alone"
        if card.get("acceleratorCount") not in T4_COUNTS:
            yield f"{at}.guestAccelerators: a machine has 1, 2 or 4 T4, not {card.get('acceleratorCount')}"
        if not resources.get(T4_RESOURCE):
            yield (
                f"available_node_types.{at.split('.')[1]}.resources lacks {T4_RESOURCE}: trials that ask for "
                "accelerator_type T4 would not start this type from zero; set it to 1"
            )
