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
import yaml
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from glyphrun.bundle import BundleError
from glyphrun_serve.app import ServeSettings, build_app, model_card, run
from glyphrun_serve.limits import Limits
from glyphrun_serve.routes import Busy, Unanswered, http_app
from glyphrun_serve.schemas import ModelCard
from serving import assert_refused, save_untrained, upload

CONFIG = Path(__file__).parents[2] / "serve" / "configs" / "local.yaml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("bundles") / "untrained")


def test_the_example_config_is_valid_to_the_last_key(bundle: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    deployed = ServeDeploySchema.model_validate(config)
    assert [application.import_path for application in deployed.applications] == ["glyphrun_serve.app:build_app"]
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["applications"][0]) <= set(ServeApplicationSchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    settings = ServeSettings.model_validate({**config["applications"][0]["args"], "bundle": bundle})
    assert config["http_options"]["request_timeout_s"] > settings.limits.answer_s
    assert build_app(settings)


class StrainedReader:
    """A model that is loading, and under more requests than it can take: states that a healthy server cannot be put in."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Unanswered:
        if frames[0] == b"slow":
            await asyncio.sleep(60)
        if frames[0] == b"divided":
            return Unanswered("1 of the 2 members that must answer did: two late")
        raise Busy

    async def ready(self) -> bool:
        return False


def test_a_loading_busy_slow_or_divided_model_answers_503_in_the_same_shape(bundle: Path) -> None:
    app = http_app(StrainedReader(model_card(bundle)), Limits(answer_s=0.1))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [
                await client.get("/readyz"),
                await client.post("/v1/recognize", files=upload(b"any")),
                await client.post("/v1/recognize", files=upload(b"slow")),
                await client.post("/v1/recognize", files=upload(b"divided")),
            ]

    loading, busy, slow, divided = asyncio.run(ask())
    assert_refused(loading, 503, "not_ready", "still loading")
    assert_refused(busy, 503, "busy", "try again")
    assert_refused(slow, 503, "too_slow", "within 0.1 s")
    assert_refused(divided, 503, "no_quorum", "1 of the 2 members that must answer did: two late; try again")


def test_a_changed_bundle_is_refused_before_anything_starts(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    weights = changed / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        run(ServeSettings(bundle=changed), port=0)


def test_what_takes_requests_starts_without_torch() -> None:
    said = "import sys, glyphrun_serve.ingress; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "False\n"
