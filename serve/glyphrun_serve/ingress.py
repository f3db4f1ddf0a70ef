"""The deployment that takes requests: a thin shell over the HTTP routes, in a process that starts without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from fastapi import FastAPI
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from glyphrun.encoded import Embedding
from glyphrun.prediction import Prediction
from glyphrun_serve.limits import Limits
from glyphrun_serve.routes import Busy, Refused, Unanswered, Unreadable, http_app
from glyphrun_serve.schemas import ModelCard

READY_S = 2.0  # a loaded replica says so within milliseconds


class Ingress:
    """The HTTP routes, answered by recognizer replicas."""

    def __init__(self, replicas: DeploymentHandle[Any], card: ModelCard, limits: Limits) -> None:
        self.card = card
        self._replicas = replicas
        self._limits = limits

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self, self._limits)

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Prediction | Unreadable | Unanswered:
        answer = self._answered(self._replicas.recognize.remote(frames, name, explain))
        found: Prediction | Unreadable | Unanswered = await answer
        return found

    async def embed(self, frames: Sequence[bytes], *, name: str) -> Embedding | Unreadable | Refused:
        found: Embedding | Unreadable | Refused = await self._answered(self._replicas.embed.remote(frames, name))
        return found

    async def _answered(self, response: Awaitable[Any]) -> Any:
        try:
            return await response
        except BackPressureError as error:
            raise Busy from error

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(READY_S):
                return bool(await self._replicas.ready.remote())
        except (TimeoutError, BackPressureError):
            return False
