"""The root of a challenger's application, which no request passes through, and what is known of the champion's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glyphrun_serve.access import Guard
from glyphrun_serve.schemas import ModelCard
from glyphrun_serve.served_model import Release


@dataclass(frozen=True)
class Terms:
    """What a model is served with. settings, options: those it was started with; None where a Serve config was deployed."""

    card: ModelCard
    guard: Guard
    settings: dict[str, Any] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class ReleaseRoot:
    """Holds the handles of a release, so that Serve deploys what they lead to, and tells gateways of them."""

    def __init__(self, release: Release, terms: Terms) -> None:
        self._release = release
        self._terms = terms

    async def describe(self) -> Release:
        return self._release

    async def terms(self) -> Terms:
        """What whoever gives it the champion's place has to know."""
        return self._terms
