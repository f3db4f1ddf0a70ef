"""Releases of a real server under load: a canary, its promotion, a rollback, a shadow, and a canary that ends itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import ray
from click.testing import Result
from ray import serve
from typer.testing import CliRunner

from glyphrun.cli import app
from glyphrun.registry import Registry
from glyphrun_serve.app import APPLICATION, Server, ServeSettings, run
from load import Load, load
from serving import picture
from tiny_bundles import save_tiny_bundle

pytestmark = pytest.mark.slow

SLOW = """
http_options: {{request_timeout_s: 40}}
applications:
  - name: glyphrun
    route_prefix: /
    import_path: glyphrun_serve.app:build_app
    args:
      bundle: {bundle}
      batching: {{most: 64, wait_s: 0.5}}
      cpus: 0.5
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
        deployed("deploy", "tiny@2")
        assert coming(told, 20) == {"2": 20}
        assert served() == [("2", None)]
        assert list(serve.status().applications) == [APPLICATION]
        # Batches that wait for half a second make a challenger too slow, which ends it.
        slow = tmp_path / "slow.yaml"
        slow.write_text(SLOW.format(bundle=registry.resolve("tiny@3")))
        given_up = glyphrun(
            "deploy", "tiny", "--canary", "50", "--config", str(slow), "--least", "10", "--latency-ms", "400"
        )
        assert given_up.exit_code == 1
        assert "Version 3 was given up: its 95th percentile is" in given_up.output
        assert coming(told, 20) == {"2": 20}
        assert served() == [("2", None)]
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
        (1, "rollback"),
    ]
    assert kept[-1].settings == kept[2].settings and kept[4].settings["batching"]["wait_s"] == 0.5
