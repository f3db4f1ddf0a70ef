"""The same client for asyncio."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import count
from typing import Self

import httpx

from glyphrun.client import calls
from glyphrun.client.calls import Call, ClipEvent, Events, Found, Frames
from glyphrun.client.retries import Retries
from glyphrun_serve.schemas import Answer, ClipBox, EmbedAnswer, ErrorDetail, ModelCard


class AsyncClient:
    """As ``Client``, with calls that are awaited."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries = Retries(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s)
        self._retries = retries
        self._sleep = sleep
        self._chance = chance

    async def recognize(self, frames: Frames, *, explain: bool = True, model: str | None = None) -> Answer:
        """Read a still image or the frames of one tracklet; explain asks also what each frame reads alone."""
        return await self._ask(calls.recognize(frames, explain, model))

    async def recognize_batch(
        self, items: Sequence[Frames], *, explain: bool = True, model: str | None = None
    ) -> list[Answer | ErrorDetail]:
        """Read several items; in the place of one that cannot be read stands why."""
        return await self._ask(calls.recognize_batch(items, explain, model))

    async def embed(self, frames: Frames, *, model: str | None = None) -> EmbedAnswer:
        """Encoder features of a still image or of one tracklet."""
        return await self._ask(calls.embed(frames, model))

    async def models(self) -> list[ModelCard]:
        """What the server reads with."""
        return await self._ask(calls.models())

    async def video(
        self, clip: bytes, boxes: Iterable[ClipBox] | None = None, *, explain: bool = True, model: str | None = None
    ) -> AsyncIterator[ClipEvent]:
        """Read the tracklets of a clip, each as soon as it can be; without boxes the whole clip is one."""
        response = await self._send(calls.video(clip, boxes, explain, model), stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                raise calls.refusal(response)
            events = Events()
            async for line in response.aiter_lines():
                if (event := events.take(line)) is not None:
                    yield event
            events.check_end()
        except httpx.TransportError as error:
            raise calls.unreachable(str(self._http.base_url), error) from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _ask(self, call: Call[Found]) -> Found:
        return calls.understood(call, await self._send(call))

    async def _send(self, call: Call[Found], *, stream: bool = False) -> httpx.Response:
        request = self._http.build_request(call.method, call.path, headers=call.headers, **call.body)
        for attempt in count():
            response, failure = None, None
            try:
                response = await self._http.send(request, stream=stream)
            except httpx.TransportError as error:
                failure = error
            wait = self._retries.wait_s(attempt, response, self._chance())
            if wait is None:
                break
            if response is not None:
                await response.aclose()
            await self._sleep(wait)
        if response is None:
            assert failure is not None
            raise calls.unreachable(str(self._http.base_url), failure) from failure
        return response
