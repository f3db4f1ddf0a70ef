"""A client whose calls return when they are answered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Self

import httpx

from glyphrun.client import calls
from glyphrun.client.calls import Call, ClipEvent, Events, Found, Frames
from glyphrun.client.retries import Retries
from glyphrun_serve.schemas import Answer, ClipBox, EmbedAnswer, ErrorDetail, ModelCard


class Client:
    """Asks a server at a URL; refusals are ServerError, after the retries that may help.

    model: which of ``models`` a call is for, an adapter of one as NAME:ADAPTER; the first where it is left out.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries = Retries(),
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        self._retries = retries
        self._sleep = sleep
        self._chance = chance

    def recognize(self, frames: Frames, *, explain: bool = True, model: str | None = None) -> Answer:
        """Read a still image or the frames of one tracklet; explain asks also what each frame reads alone."""
        return self._ask(calls.recognize(frames, explain, model))

    def recognize_batch(
        self, items: Sequence[Frames], *, explain: bool = True, model: str | None = None
    ) -> list[Answer | ErrorDetail]:
        """Read several items; in the place of one that cannot be read stands why."""
        return self._ask(calls.recognize_batch(items, explain, model))

    def embed(self, frames: Frames, *, model: str | None = None) -> EmbedAnswer:
        """Encoder features of a still image or of one tracklet."""
        return self._ask(calls.embed(frames, model))

    def models(self) -> list[ModelCard]:
        """What the server reads with."""
        return self._ask(calls.models())

    def video(
        self, clip: bytes, boxes: Iterable[ClipBox] | None = None, *, explain: bool = True, model: str | None = None
    ) -> Iterator[ClipEvent]:
        """Read the tracklets of a clip, each as soon as it can be; without boxes the whole clip is one."""
        response = self._send(calls.video(clip, boxes, explain, model), stream=True)
        try:
            if response.status_code != 200:
                response.read()
                raise calls.refusal(response)
            events = Events()
            for line in response.iter_lines():
                if (event := events.take(line)) is not None:
                    yield event
            events.check_end()
        except httpx.TransportError as error:
            raise calls.unreachable(str(self._http.base_url), error) from error
        finally:
            response.close()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, call: Call[Found]) -> Found:
        return calls.understood(call, self._send(call))

    def _send(self, call: Call[Found], *, stream: bool = False) -> httpx.Response:
        request = self._http.build_request(call.method, call.path, headers=call.headers, **call.body)
        for attempt in count():
            response, failure = None, None
            try:
                response = self._http.send(request, stream=stream)
            except httpx.TransportError as error:
                failure = error
            wait = self._retries.wait_s(attempt, response, self._chance())
            if wait is None:
                break
            if response is not None:
                response.close()
            self._sleep(wait)
        if response is None:
            assert failure is not None
            raise calls.unreachable(str(self._http.base_url), failure) from failure
        return response
