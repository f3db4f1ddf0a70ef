"""The HTTP side on a real port without Ray: an engine of its own answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, Self

import uvicorn
from fastapi import FastAPI

from glyphrun.encoded import Embedding
from glyphrun.ensemble import Reader
from glyphrun.prediction import Prediction
from glyphrun_serve.models import Unreadable, expect_model
from glyphrun_serve.schemas import ColdStart, ModelCard

CARD = ModelCard(
    name="untrained",
    version="0",
    kind="query-digits",
    charset="0123456789",
    max_length=2,
    height=32,
    width=32,
    metrics={},
    provenance={"dataset": "none"},
)


class Alone:
    """What a model says that is served alone."""

    card = CARD

    def cards(self) -> list[ModelCard]:
        return [self.card]

    def choose(self, name: str | None) -> Self:
        expect_model(name, self.cards())
        return self


class EngineReader(Alone):
    """Reads with an engine, or an ensemble, in a thread, and counts how often it was asked."""

    def __init__(self, engine: Reader, card: ModelCard = CARD) -> None:
        self.engine, self.card = engine, card
        self.asked = 0

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Prediction | Unreadable:
        self.asked += 1
        try:
            (found,) = await asyncio.to_thread(self.engine.read, [frames], names=[name], explain=explain)
        except ValueError as error:
            return Unreadable(str(error))
        return found

    async def embed(self, frames: Sequence[bytes], *, name: str) -> Embedding | Unreadable:
        self.asked += 1
        try:
            prepared = await asyncio.to_thread(self.engine.prepare, frames, name=name)
        except ValueError as error:
            return Unreadable(str(error))
        return self.engine.embed([prepared])[0]

    async def ready(self) -> dict[str, ColdStart]:
        return {"recognizer": ColdStart(import_ms=0.0, load_ms=0.0, warm_up_ms=0.0)}


class Several:
    """Models side by side; the first answers who asks for none."""

    def __init__(self, *models: EngineReader) -> None:
        self.models = {model.card.name: model for model in models}

    def cards(self) -> list[ModelCard]:
        return [model.card for model in self.models.values()]

    def choose(self, name: str | None) -> EngineReader:
        return self.models[expect_model(name, self.cards()).name]

    async def ready(self) -> dict[str, ColdStart]:
        return await next(iter(self.models.values())).ready()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def no_log(line: dict[str, Any]) -> None:
    """For tests that look at no log."""


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The URL of an app behind uvicorn, on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
