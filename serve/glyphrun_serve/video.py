"""The route for video clips: a reading for each tracklet, sent as soon as its last frame is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

import glyphrun_serve.schemas as wire
from glyphrun_serve.clips import Clip, Tracklet
from glyphrun_serve.errors import RequestError
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Model
from glyphrun_serve.parameters import ModelName

PATH = "/v1/video"
BOXES = TypeAdapter(list[wire.ClipBox])
BOXES_BYTES = (
    8 * 1024**2
)  # 22 tracklets in each of 3,600 frames have 5 MiB, and 90 MiB of memory while they are checked
GRACE_S = 5.0  # for the last events to be taken
STREAM = {
    "description": "Server-sent events: a `reading` or an `error` for each tracklet, then `done`. After an `error` "
    "without a tracklet, which says that the clip itself breaks off, nothing follows.",
    "content": {"text/event-stream": {}},
}

Choose = Callable[[str | None], Model]
Read = Callable[[Model, Sequence[bytes], str, bool], Awaitable[wire.Answer]]


class ClipRequest(Request):
    """A form whose boxes may be longer than the 1 MiB that Starlette takes for a text."""

    def form(self, **limits: Any) -> Any:
        return super().form(**{**limits, "max_part_size": BOXES_BYTES})


class ClipRoute(APIRoute):
    """Answers ClipRequests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await answer(ClipRequest(request.scope, request.receive))

        return handle


class ClipResponse(StreamingResponse):
    """Events of a clip; however and whenever the answer ends, so does the clip."""

    def __init__(self, events: AsyncIterator[str], until: float, close: Callable[[], None]) -> None:
        """until: seconds of the event loop, after which a client that takes the events slowly is cut off."""
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._until = until
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._until):
                    await super().__call__(scope, receive, send)
        finally:
            self._close()


def add_video(
    app: FastAPI, limits: Limits, choose: Choose, read: Read, errors: dict[int | str, dict[str, Any]]
) -> None:
    """choose: a model by its name; read: as the other routes read one item with it, under their limits."""
    clips = 0
    router = APIRouter(route_class=ClipRoute)

    @router.post(PATH, responses={200: STREAM, **errors}, response_class=StreamingResponse, tags=["recognize"])
    async def video(
        clip: Annotated[UploadFile, File(description="An MP4, QuickTime, Matroska, WebM or AVI file.")],
        boxes: Annotated[
            str | None,
            Form(
                description='JSON `[{"tracklet": "7", "frame": 0, "box": [x, y, width, height]}, …]`, in pixels; '
                "without it the whole clip is one tracklet."
            ),
        ] = None,
        explain: bool = True,
        model: ModelName = None,
    ) -> ClipResponse:
        """Read the tracklets of a video clip; each is answered when its last frame has been decoded."""
        nonlocal clips
        asked = choose(model)
        if clips >= limits.clips:
            raise RequestError(503, "busy", "Other clips are being read; try again in a few seconds.")
        clips += 1
        opened: Clip | None = None
        deadline = asyncio.get_running_loop().time() + limits.answer_s

        def close() -> None:
            nonlocal clips
            clips -= 1
            if opened is not None:
                opened.close()

        try:
            async with _answered_by(deadline, limits):
                wanted = await asyncio.to_thread(_parse, boxes)
                opened = await asyncio.to_thread(Clip, clip.file, limits)
                await asyncio.to_thread(opened.ask, wanted)
                # Before the answer begins, so that a clip of which nothing can be read has a status that says so.
                first = await asyncio.to_thread(opened.next)
        except BaseException:
            close()
            raise

        async def read_in_time(tracklet: Tracklet) -> wire.Answer:
            async with _answered_by(deadline, limits):
                return await read(asked, tracklet.images, f"Tracklet {tracklet.name}", explain)

        async def next_in_time() -> Tracklet | None:
            async with _answered_by(deadline, limits):
                return await asyncio.to_thread(opened.next)

        return ClipResponse(_events(first, next_in_time, read_in_time), deadline + GRACE_S, close)

    app.include_router(router)


@asynccontextmanager
async def _answered_by(deadline: float, limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        message = f"The clip was not read within {limits.answer_s:g} s; send a shorter one, or fewer boxes."
        raise RequestError(503, "too_slow", message) from error


async def _events(
    tracklet: Tracklet | None,
    following: Callable[[], Coroutine[Any, Any, Tracklet | None]],
    read: Callable[[Tracklet], Awaitable[wire.Answer]],
) -> AsyncIterator[str]:
    tracklets = frames = 0
    while tracklet is not None:
        tracklets += 1
        frames += len(tracklet.numbers)
        # The decoder goes on while this tracklet is read.
        coming = asyncio.create_task(following())
        try:
            yield await _read(tracklet, read)
            tracklet = await coming
        except RequestError as error:
            yield _event("error", wire.TrackletError(tracklet=None, error=error.answer().error))
            return
        finally:
            coming.cancel()
    yield _event("done", wire.ClipEnd(tracklets=tracklets, frames=frames))


async def _read(tracklet: Tracklet, read: Callable[[Tracklet], Awaitable[wire.Answer]]) -> str:
    try:
        answer = await read(tracklet)
    except RequestError as error:
        return _event("error", wire.TrackletError(tracklet=tracklet.name, error=error.answer().error))
    return _event("reading", wire.TrackletAnswer(tracklet=tracklet.name, frames=tracklet.numbers, answer=answer))


def _event(name: str, data: BaseModel) -> str:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n"


def _parse(boxes: str | None) -> list[wire.ClipBox] | None:
    if boxes is None:
        return None
    try:
        found = BOXES.validate_json(boxes)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"boxes{f', {place},' if place else ''} is wrong ({first['msg']}); /docs shows its shape."
        raise RequestError(422, "bad_boxes", message) from error
    if not found:
        raise RequestError(422, "bad_boxes", "boxes is empty; send at least one, or leave the field out.")
    return found
