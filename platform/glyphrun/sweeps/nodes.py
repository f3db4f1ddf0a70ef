"""The nodes that a sweep can use: those of a running cluster, and those that its autoscaler may start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.state import available_resources_per_node

from glyphrun.sweeps.errors import ExperimentError

CLUSTER_FILE = "GLYPHRUN_CLUSTER"
ON_THE_HEAD = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves the file on the head node
KEPT = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True)
class Node:
    """total and free: amounts by Ray's resource names, memory in bytes; starts: true if it runs once it is asked for."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    starts: bool = False


def cluster_nodes(cluster_file: Path | None = None) -> list[Node]:
    """The nodes of the Ray that this process is connected to, and those that the cluster file lets it start.

    Without a file it is the one that GLYPHRUN_CLUSTER names or, on the head of a cluster of ``ray up``, that one's own.
    """
    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    running = [
        Node(_name(node), _kept(node["Resources"]), _kept(free.get(node["NodeID"], node["Resources"])))
        for node in alive
    ]
    path = cluster_file or _own_file()
    if path is None:
        return running
    groups = [node["Labels"].get("ray.io/node-group") for node in alive]
    room = _declared(path).get("max_workers", 0) - (len(alive) - 1)
    may_start = [node for node in file_nodes(path) if node.starts]
    for group in filter(None, groups):
        place = next((place for place, node in enumerate(may_start) if node.name == group), None)
        if place is not None:
            may_start.pop(place)
    return running + may_start[: max(room, 0)]


def file_nodes(path: Path) -> list[Node]:
    """The nodes of a cluster file: the head, and as many of each type as it may start. Raises ExperimentError."""
    declared = _declared(path)
    head, most = declared.get("head_node_type"), declared.get("max_workers", 0)
    nodes: list[Node] = []
    for name, kind in declared["available_node_types"].items():
        resources = _kept(kind.get("resources", {}))
        if name == head:
            nodes.insert(0, Node(name, resources, resources))
        nodes += [Node(name, resources, resources, starts=True)] * kind.get("max_workers", 0 if name == head else most)
    return nodes


def local_node(cpus: int, gpus: int, object_store: int) -> Node:
    """This machine as a Ray that a command starts for itself."""
    total = {"CPU": float(cpus), "GPU": float(gpus), "object_store_memory": float(object_store)}
    cards = get_accelerator_manager_for_resource("GPU") if gpus else None
    kind = cards.get_current_node_accelerator_type() if cards is not None else None
    if kind is not None:
        total[f"accelerator_type:{kind}"] = 1.0
    return Node("this machine", total, total)


def serve_runs() -> bool:
    """True if Serve runs on the Ray that this process is connected to; what it holds it keeps."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def expect_shared(folder: Path) -> None:
    """Raises ExperimentError if trials may run on other nodes, unless the cache, where the folder is, was set for them."""
    if len(cluster_nodes()) > 1 and not os.environ.get("GLYPHRUN_CACHE"):
        raise ExperimentError(
            f"trials of this cluster would not see {folder}, from which the run is copied to its URI: set GLYPHRUN_CACHE to "
            "a folder that all nodes share"
        )


def _own_file() -> Path | None:
    if named := os.environ.get(CLUSTER_FILE):
        return Path(named).expanduser()
    # A Ray that this command has started for itself on that machine is not the cluster of the file.
    own = ON_THE_HEAD.expanduser()
    return own if os.environ.get("RAY_ADDRESS") and own.exists() else None


def _declared(path: Path) -> dict[str, Any]:
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read as a cluster file: {error}") from None
    if not isinstance(declared, dict) or not isinstance(declared.get("available_node_types"), dict):
        raise ExperimentError(f"{path} is no cluster file of Ray: it has no available_node_types")
    return declared


def _name(node: Mapping[str, Any]) -> str:
    return str(node["Labels"].get("ray.io/node-group") or node.get("NodeManagerHostname") or node["NodeID"][:8])


def _kept(resources: Mapping[str, float]) -> dict[str, float]:
    """Without what Ray adds for itself: a resource for each address, and those of placement groups."""
    return {
        name: float(amount)
        for name, amount in resources.items()
        if name in KEPT or not (name.startswith(("node:", "bundle")) or "_group_" in name)
    }
