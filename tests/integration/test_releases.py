"""Releases of a real server under load: a canary, its promotion, a rollback, a shadow, and a canary that ends itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest
import ray
from click.testing import Result
from ray import serve
from typer.testing import CliRunner

from glyphrun.cli import app
from glyphrun.registry import Registry
from glyphrun_serve.announced import AUTH
from glyphrun_serve.app import APPLICATION, Server, ServeSettings, run
from glyphrun_serve.board_actor import known_board
from glyphrun_serve.release_turn import release_turn
from load import Load, load
from serving import picture
from tiny_bundles import save_tiny_bundle

pytestmark = pytest.mark.slow

CONFIG = """
http_options: {{request_timeout_s: 40}}
applications:
  - name: glyphrun
    route_prefix: /
    import_path: glyphrun_serve.app:build_app
    args:
      bundle: {bundle}
      batching: {batching}
      cpus: 0.5
"""
SLOW = "{most: 64, wait_s: 0.5}"
ONE_BY_ONE = "{most: 1, wait_s: 0}"
CROWDED = """
    deployments:
      - {name: recognizer, max_ongoing_requests: 2, max_queued_requests: 1}
"""
HOLD = """
import sys, time, ray
from glyphrun_serve.release_turn import release_turn
ray.init(address=sys.argv[1], log_to_driver=False)
with release_turn(print):
    print("taken", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("releases")
    registry = Registry(folder / "registry")
    for seed in (1, 2, 3):
        bundle = save_tiny_bundle(folder / f"seed-{seed}", "query-digits-nano", seed=seed, vote_floor=0.0)
        registry.promote(bundle, "tiny", at=datetime(2026, 1, seed, tzinfo=UTC))
    return registry


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[Server]:
    # A replica that is not asked any more need not wait for more requests.
    brief = {"recognizer": {"graceful_shutdown_wait_loop_s": 0.1}}
    settings = ServeSettings(bundle=registry.resolve("tiny@1"), precision="float32", cpus=0.5)
    with run(settings, port=0, options=brief) as server:
        yield server


def coming(told: Load, count: int) -> Counter[str]:
    """The versions of so many answers from now on."""
    start = len(told.answers)
    told.after(count)
    return Counter(answer["model"]["version"] for answer in told.answers[start : start + count])


@pytest.fixture
def glyphrun(registry: Registry, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a verb against this test's own Ray and registry."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("GLYPHRUN_REGISTRY", registry.root)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_no_request_fails_while_versions_come_and_go(
    server: Server, registry: Registry, glyphrun: Callable[..., Result], tmp_path: Path
) -> None:
    def served() -> list[tuple[str, str | None]]:
        models = httpx.get(f"{server.url}/v1/models", trust_env=False).json()["models"]
        return [(model["version"], model["role"]) for model in models]

    def deployed(*words: str) -> str:
        done = glyphrun(*words)
        assert done.exit_code == 0, done.output
        return done.output

    with load(server.url, [[picture(1)], [picture(2)]], pause_s=0.06) as told:
        assert coming(told, 5) == {"1": 5}
        # A shadow answers nobody.
        output = deployed("deploy", "tiny@2", "--shadow", "--for", "1", "--latency-ms", "5000")
        assert "read alike" in output and "glyphrun deploy tiny@2" in output
        assert served() == [("1", "champion"), ("2", "challenger")]
        assert {answer["model"]["version"] for answer in told.answers} == {"1"}
        # It becomes a canary without being loaded again, then the champion.
        deployed("deploy", "tiny@2", "--canary", "10", "--no-watch", "--latency-ms", "5000")
        assert 5 <= coming(told, 60)["2"] <= 7
        # Whoever keeps the plan dies and is started again: it asks the gateways for it.
        board = known_board()
        before = ray.get(board.status.remote())
        ray.kill(board, no_restart=False)
        within = monotonic() + 60
        while (
            now := ray.get(board.status.remote())
        ).seen.champion.items >= before.seen.champion.items or not now.gateways:
            assert monotonic() < within
            sleep(0.1)
        assert now.table == before.table
        coming(told, 10)
        assert 5 <= coming(told, 60)["2"] <= 7
        deployed("deploy", "tiny@2")
        assert coming(told, 20) == {"2": 20}
        assert served() == [("2", None)]
        assert list(serve.status().applications) == [APPLICATION]
        # Batches that wait for half a second make a challenger too slow, which ends it.
        slow = tmp_path / "slow.yaml"
        slow.write_text(CONFIG.format(bundle=registry.resolve("tiny@3"), batching=SLOW))
        given_up = glyphrun(
            "deploy", "tiny", "--canary", "50", "--config", str(slow), "--least", "10", "--latency-ms", "400"
        )
        assert given_up.exit_code == 1
        assert "Version 3 was given up: its 95th percentile is" in given_up.output
        assert coming(told, 20) == {"2": 20}
        assert served() == [("2", None)]
        # One that has no room for its share fails, which ends it too; its champion answers what it did not.
        crowded = tmp_path / "crowded.yaml"
        crowded.write_text(CONFIG.format(bundle=registry.resolve("tiny@3"), batching=ONE_BY_ONE) + CROWDED)
        with load(server.url, [[picture(3)]] * 16, pause_s=0.01) as many:
            given_up = glyphrun("deploy", "tiny", "--canary", "50", "--config", str(crowded), "--latency-ms", "5000")
        assert given_up.exit_code == 1
        assert "Version 3 was given up: it failed on" in given_up.output
        assert many.failures == []
        # Back to what was served at first, with what it was served with.
        output = deployed("rollback", "tiny", "--to", "1")
        assert "The server answers with version 1 in place of 2" in output
        assert coming(told, 20) == {"1": 20}
    assert told.failures == []
    assert list(dict.fromkeys(answer["model"]["version"] for answer in told.answers)) == ["1", "2", "3"]
    kept = registry.deployments("tiny")
    assert [(said.version, said.how) for said in kept] == [
        (2, "shadow"),
        (2, "canary"),
        (1, "serve"),
        (2, "deploy"),
        (3, "canary"),
        (3, "canary"),
        (1, "rollback"),
    ]
    assert kept[-1].settings == kept[2].settings and kept[4].settings["batching"]["wait_s"] == 0.5


def test_releases_take_turns_and_a_process_that_is_killed_gives_up_its_own(server: Server) -> None:
    address = ray.get_runtime_context().gcs_address
    told: list[str] = []
    command = [sys.executable, "-c", HOLD, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, AUTH: "token"}) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "taken\n"

            def say(what: str) -> None:
                told.append(what)
                other.kill()

            with release_turn(say):
                assert other.wait(timeout=10) == -signal.SIGKILL
        finally:
            other.kill()
    assert told == ["Another process changes what the server serves: waiting until it has ended"]
    with release_turn(told.append):  # nobody has it
        pass
    assert len(told) == 1
