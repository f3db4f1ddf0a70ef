"""The deployment that takes requests: a thin shell over the HTTP routes, in a process that starts without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import FastAPI
from ray import serve

from glyphrun_serve.access import Guard
from glyphrun_serve.board_actor import BoardLine
from glyphrun_serve.following import Follower
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Model
from glyphrun_serve.release_plan import Plan
from glyphrun_serve.release_root import Terms
from glyphrun_serve.routes import http_app
from glyphrun_serve.sample_log import SampleLog
from glyphrun_serve.served_model import Release, ServedModel
from glyphrun_serve.traffic import Traffic

MEET_S = 5.0


class Ingress:
    """The HTTP routes, answered by the replicas of a release, or of two while one takes the other's place."""

    def __init__(
        self,
        release: Release,
        limits: Limits,
        guard: Guard,
        log_samples: SampleLog | None,
        terms: Terms | None = None,
    ) -> None:
        self._release = release
        self._limits = limits
        self._guard = guard
        self._log_samples = log_samples
        self._terms = terms

    async def __serve_build_asgi_app__(self) -> FastAPI:
        samples = None
        if self._log_samples is not None:
            from glyphrun_serve.kept_samples import KeptSamples

            samples = KeptSamples(self._log_samples, self._release.card)
        model = ServedModel(self._release, self._limits)
        traffic = Traffic(model, *model.adapted(), answer_s=self._limits.answer_s)
        follower = Follower(traffic, BoardLine().exchange, self._challenger)
        await follower.look()  # before the first request is answered
        self._following = asyncio.create_task(follower.follow())
        return http_app(
            traffic,
            self._limits,
            self._guard,
            named_outside=True,
            samples=samples,
            outcomes=traffic.outcomes,
        )

    async def terms(self) -> Terms:
        """What whoever replaces this release has to know."""
        if self._terms is None:
            return Terms(self._release.card, self._guard)
        return self._terms

    async def _challenger(self, plan: Plan) -> Sequence[Model]:
        # One that is removed while it is asked never answers, and the board is not listened to meanwhile.
        async with asyncio.timeout(MEET_S):
            release: Release = await serve.get_app_handle(plan.application).describe.remote()
        model = ServedModel(release, self._limits)
        await model.ready()  # finds the replicas, which the first item would otherwise wait for
        return model, *model.adapted()
