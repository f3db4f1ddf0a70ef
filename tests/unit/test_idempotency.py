"""A question that is asked twice under one key is read once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from glyphrun.bundle import load_engine
from glyphrun.engine import Engine
from glyphrun.prediction import Prediction
from glyphrun_serve.idempotency import OVERHEAD, KeptAnswers
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Busy
from glyphrun_serve.routes import http_app
from local_app import Clock, EngineReader, no_log, served
from serving import assert_refused, in_base64, picture, save_untrained, upload


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(save_untrained(tmp_path_factory.mktemp("bundles") / "untrained"), precision="float32")


class SlowReader(EngineReader):
    """Takes its time, and is busy as long as a test says."""

    busy = False

    async def read(self, frames, *, name, explain):  # type: ignore[no-untyped-def]
        if self.busy:
            self.asked += 1
            raise Busy
        await asyncio.sleep(0.2)
        return await super().read(frames, name=name, explain=explain)


@pytest.fixture
def reader(engine: Engine) -> SlowReader:
    return SlowReader(engine)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(reader: SlowReader, clock: Clock) -> Iterator[str]:
    with served(http_app(reader, Limits(body_bytes=400_000), clock=clock, log=no_log)) as url:
        yield url


def post(url: str, key: str, frame: bytes, path: str = "/v1/recognize") -> httpx.Response:
    return httpx.post(f"{url}{path}", files=upload(frame), headers={"Idempotency-Key": key}, trust_env=False)


def test_the_same_key_and_body_get_the_same_answer_until_it_is_old(url: str, reader: SlowReader, clock: Clock) -> None:
    first, again = post(url, "k", picture(1)), post(url, "k", picture(1))
    assert first.status_code == 200 and reader.asked == 1
    assert again.content == first.content, "with the same timings, so it was not read again"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert post(url, "other", picture(1)).status_code == 200 and reader.asked == 2
    clock.now += 601
    assert "idempotency-replayed" not in post(url, "k", picture(1)).headers and reader.asked == 3


def test_a_key_is_good_for_one_question(url: str, reader: SlowReader) -> None:
    post(url, "k", picture(1))
    for response in (post(url, "k", picture(2)), post(url, "k", picture(1), "/v1/recognize?explain=false")):
        assert_refused(response, 422, "idempotency_key_reused", "send a new key")
    assert_refused(post(url, "k", picture(1), "/v1/embed"), 422, "idempotency_key_reused", "send a new key")
    for key in ("", "k" * 201, "k\tk"):
        assert_refused(post(url, key, picture(1)), 422, "bad_idempotency_key", "send a UUID")
    assert reader.asked == 1


def test_a_refusal_is_kept_and_a_busy_moment_is_not(url: str, reader: SlowReader) -> None:
    assert_refused(post(url, "bad", b"text"), 422, "bad_image", "not a readable")
    assert post(url, "bad", b"text").headers["idempotency-replayed"] == "true"
    reader.busy = True
    assert_refused(post(url, "k", picture(1)), 503, "busy", "try again")
    reader.busy = False
    assert post(url, "k", picture(1)).status_code == 200
    too_large = post(url, "large", b"\0" * 400_001)
    assert_refused(too_large, 413, "body_too_large", "400,000 bytes")


def test_questions_asked_at_once_are_read_once(url: str, reader: SlowReader) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, trust_env=False, headers={"Idempotency-Key": "k"}) as client:
            body = {"items": [in_base64(picture(1))]}
            return await asyncio.gather(*(client.post("/v1/recognize/batch", json=body) for _ in range(8)))

    answers = asyncio.run(ask())
    assert reader.asked == 1
    assert {answer.content for answer in answers} == {answers[0].content} and answers[0].status_code == 200


def test_kept_answers_take_no_more_memory_than_they_may(clock: Clock) -> None:
    kept = KeptAnswers(clock, seconds=10, most_bytes=10 * (OVERHEAD + 1000))
    answer = ({"type": "http.response.start"}, {"type": "http.response.body", "body": b"x" * 1000})

    def settle(number: int, keep: bool = True) -> None:
        kept.ask(("me", str(number)), b"")
        kept.settle(("me", str(number)), answer, keep)

    kept.ask(("me", "open"), b"")
    for number in range(25):
        settle(number)
    assert [number for number in range(25) if kept.get(("me", str(number)))] == list(range(15, 25))
    settle(99, keep=False)
    assert kept.get(("me", "99")) is None and kept.get(("you", "24")) is None
    clock.now += 10
    assert not any(kept.get(("me", str(number))) for number in range(25))
    assert kept.get(("me", "open")) is not None, "somebody waits for it"


def test_if_the_one_who_asked_first_leaves_the_next_one_is_answered(engine: Engine) -> None:
    class Left(EngineReader):
        async def read(self, frames, *, name, explain) -> Prediction:  # type: ignore[no-untyped-def]
            self.asked += 1
            if self.asked == 1:
                raise asyncio.CancelledError
            (found,) = self.engine.read([frames])
            return found

    app = http_app(Left(engine), Limits(), log=no_log)

    async def ask() -> list[httpx.Response | BaseException]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"Idempotency-Key": "k"}
            asked = (client.post("/v1/recognize", files=upload(picture(1)), headers=headers) for _ in range(2))
            return await asyncio.gather(*asked, return_exceptions=True)

    left, answered = asyncio.run(ask())
    assert isinstance(left, asyncio.CancelledError)
    assert isinstance(answered, httpx.Response) and answered.status_code == 200
