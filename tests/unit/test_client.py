"""The typed client of a server."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Header

from clips import save_clip
from glyphrun.bundle import load_engine
from glyphrun.client import (
    Answer,
    AsyncClient,
    Client,
    ClipBox,
    ClipEnd,
    ClipTracklet,
    ErrorDetail,
    Retries,
    ServerError,
    TrackletError,
)
from glyphrun.engine import Engine
from glyphrun_serve.access import Guard
from glyphrun_serve.errors import RETRY_AFTER_S
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Busy
from glyphrun_serve.routes import http_app
from glyphrun_serve.tokens import KnownToken, token_hash
from local_app import CARD, EngineReader, Several, no_log, served
from serving import picture, save_untrained

ROOT = Path(__file__).resolve().parents[2]
ASKED = float(RETRY_AFTER_S)
GUARD = Guard((KnownToken("test", token_hash("secret")),))


class FlakyReader(EngineReader):
    """Is busy so many times before it answers."""

    busy = 0

    async def read(self, frames, *, name, explain):  # type: ignore[no-untyped-def]
        if self.busy:
            self.busy -= 1
            raise Busy
        return await super().read(frames, name=name, explain=explain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(save_untrained(folder / "untrained"), precision="float32")


@pytest.fixture(scope="module")
def reader(engine: Engine) -> FlakyReader:
    return FlakyReader(engine)


@pytest.fixture(scope="module")
def url(reader: FlakyReader) -> Iterator[str]:
    with served(http_app(reader, Limits(), GUARD, log=no_log)) as url:
        yield url


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(url: str, slept: list[float]) -> Iterator[Client]:
    with Client(url, token="secret", sleep=slept.append, chance=lambda: 0.5) as client:
        yield client


def test_answers_are_typed_and_those_of_the_engine(client: Client, engine: Engine) -> None:
    frames = [picture(seed) for seed in range(3)]
    (expected,) = engine.read([frames], explain=True)
    answer = client.recognize(frames)
    assert isinstance(answer, Answer)
    assert (answer.text, len(answer.votes)) == (expected.text, 3)
    assert answer.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert client.recognize(frames[0], explain=False).votes == []
    good, bad = client.recognize_batch([frames, b"text"])
    assert isinstance(good, Answer) and good.text == expected.text
    assert isinstance(bad, ErrorDetail) and (bad.code, bad.item) == ("bad_image", 1)
    assert np.allclose(
        client.embed(frames[0]).pooled, engine.embed([engine.prepare(frames[:1], name="x")])[0].pooled, atol=1e-5
    )
    assert client.models() == [CARD]


def test_a_clip_is_read_event_by_event(client: Client, folder: Path) -> None:
    file = save_clip(folder / "clip.avi", 10)
    boxes = [ClipBox(tracklet="7", frame=frame, box=(0, 0, 24, 32)) for frame in (1, 2)]
    reading, end = client.video(file.read_bytes(), boxes)
    assert isinstance(reading, ClipTracklet) and (reading.tracklet, reading.frames) == ("7", [1, 2])
    assert end == ClipEnd(tracklets=1, frames=2)
    half = file.read_bytes()[: file.stat().st_size // 2]
    late = [*boxes, ClipBox(tracklet="8", frame=9, box=(0, 0, 24, 32))]
    reading, broken = client.video(half, late)
    assert isinstance(broken, TrackletError) and (broken.tracklet, broken.error.code) == (None, "clip_broken")
    with pytest.raises(ServerError, match="send a whole MP4") as refused:
        next(client.video(b"text"))
    assert (refused.value.status, refused.value.code) == (422, "bad_clip") and refused.value.request_id


def test_the_example_of_the_readme_runs(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / "match.mp4", 5)
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    exec(example.replace("http://127.0.0.1:8000", url).replace("None", '"secret"'), {})
    answer, reading, end, error = capsys.readouterr().out.splitlines()
    assert answer.endswith(" 0") and reading.startswith("tracklet='clip'") and end == "tracklets=1 frames=5"
    assert error.startswith("bad_image The image is not a readable")


def test_every_call_can_be_for_a_model_of_several(engine: Engine, folder: Path) -> None:
    cards = [CARD, CARD.model_copy(update={"name": "untrained:night"})]
    clip = save_clip(folder / "short.avi", 2).read_bytes()
    with served(http_app(Several(*(EngineReader(engine, card) for card in cards)), Limits(), log=no_log)) as url:

        async def ask(model: str | None) -> list[Any]:
            async with AsyncClient(url) as client:
                (item,) = await client.recognize_batch([picture(1)], model=model)
                events = [event async for event in client.video(clip, model=model)]
                read, embedded = (
                    await client.recognize(picture(1), model=model),
                    await client.embed(picture(1), model=model),
                )
                return [item, events[0].answer, read, embedded]

        for model, name in ((None, "untrained"), ("untrained:night", "untrained:night")):
            with Client(url) as client:
                (item,) = client.recognize_batch([picture(1)], model=model)
                reading, _ = client.video(clip, model=model)
                answers = [client.recognize(picture(1), model=model), item, reading.answer]
                answers.append(client.embed(picture(1), model=model))
            assert {answer.model.name for answer in [*answers, *asyncio.run(ask(model))]} == {name}
        with Client(url) as client, pytest.raises(ServerError, match="There is no model 'day' here") as unknown:
            client.recognize(picture(1), model="day")
    assert (unknown.value.status, unknown.value.code) == (404, "unknown_model")


def test_a_busy_server_is_asked_again_after_what_it_says_and_a_random_share_more(
    client: Client, reader: FlakyReader, slept: list[float]
) -> None:
    reader.busy = 3
    assert client.recognize(picture(1)).text is not None
    assert slept == pytest.approx([ASKED + 0.1, ASKED + 0.2, ASKED + 0.4])
    reader.busy, slept[:] = 9, []
    with pytest.raises(ServerError, match="try again") as busy:
        client.recognize(picture(1))
    assert (busy.value.status, busy.value.code) == (503, "busy")
    assert len(slept) == 4 and reader.busy == 4
    reader.busy = 0


def test_what_is_wrong_is_not_sent_again(url: str, client: Client, slept: list[float]) -> None:
    with pytest.raises(ServerError, match="not a readable") as bad:
        client.recognize(b"text")
    assert (bad.value.status, bad.value.code) == (422, "bad_image") and len(bad.value.request_id or "") == 32
    with Client(url, token="guess", sleep=slept.append) as stranger, pytest.raises(ServerError) as refused:
        stranger.models()
    assert (refused.value.status, refused.value.code) == (401, "no_token")
    with Client(f"{url}/elsewhere", token="secret", sleep=slept.append) as lost, pytest.raises(ServerError) as missing:
        lost.models()
    assert missing.value.code == "not_found"
    assert slept == []


def test_a_server_that_is_gone_is_named_after_the_retries(slept: list[float]) -> None:
    with served(http_app(EngineReader(None), Limits(), log=no_log)) as url:  # type: ignore[arg-type]
        pass
    with (
        Client(url, retries=Retries(attempts=3, first_s=1), sleep=slept.append, chance=lambda: 1.0) as client,
        pytest.raises(ServerError, match=f"{url}.* did not answer") as gone,
    ):
        client.models()
    assert (gone.value.status, gone.value.code) == (None, "unreachable")
    assert slept == [1, 2]


def test_attempts_of_one_call_share_an_idempotency_key_and_calls_do_not() -> None:
    keys: list[str] = []
    app = FastAPI()

    @app.post("/v1/recognize", status_code=429)
    async def refuse(idempotency_key: Annotated[str, Header()]) -> None:
        keys.append(idempotency_key)

    with served(app) as url, Client(url, retries=Retries(attempts=3), sleep=lambda _: None) as client:
        for _ in range(2):
            with pytest.raises(ServerError, match="a form that glyphrun does not use") as strange:
                client.recognize(b"x")
            assert (strange.value.status, strange.value.code) == (429, "bad_answer")
    assert len(keys) == 6 and len(set(keys)) == 2 and len(set(keys[:3])) == 1


def test_waits_double_up_to_the_longest_and_the_server_may_ask_for_more() -> None:
    retries = Retries(attempts=9, first_s=1, longest_s=4)

    def response(status: int, **headers: str) -> httpx.Response:
        return httpx.Response(status, headers=headers)

    assert [retries.wait_s(attempt, None, 1.0) for attempt in range(4)] == [1, 2, 4, 4]
    assert retries.wait_s(0, response(503), 0.25) == 0.25
    assert retries.wait_s(0, response(429, **{"Retry-After": "30"}), 0.0) == 30
    assert retries.wait_s(0, response(429, **{"Retry-After": "soon"}), 0.5) == 0.5
    for status in (200, 400, 401, 408, 413, 422):
        assert retries.wait_s(0, response(status), 1.0) is None
    assert retries.wait_s(8, None, 1.0) is None


def test_what_a_proxy_lost_is_asked_again_and_what_the_server_failed_on_is_not() -> None:
    def waits(status: int, kind: str) -> float | None:
        return Retries(first_s=1).wait_s(0, httpx.Response(status, headers={"Content-Type": kind}), 1.0)

    assert [waits(status, "text/plain") for status in (500, 502, 504)] == [1, 1, 1]
    assert [waits(status, "application/json") for status in (500, 501)] == [None, None]


def test_the_client_for_asyncio_does_the_same(url: str, reader: FlakyReader, folder: Path) -> None:
    clip = save_clip(folder / "again.avi", 6).read_bytes()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def ask() -> list[Any]:
        async with AsyncClient(url, token="secret", sleep=sleep, chance=lambda: 0.5) as client:
            answer = await client.recognize(picture(1))
            batch = await client.recognize_batch([picture(1), [b""]])
            events = [event async for event in client.video(clip)]
            embedded = await client.embed(picture(1))
            with pytest.raises(ServerError, match="not a readable"):
                await client.recognize(b"text")
            return [answer, batch, events, embedded, await client.models()]

    reader.busy = 1
    answer, (first, second), (reading, end), embedded, models = asyncio.run(ask())
    assert slept == pytest.approx([ASKED + 0.1])
    assert answer.text == first.text and second.code == "bad_image"
    assert isinstance(reading, ClipTracklet) and end == ClipEnd(tracklets=1, frames=6)
    assert len(embedded.frames) == 1 and models == [CARD]


def test_the_client_starts_without_what_a_server_needs() -> None:
    said = "import sys, glyphrun.client; print({'torch', 'ray', 'fastapi', 'PIL', 'cv2'} & set(sys.modules) or 'none')"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "none\n"
