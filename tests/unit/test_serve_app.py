"""What can be said of a served model before a server runs: its config, its bundle, and a reader that cannot answer."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from glyphrun.bundle import BundleError
from glyphrun_serve.app import ServeSettings, application, build_app, run
from glyphrun_serve.graph import model_card
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Busy, Failed, Lost, Unanswered
from glyphrun_serve.routes import http_app
from glyphrun_serve.schemas import ColdStart, ModelCard
from glyphrun_serve.tokens import TokensError
from local_app import Alone
from serving import assert_refused, save_untrained, upload


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("bundles") / "untrained")


def test_options_of_a_deployment_that_the_graph_lacks_are_refused(bundle: Path) -> None:
    settings = ServeSettings(bundle=bundle)
    assert build_app(settings)
    assert application(settings, {"recognizer": {"autoscaling_config": {"max_replicas": 2}}})
    with pytest.raises(ValueError, match="no deployment 'http'; it has gateway, recognizer"):
        application(settings, {"http": {"num_replicas": 2}})
    apart = settings.model_copy(update={"preprocess": True})
    assert application(apart, {"preprocess": {"num_replicas": 2}})


class StrainedReader(Alone):
    """A model that is loading, and under more requests than it can take: states that a healthy server cannot be put in."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Unanswered | Failed:
        if frames[0] == b"slow":
            await asyncio.sleep(60)
        if frames[0] == b"divided":
            return Unanswered("1 of the 2 members that must answer did: two late")
        if frames[0] == b"poison":
            return Failed("RuntimeError: out of tune")
        raise Lost if frames[0] == b"killed" else Busy

    async def ready(self) -> dict[str, ColdStart]:
        return {}


def test_a_loading_busy_slow_or_divided_model_answers_503_in_the_same_shape(bundle: Path) -> None:
    app = http_app(StrainedReader(model_card(bundle)), Limits(answer_s=0.1))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [
                await client.get("/readyz"),
                await client.post("/v1/recognize", files=upload(b"any")),
                await client.post("/v1/recognize", files=upload(b"slow")),
                await client.post("/v1/recognize", files=upload(b"divided")),
                await client.post("/v1/recognize", files=upload(b"killed")),
                await client.post("/v1/recognize", files=upload(b"poison")),
            ]

    loading, busy, slow, divided, killed, poison = asyncio.run(ask())
    assert_refused(loading, 503, "not_ready", "still loading")
    assert_refused(busy, 503, "busy", "try again")
    assert_refused(slow, 503, "too_slow", "within 0.1 s")
    assert_refused(divided, 503, "no_quorum", "1 of the 2 members that must answer did: two late; try again")
    assert_refused(killed, 503, "broken_off", "try again")
    for refused in (loading, busy, slow, divided, killed):
        assert int(refused.headers["retry-after"]) > 0
    assert_refused(poison, 500, "model_failed", "RuntimeError: out of tune")
    assert "retry-after" not in poison.headers


def test_a_changed_bundle_is_refused_before_anything_starts(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    weights = changed / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        run(ServeSettings(bundle=changed), port=0)


def test_a_server_that_others_can_reach_is_not_started_without_tokens(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLYPHRUN_TOKENS", raising=False)
    with pytest.raises(TokensError, match="0.0.0.0 can be reached from elsewhere.*glyphrun token NAME"):
        run(ServeSettings(bundle=bundle), host="0.0.0.0", port=0)


def test_what_takes_requests_and_decodes_images_starts_without_torch() -> None:
    said = "import sys, glyphrun_serve.ingress, glyphrun_serve.preprocess; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_model_is_asked_for_by_its_name_or_version_and_an_unknown_one_is_told_what_there_is(bundle: Path) -> None:
    app = http_app(StrainedReader(model_card(bundle)), Limits())

    async def ask(name: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/recognize", params={"model": name}, files=upload(b"divided"))

    for known in ("untrained", "untrained@0"):
        assert_refused(asyncio.run(ask(known)), 503, "no_quorum", "2 members")
    assert_refused(
        asyncio.run(ask("untrained@1")), 404, "unknown_model", "no model 'untrained@1' here; ask for untrained"
    )
