"""Requests name an adapter, and each is answered by it alone, whatever else is asked at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from commands import refusal
from glyphrun.adapter_shelf import AdapterShelf, shelve
from glyphrun.adapters import AdapterError, merge_into_bundle
from glyphrun.bundle import load_engine, read_manifest
from glyphrun.engine import Engine
from glyphrun.models.lora import LoraSettings
from glyphrun.prediction import Prediction
from glyphrun.shelved import Shelved
from glyphrun_serve.app import ServeSettings, build_app
from glyphrun_serve.batching import Batching
from glyphrun_serve.config_check import ConfigError, read_config
from glyphrun_serve.graph import adapted_card, model_card
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Failed
from glyphrun_serve.preprocess import Preprocess
from glyphrun_serve.reading import QueuedReader
from glyphrun_serve.routes import http_app
from local_app import EngineReader, Several, no_log, served
from lora_recognizers import adapt
from serving import assert_refused, picture, save_untrained, upload

CONFIGS = Path(__file__).parents[2] / "serve" / "configs"
ADAPTERS = {"ink": LoraSettings(rank=2), "night": LoraSettings(rank=5, targets=("decoder",))}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("bundles") / "untrained")


@pytest.fixture(scope="module")
def folders(bundle: Path) -> dict[str, Path]:
    return {name: adapt(bundle, bundle.with_name(name), lora, seed=len(name)) for name, lora in ADAPTERS.items()}


@pytest.fixture(scope="module")
def shelved(bundle: Path, folders: dict[str, Path]) -> dict[str, Shelved]:
    return shelve(bundle, read_manifest(bundle), folders, 2**24)


@pytest.fixture(scope="module")
def engines(bundle: Path, folders: dict[str, Path]) -> dict[str, Engine]:
    """The base, and what each adapter makes of it once it is merged."""
    for name, folder in folders.items():
        merge_into_bundle(bundle, [folder], bundle.with_name(f"{name}-merged"))
    homes = {"": bundle} | {name: bundle.with_name(f"{name}-merged") for name in folders}
    return {name: load_engine(home, torch.device("cpu"), "float32") for name, home in homes.items()}


def test_items_that_wait_together_are_each_read_with_their_own_adapter(
    bundle: Path, shelved: Mapping[str, Shelved], engines: Mapping[str, Engine]
) -> None:
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    preprocess = Preprocess(engine.processors)
    # Room for one at a time, so that each is dropped again and again.
    shelf = AdapterShelf(engine, shelved, max(one.size for one in shelved.values()))
    asked = [(name, [picture(seed)]) for seed in range(4) for name in engines]

    async def ask() -> tuple[list[Any], list[Any], Any]:
        reader = QueuedReader(engine, Batching(most=8), 0, shelf)
        items = [(name, await preprocess.prepare(frames, "x")) for name, frames in asked]
        read = asyncio.gather(*(reader.recognize(item, True, name) for name, item in items))
        embedded = asyncio.gather(*(reader.embed(item, name) for name, item in items[:3]))
        return await read, await embedded, await reader.recognize(items[0][1], True, "dusk")

    read, embedded, unknown = asyncio.run(ask())
    for (name, frames), found in zip(asked, read, strict=True):
        assert isinstance(found, Prediction)
        (wanted,) = engines[name].read([frames], explain=True)
        assert [one.text for one in found.n_best] == [one.text for one in wanted.n_best]
        assert [one.log_prob for one in found.n_best] == pytest.approx(
            [one.log_prob for one in wanted.n_best], rel=1e-4, abs=1e-4
        )
        assert ("adapter" in found.timings) == (name != "")
        assert found.batch <= 4
    for (name, frames), features in zip(asked, embedded, strict=False):
        own = engines[name]
        (wanted_features,) = own.embed([own.prepare(frames, name="x")])
        assert features.pooled == pytest.approx(wanted_features.pooled, abs=1e-4)
    assert len({found.confidence for found in read[:3]}) == 3
    assert isinstance(unknown, Failed)


def test_an_adapter_is_asked_for_by_name_or_by_the_header_of_serve(
    bundle: Path, shelved: Mapping[str, Shelved]
) -> None:
    base = model_card(bundle)
    cards = [base, *(adapted_card(base, name, adapter) for name, adapter in shelved.items())]
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    app = http_app(Several(*(EngineReader(engine, card) for card in cards)), Limits(), log=no_log)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False) as client:

        def ask(model: str | None = None, path: str = "/v1/recognize", **headers: str) -> httpx.Response:
            params = {} if model is None else {"model": model}
            return client.post(path, params=params, headers=headers, files=upload(picture(1)))

        assert [card["name"] for card in client.get("/v1/models").json()["models"]] == [
            "untrained",
            "untrained:ink",
            "untrained:night",
        ]
        assert ask().json()["model"]["name"] == "untrained"
        for answer in (
            ask("untrained:ink"),
            ask(":ink"),
            ask("untrained:ink", "/v1/embed"),
            ask(serve_multiplexed_model_id="ink"),
            ask(**{"serve-multiplexed-model-id": "ink"}),
            ask("untrained:ink", serve_multiplexed_model_id="ink"),
        ):
            assert answer.status_code == 200, answer.text
            told = answer.json()["model"]
            assert (told["name"], told["adapter"], told["adapter_rank"]) == ("untrained:ink", "ink", "2")
            assert told["adapter_sha256"] == shelved["ink"].tensors
        for unknown in (ask("untrained:dusk"), ask(serve_multiplexed_model_id="dusk"), ask(":")):
            assert_refused(unknown, 404, "unknown_model", "ask for untrained, untrained:ink, untrained:night")
        for model in ("untrained", "untrained:night"):
            assert_refused(ask(model, serve_multiplexed_model_id="ink"), 422, "two_models", "send one")
        keyed = [ask(serve_multiplexed_model_id=name, **{"idempotency-key": "k"}) for name in ("ink", "night")]
        assert keyed[0].status_code == 200
        assert_refused(keyed[1], 422, "idempotency_key_reused", "another request")


def test_of_very_many_adapters_some_are_named_to_who_asks_for_an_unknown_one() -> None:
    adapter = Shelved(Path("x"), "", "", 4, 1)
    base = EngineReader(None).card  # type: ignore[arg-type]
    cards = [base, *(adapted_card(base, f"a{number}", adapter) for number in range(30))]
    app = http_app(Several(*(EngineReader(None, card) for card in cards)), Limits(), log=no_log)  # type: ignore[arg-type]
    with served(app) as url:
        unknown = httpx.post(f"{url}/v1/embed?model=x", files=upload(picture(1)), trust_env=False)
    assert_refused(unknown, 404, "unknown_model", "untrained:a6 or 23 others that /v1/models lists, or for none")


def test_adapters_are_checked_before_anything_is_deployed(
    bundle: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert build_app(ServeSettings(bundle=bundle, adapters=folders))
    with pytest.raises(AdapterError, match=r"ink in .* takes .* may take 0\.0009995: allow more"):
        build_app(ServeSettings(bundle=bundle, adapters=folders, adapters_mb=0.001))
    with pytest.raises(AdapterError, match="no adapter: it has no adapter.json"):
        build_app(ServeSettings(bundle=bundle, adapters={"ink": tmp_path}))
    for given, said in (
        (f"ink={tmp_path}", "is no adapter: it has no adapter.json"),
        ("ink", "--adapter ink: it has the form NAME=FOLDER"),
        (f"a:b={tmp_path}", "'a:b' cannot be an adapter's name: use up to 64 letters"),
    ):
        assert said in refusal("serve", str(bundle), "--port", "0", "--adapter", given)


@pytest.mark.parametrize("name", ["a:b", "", "a/b", "a b", "ä", "x" * 65])
def test_a_config_names_adapters_and_a_name_that_could_be_something_else_is_refused(tmp_path: Path, name: str) -> None:
    declared = yaml.safe_load((CONFIGS / "local.yaml").read_text(encoding="utf-8"))
    arguments = declared["applications"][0]["args"]
    arguments |= {"adapters": {"ink": "runs/ink", "night_2-b": "runs/night"}, "adapters_mb": 8}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    assert read_config(path).settings.adapters == {"ink": Path("runs/ink"), "night_2-b": Path("runs/night")}
    arguments["adapters"][name] = "runs/other"
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"args\.adapters.*cannot be an adapter's name"):
        read_config(path)
