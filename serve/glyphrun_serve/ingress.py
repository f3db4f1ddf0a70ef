"""The deployment that takes requests: a thin shell over the HTTP routes and the vote, in a process that starts without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from glyphrun.encoded import Embedding
from glyphrun.members import EnsembleError, Jury, Reading, no_features, vote_of_members
from glyphrun.prediction import Prediction
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.access import Guard
from glyphrun_serve.calls import BUSY, answer_of
from glyphrun_serve.limits import Limits
from glyphrun_serve.panel import Panel
from glyphrun_serve.routes import Busy, Failed, Lost, Refused, Unanswered, Unreadable, http_app
from glyphrun_serve.schemas import ColdStart, ModelCard

READY_S = 2.0  # a loaded replica says so within milliseconds

Found = Prediction | Unreadable | Unanswered | Failed
# The response that holds the prepared frames of an item, for an attempt that is counted from 0.
Prepare = Callable[[int], Any]


class Ingress:
    """The HTTP routes, answered by the replicas that prepare images and those of each recognizer.

    Members vote here and not in a deployment of their own, which would be one more hop for every request, while a vote over
    n-best lists takes a fraction of a millisecond. Correction after the vote runs here too, in a thread.
    """

    def __init__(
        self,
        preprocess: DeploymentHandle[Any],
        recognizers: Mapping[str, DeploymentHandle[Any]],
        jury: Jury | None,
        card: ModelCard,
        limits: Limits,
        guard: Guard,
    ) -> None:
        """recognizers: by their members' names; one that answers alone needs no jury."""
        self.card = card
        self._preprocess = preprocess
        self._recognizers = dict(recognizers)
        self._limits = limits
        self._jury = jury
        if jury is not None:
            self._corrector = jury.corrector()
            self._panel = Panel(list(recognizers), jury.settings, limits.member_s)
        self._started = False
        self._guard = guard

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self, self._limits, self._guard, named_outside=True)

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Found:
        """What the recognizer says of an item, or its members together."""
        prepared = self._prepared(frames, name)
        if self._jury is not None:
            return await self._voted(self._jury, prepared)
        (recognize,) = self._recognize.values()
        found: Found = await answer_of(lambda attempt: recognize.remote(prepared(attempt), explain))
        return found

    async def embed(self, frames: Sequence[bytes], *, name: str) -> Embedding | Unreadable | Refused:
        """The features of an item, which a recognizer alone has."""
        if self._jury is not None:
            return Refused(no_features(self._recognizers))
        prepared = self._prepared(frames, name)
        (recognizer,) = self._recognizers.values()
        found: Embedding | Unreadable | Refused = await answer_of(
            lambda attempt: recognizer.embed.remote(prepared(attempt))
        )
        return found

    async def ready(self) -> dict[str, ColdStart]:
        """How long each deployment took to start; empty while no answers can be given.

        That is until every member is warm, and later whenever fewer of them than a quorum are.
        """
        quorum = self._jury.settings.quorum if self._jury else 1
        first, *others = await asyncio.gather(*map(_cold_start, (self._preprocess, *self._recognizers.values())))
        warm = [start for start in others if start]
        self._started = self._started or (first is not None and len(warm) == len(others))
        if first is None or len(warm) < quorum or not self._started:
            return {}
        return dict([first, *warm])

    async def _voted(self, jury: Jury, prepared: Prepare) -> Found:
        started = perf_counter()
        readings = await self._panel.readings(partial(self._ask, prepared))
        if isinstance(readings, Unreadable):
            return readings
        read = milliseconds_since(started)
        vote = partial(vote_of_members, readings, jury.settings, jury.decode, self._corrector, jury.provenance)
        try:
            (found,) = await asyncio.to_thread(vote) if self._corrector else vote()
        except EnsembleError as error:
            if any(reading.status == f"failed: {BUSY}" for reading in readings.values()):
                raise Busy from error
            return Unanswered(str(error))
        found.timings.update(_decoded(readings), read=read, vote=milliseconds_since(started) - read)
        return found

    async def _ask(self, prepared: Prepare, member: str) -> Prediction | Failed | Unreadable:
        recognize = self._recognize[member]
        async with asyncio.timeout(self._limits.answer_s):
            found: Prediction | Failed | Unreadable = await answer_of(
                lambda attempt: recognize.remote(prepared(attempt), False), partial(self._panel.died, member)
            )
        return found

    def _prepared(self, frames: Sequence[bytes], name: str) -> Prepare:
        """What is passed on is the response itself, so that frames go from replica to replica and never come here.

        Recognizers share it; after the death of a replica, which may have held it, frames are prepared anew.
        """
        first = self._prepare.remote(frames, name)
        return lambda attempt: self._prepare.remote(frames, name) if attempt else first

    # The method of a handle costs as much to make as to call.
    @cached_property
    def _prepare(self) -> DeploymentHandle[Any]:
        return self._preprocess.prepare

    @cached_property
    def _recognize(self) -> dict[str, DeploymentHandle[Any]]:
        return {name: handle.recognize for name, handle in self._recognizers.items()}


async def _cold_start(handle: DeploymentHandle[Any]) -> tuple[str, ColdStart] | None:
    """The name of a deployment with how long a replica of it took to start; None if none answers."""
    try:
        async with asyncio.timeout(READY_S):
            return handle.deployment_name, await answer_of(lambda _: handle.ready.remote())
    except (TimeoutError, Busy, Lost):
        return None


def _decoded(readings: Mapping[str, Reading]) -> dict[str, float]:
    """How long decoding took, which members were told with the frames."""
    for reading in readings.values():
        for prediction in reading.predictions or ():
            return {"decode": prediction.timings["decode"]}
    return {}
