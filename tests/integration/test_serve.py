"""A real Ray Serve on a real port, with a small recognizer of random weights."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from clips import cut_out, save_clip
from glyphrun.adapters import merge_into_bundle
from glyphrun.bundle import load_engine
from glyphrun.client import Answer, AsyncClient, Client, ClipBox, ClipEnd, ClipTracklet
from glyphrun.data.sample import DatasetError, iterate_samples
from glyphrun.engine import Engine
from glyphrun.models.lora import LoraSettings
from glyphrun.text import DIGITS
from glyphrun_serve.app import Server, ServeSettings, run
from glyphrun_serve.batching import Batching
from glyphrun_serve.limits import Limits
from glyphrun_serve.ports import free_port
from glyphrun_serve.sample_log import SampleLog
from glyphrun_serve.serve_error import ServeError
from lora_recognizers import adapt
from serving import METRICS, assert_refused, assert_same_reading, huge, in_base64, picture, save_untrained, upload

LIMITS = Limits(body_bytes=400_000, items=8, frames=6, pixels=1_000_000, request_pixels=2_500_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("bundles") / "untrained")


@pytest.fixture(scope="module")
def adapters(bundle: Path) -> dict[str, Path]:
    chosen = {"ink": LoraSettings(rank=2), "night": LoraSettings(rank=5, unfrozen=("norms",))}
    return {name: adapt(bundle, bundle.with_name(name), lora, seed=len(name)) for name, lora in chosen.items()}


@pytest.fixture(scope="module")
def settings(bundle: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    largest = max((folder / "adapter.safetensors").stat().st_size for folder in adapters.values())
    # float32, so that a reading does not depend on what else is in its batch.
    return ServeSettings(
        bundle=bundle,
        limits=LIMITS,
        batching=Batching(most=8, wait_s=0.05),
        precision="float32",
        cpus=1,
        adapters=adapters,
        adapters_mb=1.2 * largest / 2**20,  # room for one of them
        log_samples=SampleLog(folder=tmp_path_factory.mktemp("kept"), below=1.0, items=8),
    )


@pytest.fixture(scope="module")
def server(settings: ServeSettings) -> Iterator[Server]:
    with run(settings, port=0) as server:
        yield server


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return load_engine(bundle, precision="float32")


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def test_the_server_is_ready_when_it_has_started(client: httpx.Client) -> None:
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert set(ready["started"]) == {"recognizer"}
    assert client.get("/healthz").json() == {"status": "alive"}


def test_a_still_image_is_read_as_the_engine_reads_it(client: httpx.Client, engine: Engine) -> None:
    response = client.post("/v1/recognize", files=upload(picture(1)))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert_same_reading(answer, engine.read([[picture(1)]], explain=True)[0])
    assert len(answer["votes"]) == 1
    assert "".join(scored["character"] for scored in answer["characters"]) == answer["text"]
    assert all(0 <= scored["confidence"] <= 1 for scored in answer["characters"])
    assert answer["model"] == {
        "name": "untrained",
        "version": "0",
        **engine.provenance,
        "decode": engine.settings.model_dump(mode="json"),
    }
    assert answer["degraded"] is False
    assert {"decode", "wait", "encode", "search", "total"} <= set(answer["timings_ms"])


def test_a_tracklet_is_read_jointly_and_every_frame_votes(client: httpx.Client, engine: Engine) -> None:
    frames = [picture(seed) for seed in (2, 3, 4)]
    answer = client.post("/v1/recognize", files=upload(*frames)).json()
    assert_same_reading(answer, engine.read([frames], explain=True)[0])
    assert [vote["frame"] for vote in answer["votes"]] == [0, 1, 2]


def test_unsure_requests_are_kept_where_they_can_be_labelled(client: httpx.Client, settings: ServeSettings) -> None:
    assert client.post("/v1/recognize", files=upload(picture(77), picture(78))).status_code == 200
    assert settings.log_samples is not None
    folder = settings.log_samples.folder
    deadline = time.monotonic() + 30
    kept: set[tuple[bytes, ...]] = set()
    while (picture(77), picture(78)) not in kept and time.monotonic() < deadline:
        time.sleep(0.1)
        # While it is read a shard may go for a longer one.
        with suppress(DatasetError):
            kept = {sample.frames for sample in iterate_samples(folder)}
    assert (picture(77), picture(78)) in kept


def test_features_are_those_of_the_engine(client: httpx.Client, engine: Engine) -> None:
    frames = [picture(seed, 30 + seed) for seed in range(3)]
    answer = client.post("/v1/embed", files=upload(*frames)).json()
    expected = engine.embed([engine.prepare(frames, name="x")])[0]
    assert np.allclose(answer["pooled"], expected.pooled, atol=1e-5)
    assert len(answer["frames"]) == 3
    for patches, wanted in zip(answer["frames"], expected.frames, strict=True):
        assert np.allclose(patches, wanted, atol=1e-5)
    assert answer["model"]["name"] == "untrained"
    assert_refused(client.post("/v1/embed", files=upload(b"GIF89a but no more")), 422, "bad_image", "not a readable")


def test_votes_are_left_out_on_request(client: httpx.Client) -> None:
    assert client.post("/v1/recognize?explain=false", files=upload(picture(1))).json()["votes"] == []


def test_concurrent_requests_share_batches_and_each_gets_its_own_answer(server: Server, engine: Engine) -> None:
    items = [[picture(100 * number + frame) for frame in range(1 + number % 4)] for number in range(30)]

    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/recognize", files=upload(*item)) for item in items))

    responses = asyncio.run(post_all())
    assert [response.status_code for response in responses] == [200] * 30
    answers = [response.json() for response in responses]
    expected = engine.read(items, explain=True)
    for answer, prediction in zip(answers, expected, strict=True):
        assert_same_reading(answer, prediction)
    assert len({prediction.confidence for prediction in expected}) > 20, "the items must be told apart by their answers"
    # Items of one batch carry the timings of that batch.
    batches = {(answer["timings_ms"]["encode"], answer["timings_ms"]["search"]) for answer in answers}
    assert 4 <= len(batches) <= 15


def test_requests_at_once_for_the_base_and_two_adapters_are_each_answered_by_their_own(
    server: Server, bundle: Path, adapters: dict[str, Path], engine: Engine, tmp_path: Path
) -> None:
    engines = {"untrained": engine}
    for name, folder in adapters.items():
        merge_into_bundle(bundle, [folder], tmp_path / name)
        engines[f"untrained:{name}"] = load_engine(tmp_path / name, precision="float32")
    asked = [(name, [picture(200 + seed)]) for seed in range(8) for name in engines]

    async def ask_all() -> list[Answer]:
        async with AsyncClient(server.url) as client:
            assert [card.name for card in await client.models()] == [*engines]
            return await asyncio.gather(*(client.recognize(frames, model=name) for name, frames in asked))

    answers = asyncio.run(ask_all())
    for (name, frames), answer in zip(asked, answers, strict=True):
        assert answer.model.name == name
        assert_same_reading(answer.model_dump(), engines[name].read([frames], explain=True)[0])
    assert len({answer.confidence for answer in answers[:3]}) == 3, "models must be told apart by their answers"
    loads = {answer.timings_ms["adapter"] for answer in answers if "adapter" in answer.timings_ms}
    assert len(loads) >= 2, "each adapter was loaded, and none at the start"
    # There is room for one adapter, so each of these takes the other's place.
    with Client(server.url) as client:
        client.recognize(picture(0), model=":night")  # whichever of the two was read last until now
        for seed in range(3):
            for name in ("ink", "night"):
                answer = client.recognize(picture(seed), model=f":{name}")
                (wanted,) = engines[f"untrained:{name}"].read([[picture(seed)]], explain=True)
                assert_same_reading(answer.model_dump(), wanted)
                assert answer.timings_ms["adapter"] > 0
        assert "adapter" not in client.recognize(picture(1), model="untrained:night").timings_ms


def test_a_batch_is_answered_in_order_and_a_bad_item_fails_alone(client: httpx.Client, engine: Engine) -> None:
    good = [[picture(5)], [picture(6), picture(7)]]
    items: list[Any] = [
        in_base64(*good[0]),
        in_base64(b"not an image"),
        {"frames": ["%%%"]},
        {"frames": [7]},
        {"pictures": []},
        {"frames": []},
        in_base64(huge(1200, 1000)),
        in_base64(*good[1]),
    ]
    response = client.post("/v1/recognize/batch", json={"items": items})
    assert response.status_code == 200, response.text
    answers = response.json()["items"]
    for place, prediction in zip((0, 7), engine.read(good, explain=True), strict=True):
        assert_same_reading(answers[place], prediction)
    errors = [answers[place]["error"] for place in range(1, 7)]
    assert [error["item"] for error in errors] == [1, 2, 3, 4, 5, 6]
    assert [error["code"] for error in errors] == [
        "bad_image",
        "bad_base64",
        "bad_base64",
        "invalid_item",
        "no_frames",
        "too_many_pixels",
    ]
    assert all(error["message"].startswith(f"Item {error['item']}") for error in errors)


@pytest.mark.parametrize(
    ("frames", "status", "code", "words"),
    [
        ([b"GIF89a but not really"], 422, "bad_image", "The image is"),
        ([picture(1)[:-60]], 422, "bad_image", "cut short"),
        ([b""], 422, "bad_image", "is empty"),
        ([picture(1), b"text"], 422, "bad_image", "The tracklet, frame 1"),
        ([picture(1)] * 7, 413, "too_many_frames", "7 frames; the limit is 6"),
        ([huge(1001, 1000)], 413, "too_many_pixels", "more than 1,000,000 pixels"),
        ([huge(30_000, 30_000)], 413, "too_many_pixels", "more than 1,000,000 pixels"),
        ([huge(1000, 1000)] * 3, 413, "too_many_pixels", "2,500,000 pixels in all"),
        ([b"\0" * 400_001], 413, "body_too_large", "larger than 400,000 bytes"),
    ],
)
def test_a_bad_upload_is_refused_with_a_sentence(
    client: httpx.Client, frames: list[bytes], status: int, code: str, words: str
) -> None:
    assert_refused(client.post("/v1/recognize", files=upload(*frames)), status, code, words)


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Session-Id", "X-Request-Disconnect-Disabled", "X-Other"])
def test_a_header_that_is_no_text_fails_no_request(client: httpx.Client, name: str) -> None:
    answer = client.get("/v1/models", headers={name.encode(): b"\xe9"})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].isascii()


def test_an_adapter_whose_name_is_no_text_is_unknown(client: httpx.Client) -> None:
    for header in (b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"):
        answer = client.post("/v1/recognize", files=upload(picture(1)), headers={header: b"\xe9"})
        assert_refused(answer, 404, "unknown_model", "There is no model")


def test_the_id_of_an_error_is_that_of_the_answers_header(client: httpx.Client) -> None:
    for given in ("camera-1:42", "a b", "x" * 200):
        answer = client.get("/nothing", headers={"X-Request-Id": given})
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
        assert (answer.headers["x-request-id"] == given) == (given == "camera-1:42")


def test_what_can_be_got_can_be_asked_for_without_its_body(client: httpx.Client) -> None:
    for path in ("/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/models"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_request_of_the_wrong_form_is_refused_with_a_sentence(
    client: httpx.Client,
) -> None:
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_refused(client.post("/v1/recognize"), 422, "invalid_request", "no frames")
    assert_refused(
        client.post("/v1/recognize", content=b"", headers=multipart),
        422,
        "invalid_request",
        "no frames",
    )
    assert_refused(
        client.post("/v1/recognize", content=b"--b--\r\n", headers=multipart),
        422,
        "invalid_request",
        "no frames",
    )
    assert_refused(
        client.post("/v1/recognize", data={"frames": "text"}),
        422,
        "invalid_request",
        "frames.0 is text where a file is asked for; with curl: -F frames=@FILE.",
    )
    assert_refused(
        client.post("/v1/recognize/batch", content=b'{"items": []}'),
        422,
        "invalid_request",
        "Content-Type: application/json",
    )
    assert_refused(
        client.post(
            "/v1/recognize",
            content=b"x",
            headers={"Content-Type": "multipart/form-data"},
        ),
        400,
        "bad_request",
        "body cannot be read",
    )
    explain = client.post("/v1/recognize?explain=perhaps", files=upload(picture(1)))
    assert_refused(explain, 422, "invalid_request", "explain")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 422, "invalid_request", "no body"),
        (b"{", 422, "invalid_request", "not valid JSON"),
        (b'{"items": "\xff"}', 400, "bad_request", "cannot be read"),
        (b"[" * 100_000, 400, "bad_request", "cannot be read"),
        (b"[]", 422, "invalid_request", "body is wrong"),
        (b"{}", 422, "invalid_request", "no items"),
        (b'{"items": 3}', 422, "invalid_request", "items is wrong"),
        (b'{"items": []}', 422, "no_items", "send at least one"),
        (
            json.dumps({"items": [{}] * 9}).encode(),
            413,
            "too_many_items",
            "9 items; the limit is 8",
        ),
    ],
)
def test_a_bad_batch_is_refused_with_a_sentence(
    client: httpx.Client, body: bytes, status: int, code: str, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    assert_refused(
        client.post("/v1/recognize/batch", content=body, headers=headers),
        status,
        code,
        words,
    )


def test_a_chunked_body_is_bounded_too(server: Server) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * 100_000

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
            return await client.post(
                "/v1/recognize/batch",
                content=chunks(),
                headers={"Content-Type": "application/json"},
            )

    assert_refused(asyncio.run(post()), 413, "body_too_large", "larger than 400,000 bytes")


def test_unknown_paths_and_methods_are_refused_in_the_same_shape(
    client: httpx.Client,
) -> None:
    assert_refused(client.get("/v2/nothing"), 404, "not_found", "/docs")
    assert_refused(client.get("/static/../app.py"), 404, "not_found", "/docs")
    assert_refused(client.get("/static/%2e%2e/app.py"), 404, "not_found", "/docs")
    wrong_method = client.get("/v1/recognize")
    assert_refused(wrong_method, 405, "method_not_allowed", "send POST")
    assert wrong_method.headers["allow"] == "POST"


def test_a_clip_is_read_by_replicas_and_what_they_did_is_counted(
    server: Server, engine: Engine, tmp_path: Path
) -> None:
    clip = save_clip(tmp_path / "clip.mp4", 12)
    boxes = [ClipBox(tracklet="7", frame=frame, box=(8, 4, 40, 32)) for frame in (3, 9)]
    with Client(server.url) as client:
        reading, end = client.video(clip.read_bytes(), boxes)
    assert isinstance(reading, ClipTracklet) and end == ClipEnd(tracklets=1, frames=2)
    (expected,) = engine.read([cut_out(clip, (8, 4, 40, 32), [3, 9])], explain=True)
    assert_same_reading(reading.answer.model_dump(), expected)
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    assert 'glyphrun_requests_total{method="POST",route="/v1/video",status="200"} 1.0' in metrics
    assert 'glyphrun_stage_seconds_count{stage="wait"}' in metrics


def test_requests_wait_for_a_new_replica_when_the_only_one_is_killed(server: Server, engine: Engine) -> None:
    (recognizer,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if " ".join(process.cmdline()).startswith("ray::ServeReplica:glyphrun:recognizer")
    )
    items = [[picture(number)] for number in range(12)]

    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
            posts = [asyncio.create_task(client.post("/v1/recognize", files=upload(*item))) for item in items]
            await asyncio.sleep(0.03)
            recognizer.kill()
            return await asyncio.gather(*posts)

    responses = asyncio.run(post_all())
    assert [response.status_code for response in responses] == [200] * 12, [response.text for response in responses]
    for response, prediction in zip(responses, engine.read(items, explain=True), strict=True):
        assert_same_reading(response.json(), prediction)


def test_the_model_and_the_pages_are_described(client: httpx.Client) -> None:
    model, *_ = client.get("/v1/models").json()["models"]
    assert (model["name"], model["kind"], model["charset"]) == (
        "untrained",
        "query-digits",
        DIGITS,
    )
    assert model["metrics"] == METRICS
    assert {"/v1/recognize", "/v1/recognize/batch", "/readyz"} <= set(client.get("/openapi.json").json()["paths"])
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert "http://" not in page.text and "https://" not in page.text


def test_a_second_server_on_the_same_ray_or_port_is_refused(server: Server, settings: ServeSettings) -> None:
    with pytest.raises(ServeError, match="Serve already runs"):
        run(settings, port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServeError, match="choose another port, or 0"):
            run(settings, port=taken.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0
    assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
