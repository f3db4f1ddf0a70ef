"""A cluster that grows and shrinks, as processes of this machine: Ray's own autoscaler, with a provider of local nodes."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import ray._private.parameter
import yaml
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from glyphrun_serve.ports import free_ports

BIN = Path(sys.executable).parent
T4 = {"CPU": 1, "GPU": 1, "accelerator_type:T4": 1, "object_store_memory": 100_000_000}
T4_NAME = "t4-spot"


class LocalNodes(FakeMultiNodeProvider):
    """Ray's own, where each node unpacks uploads in a folder of its own, as on machines.

    In one folder a second node empties the working folder in which jobs of the first run, and the last takes it along.
    """

    def _create_node_with_resources_and_labels(self, node_config: Any, tags: Any, count: int, *given: Any) -> None:
        with self.lock:
            folder = f"runtime_resources_{self._next_node_id + 1}"
            with patch.object(ray._private.parameter, "RayParams", partial(RayParams, runtime_env_dir_name=folder)):
                super()._create_node_with_resources_and_labels(node_config, tags, count, *given)


@dataclass(frozen=True)
class Head:
    """A running head; environment: what commands need to reach it, as a person would have it."""

    dashboard: str
    environment: dict[str, str]
    process: psutil.Process

    def t4_nodes(self) -> int:
        """How many T4 nodes there are."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = httpx.get(f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=60)
        nodes = answer.raise_for_status().json()["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" and "accelerator_type:T4" in node["resources_total"] for node in nodes)

    def take_back(self, most: int | None = None) -> int:
        """Kill T4 nodes, as a cloud does with spot machines: all, or so many at most; how many it were."""
        taken = 0
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if (
                    taken != most
                    and process.name() == "raylet"
                    and process.environ().get("RAY_NODE_TYPE_NAME") == T4_NAME
                ):
                    process.kill()  # its workers end without it
                    taken += 1
        return taken


@contextmanager
def local_cluster(t4_nodes: int) -> Iterator[Head]:
    """A head with one processor and no T4 node, which starts up to so many; at the end it leaves nothing behind.

    It asks for a token, since whoever reaches a job server runs what he likes.
    """
    folder = Path(tempfile.mkdtemp(prefix="gr", dir="/tmp"))  # sockets inside it must have short paths
    port, dashboard, agent, client = free_ports(4)
    (folder / "cluster.yaml").write_text(
        yaml.safe_dump(_cluster_file(f"{ray.util.get_node_ip_address()}:{port}", t4_nodes))
    )
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLYPHRUN_"))},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    of_head = {
        "PYTHONPATH": str(Path(__file__).parent),  # of this module; jobs have their code from the upload
        "RAY_AUTH_MODE": "token",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_health_check_period_ms": "1000",  # a node that is gone is missed after five
        "GLYPHRUN_CLUSTER": str(folder / "cluster.yaml"),
    }
    command = [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=1", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--object-store-memory=150000000"]
    command += [f"--temp-dir={folder / 'ray'}", f"--autoscaling-config={folder / 'cluster.yaml'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**environment, **of_head}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not (_answers(dashboard) and _answers(agent)):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield Head(f"http://127.0.0.1:{dashboard}", environment, psutil.Process(process.pid))
    finally:
        _end(process, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _cluster_file(gcs: str, t4_nodes: int) -> dict[str, Any]:
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "local",
        "max_workers": t4_nodes,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 10,
        "auth": {},
        "provider": {
            "type": "external",
            "module": "local_cluster.LocalNodes",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": gcs,
        },
        "head_node_type": "ray.head.default",  # as the provider names it, whatever the file says
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            T4_NAME: {"resources": T4, "node_config": {}, "min_workers": 0, "max_workers": t4_nodes},
        },
        # Empty, and missed where they are absent.
        **{f"{name}_commands": [] for name in commands},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


def _answers(port: int) -> bool:
    with socket.socket() as door:
        return door.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End the head and all that came of it: its children, and what has lost its parent but names the folder."""
    ours: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        ours = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    while ours := [*ours, *(other for other in psutil.process_iter() if _names(other, folder))]:
        for one in ours:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        _, ours = psutil.wait_procs(ours, timeout=10)


def _names(process: psutil.Process, folder: str) -> bool:
    try:
        return folder in " ".join(process.cmdline()) or folder in process.environ().get("RAY_AUTH_TOKEN_PATH", "")
    except psutil.Error:
        return False
