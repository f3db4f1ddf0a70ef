"""The deployment that takes requests: a thin shell over the HTTP routes, in a process that starts without torch."""

from __future__ import annotations

from fastapi import FastAPI

from glyphrun_serve.access import Guard
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import expect_model
from glyphrun_serve.routes import http_app
from glyphrun_serve.sample_log import SampleLog
from glyphrun_serve.schemas import ColdStart, ModelCard
from glyphrun_serve.served_model import Release, ServedModel


class Ingress:
    """The HTTP routes, answered by the replicas of a release."""

    def __init__(self, release: Release, limits: Limits, guard: Guard, log_samples: SampleLog | None) -> None:
        self._model = ServedModel(release, limits)
        self._models = {model.card.name: model for model in (self._model, *self._model.adapted())}
        self._limits = limits
        self._guard = guard
        self._log_samples = log_samples

    def __serve_build_asgi_app__(self) -> FastAPI:
        samples = None
        if self._log_samples is not None:
            from glyphrun_serve.kept_samples import KeptSamples

            samples = KeptSamples(self._log_samples, self._model.card)
        return http_app(self, self._limits, self._guard, named_outside=True, samples=samples)

    def cards(self) -> list[ModelCard]:
        """What can be asked for, what answers where nothing is asked for first."""
        return [model.card for model in self._models.values()]

    def choose(self, name: str | None) -> ServedModel:
        """Who answers a request for a model. Raises UnknownModel."""
        return self._models[expect_model(name, self.cards()).name]

    async def ready(self) -> dict[str, ColdStart]:
        """How long each deployment took to start; empty while no answers can be given."""
        return await self._model.ready()
