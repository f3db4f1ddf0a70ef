"""The HTTP side: what can be asked and how it is answered. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import FastAPI, File, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.staticfiles import StaticFiles

import glyphrun_serve.schemas as wire
from glyphrun_serve import video
from glyphrun_serve.access import Gate, Guard
from glyphrun_serve.errors import RequestError, answer_errors_as_json
from glyphrun_serve.idempotency import Idempotent, KeptAnswers
from glyphrun_serve.limits import BodyLimit, Limits
from glyphrun_serve.metrics import Metrics
from glyphrun_serve.models import (
    Busy,
    Failed,
    Lost,
    Model,
    Models,
    ReadBy,
    Refused,
    Unanswered,
    UnknownModel,
    Unreadable,
)
from glyphrun_serve.observe import Log, Observed, log_to_stderr
from glyphrun_serve.parameters import ModelName

if TYPE_CHECKING:  # most servers keep no samples, and start without Parquet
    from glyphrun_serve.kept_samples import KeptSamples

# A clip's answer comes in parts, and is not kept.
ANSWERED_ONCE = frozenset({"/v1/recognize", "/v1/recognize/batch", "/v1/embed"})
STATIC = Path(__file__).parent / "static"

# The page needs nothing from elsewhere, so a browser may refuse everything from elsewhere.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": wire.ErrorAnswer,
        "description": "The request is wrong; the message says what to do.",
    },
    "5XX": {"model": wire.ErrorAnswer, "description": "The server is busy or failed."},
}


Uploads = Annotated[list[UploadFile], File(description="One still image, or the frames of one tracklet.")]
Found = TypeVar("Found")


def http_app(
    models: Models,
    limits: Limits,
    guard: Guard = Guard(),
    *,
    clock: Callable[[], float] = monotonic,
    log: Log = log_to_stderr,
    named_outside: bool = False,
    samples: KeptSamples | None = None,
    outcomes: Mapping[tuple[str, str, str], int] | None = None,
) -> FastAPI:
    """The routes over models. clock: seconds that never go back. named_outside: as ``Observed`` has it.

    samples: where requests that are worth a label are kept. outcomes: of items by role, version and outcome, which goes on
    changing.
    """
    app = FastAPI(
        title="glyphrun",
        summary="Reads numbers and text in still images and in tracklets.",
        description="Where tokens are needed, a request bears one: `Authorization: Bearer TOKEN`. One that is sent again with "
        "the same `Idempotency-Key` gets the answer that was given; clips are read anew.",
        version=models.cards()[0].version,
        docs_url=None,
        redoc_url=None,
    )
    metrics = Metrics()
    if samples is not None:
        metrics.watch_samples(samples.outcomes)
    if outcomes is not None:
        metrics.watch_releases(outcomes)
    # The last one added is the outermost: what is refused is seen, and is refused before its body is taken.
    app.add_middleware(Idempotent, kept=KeptAnswers(clock), paths=ANSWERED_ONCE)
    app.add_middleware(BodyLimit, limits=limits, larger={video.PATH: limits.clip_bytes})
    app.add_middleware(Gate, guard=guard, clock=clock)
    app.add_middleware(Observed, metrics=metrics, clock=clock, log=log, named_outside=named_outside)
    answer_errors_as_json(app)

    def chosen(name: str | None) -> Model:
        try:
            return models.choose(name)
        except UnknownModel as error:
            raise RequestError(404, "unknown_model", str(error)) from error

    async def within_limits(
        model: Model,
        answer: Awaitable[Found | ReadBy[Found] | Unreadable | Refused | Unanswered | Failed],
        item: int | None = None,
    ) -> tuple[Found, wire.ModelIdentity]:
        """The answer, and who gave it."""
        try:
            async with asyncio.timeout(limits.answer_s):
                found = await answer
        except Busy as error:
            message = "More requests are waiting than the server takes; try again in a few seconds."
            raise RequestError(503, "busy", message, item=item) from error
        except Lost as error:
            message = (
                "What read this request broke off, and again when it was asked once more; try again in a few seconds."
            )
            raise RequestError(503, "broken_off", message, item=item) from error
        except TimeoutError as error:
            message = f"There was no answer within {limits.answer_s:g} s; try again in a few seconds."
            raise RequestError(503, "too_slow", message, item=item) from error
        if isinstance(found, Unreadable):
            raise RequestError(422, "bad_image", found.message, item=item)
        if isinstance(found, Refused):
            message = f"This is not answered here: {found.message.removesuffix('.')}."
            raise RequestError(501, "unsupported", message, item=item)
        if isinstance(found, Unanswered):
            raise RequestError(503, "no_quorum", f"{found.message}; try again in a few seconds.", item=item)
        if isinstance(found, Failed):
            message = f"The model failed on this item alone ({found.message}); send it to whoever runs the server."
            raise RequestError(500, "model_failed", message, item=item)
        if isinstance(found, ReadBy):
            return found.found, found.card.identity()
        return found, model.card.identity()

    async def read(
        model: Model, frames: Sequence[bytes], name: str, explain: bool, item: int | None = None
    ) -> wire.Answer:
        started = perf_counter()
        with metrics.waiting():
            found, identity = await within_limits(model, model.read(frames, name=name, explain=explain), item)
        metrics.read(found)
        if samples is not None:
            samples.offer(frames, found, identity)
        return wire.answer(found, identity, (perf_counter() - started) * 1e3)

    async def uploaded(frames: list[UploadFile]) -> tuple[list[bytes], str]:
        name = "The image" if len(frames) == 1 else "The tracklet"
        limits.check_frames(len(frames), name)
        data = [await frame.read() for frame in frames]
        await asyncio.to_thread(limits.check_pixels, data, name)
        return data, name

    @app.post("/v1/recognize", responses=ERRORS, tags=["recognize"])
    async def recognize(
        frames: Uploads,
        explain: bool = True,
        model: ModelName = None,
    ) -> wire.Answer:
        """Read one still image or one tracklet; explain says also what each frame reads alone."""
        return await read(chosen(model), *await uploaded(frames), explain)

    @app.post("/v1/embed", responses=ERRORS, tags=["embed"])
    async def embed(frames: Uploads, model: ModelName = None) -> wire.EmbedAnswer:
        """The encoder's features of one still image or one tracklet: pooled, and for each patch of each frame."""
        asked = chosen(model)
        data, name = await uploaded(frames)
        found, identity = await within_limits(asked, asked.embed(data, name=name))
        return wire.EmbedAnswer(
            pooled=found.pooled.tolist(),
            frames=[patches.tolist() for patches in found.frames],
            model=identity,
        )

    @app.post("/v1/recognize/batch", responses=ERRORS, tags=["recognize"])
    async def recognize_batch(
        batch: wire.BatchRequest, explain: bool = True, model: ModelName = None
    ) -> wire.BatchAnswer:
        """Read several items; one that is wrong gets an error object in its place and the others are answered."""
        asked = chosen(model)
        limits.check_items(len(batch.items))
        unpacked = await asyncio.to_thread(_unpack, batch.items, limits)

        async def answered(number: int, frames: list[bytes] | RequestError) -> wire.Answer | wire.ErrorAnswer:
            if isinstance(frames, RequestError):
                return frames.answer()
            try:
                return await read(asked, frames, f"Item {number}", explain, item=number)
            except RequestError as error:
                return error.answer()

        return wire.BatchAnswer(items=await asyncio.gather(*(answered(*pair) for pair in enumerate(unpacked))))

    video.add_video(app, limits, chosen, read, ERRORS)

    @app.get("/v1/models", tags=["models"])
    async def served() -> wire.Models:
        """What this server reads with, and how well it was measured to read."""
        return wire.Models(models=list(models.cards()))

    @app.get("/healthz", tags=["health"])
    async def healthz() -> wire.Health:
        """200 while the server runs."""
        return wire.Health(status="alive")

    @app.get("/readyz", responses={503: {"model": wire.ErrorAnswer}}, tags=["health"])
    async def readyz() -> wire.Ready:
        """200 once every member of the model is loaded and warm, with how long that took."""
        started = await models.ready()
        if not started:
            raise RequestError(
                503,
                "not_ready",
                "The model is still loading; try again in a few seconds.",
            )
        return wire.Ready(status="ready", started=started)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["health"])
    async def exposition() -> Response:
        """What Prometheus collects."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers=PAGE_HEADERS)

    # FastAPI gives a GET no HEAD beside it, which probes and proxies may send.
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _unpack(items: Sequence[object], limits: Limits) -> list[list[bytes] | RequestError]:
    unpacked: list[list[bytes] | RequestError] = []
    spent = 0
    for number, item in enumerate(items):
        try:
            frames = limits.frames_of(item, number)
            spent = limits.check_pixels(frames, f"Item {number}", spent, number)
            unpacked.append(frames)
        except RequestError as error:
            unpacked.append(error)
    return unpacked
