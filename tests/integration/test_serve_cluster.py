"""A model served on a cluster: replicas and T4 nodes come with the load and go with it, and one of them is taken away."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from glyphrun_serve.ports import free_port
from load import load
from local_cluster import BIN, Head, local_cluster
from serving import picture
from tiny_bundles import save_tiny_bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRACKLET = [picture(seed) for seed in (2, 3, 4)]
CLIENTS = 4


@dataclass(frozen=True)
class Served:
    """A served model, and the cluster that it is on."""

    head: Head
    url: str

    def replicas(self) -> int:
        """How many of the recognizer take requests."""
        token = Path(self.head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = httpx.get(
            f"{self.head.dashboard}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        deployments = answer.raise_for_status().json()["applications"]["glyphrun"]["deployments"]
        return sum(replica["state"] == "RUNNING" for replica in deployments["recognizer"]["replicas"])

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=10).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What t4.yaml deploys, on one node at least and two at most, and sooner than anybody would want it in earnest."""
    bundle = save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "served", "query-digits-nano", vote_floor=0.0)
    config = yaml.safe_load((ROOT / "serve/configs/t4.yaml").read_text())
    port = free_port("127.0.0.1", 0)
    config["http_options"].update(host="127.0.0.1", port=port)
    config["proxy_location"] = "HeadOnly"
    (application,) = config["applications"]
    application["args"].update(bundle=str(bundle), preprocess=False)
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    deployments.pop("preprocess")
    # The head has one processor, which is the controller's and the proxy's too.
    deployments["gateway"]["ray_actor_options"]["num_cpus"] = 0
    deployments["recognizer"]["autoscaling_config"].update(
        max_replicas=2,
        target_ongoing_requests=0.5,
        upscale_delay_s=1,
        downscale_delay_s=2,
        metrics_interval_s=0.2,
        look_back_period_s=1,
    )
    deployments["recognizer"]["ray_actor_options"]["num_gpus"] = 1
    application["deployments"] = list(deployments.values())
    file = bundle.with_name("serve.yaml")
    file.write_text(yaml.safe_dump(config))
    with local_cluster(t4_nodes=2) as head:
        done = subprocess.run(
            [BIN / "serve", "deploy", str(file), "--address", head.dashboard],
            env={**head.environment, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        yield Served(head, f"http://127.0.0.1:{port}")


def test_replicas_and_t4_nodes_follow_the_load_and_a_lost_node_costs_no_request(served: Served) -> None:
    until(served.ready)
    assert (served.replicas(), served.head.t4_nodes()) == (1, 1)
    with load(served.url, [TRACKLET] * CLIENTS, pause_s=0.05) as told:
        until(lambda: (served.replicas(), served.head.t4_nodes()) == (2, 2))
        told.after(30)
        assert served.head.take_back(1) == 1
        until(lambda: served.replicas() == 1)
        told.after(30)
        until(lambda: served.head.t4_nodes() == 2)
    assert told.failures == []
    until(lambda: (served.replicas(), served.head.t4_nodes()) == (1, 1))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
