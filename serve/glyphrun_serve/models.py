"""What answers requests: models by their names, and what can become of an item. Knows nothing of HTTP or of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from glyphrun.encoded import Embedding
from glyphrun.prediction import Prediction
from glyphrun_serve.schemas import ColdStart, ModelCard

NAMED = 8

Found = TypeVar("Found")


@dataclass(frozen=True)
class Unreadable:
    """Why an item's images cannot be decoded. A value, not an exception: the server itself did nothing wrong."""

    message: str


@dataclass(frozen=True)
class Refused:
    """Why this model cannot answer such a question at all."""

    message: str


@dataclass(frozen=True)
class Unanswered:
    """Why an ensemble has no answer: too few of its members read in time."""

    message: str


@dataclass(frozen=True)
class Failed:
    """Why a recognizer could not read an item: it raised an error over it, also when it read the item alone."""

    message: str


@dataclass(frozen=True)
class ReadBy(Generic[Found]):
    """What was found, and by which model, where that is settled only when an item is read."""

    found: Found
    card: ModelCard


class Busy(Exception):
    """More requests are waiting than may wait."""


class Lost(Exception):
    """Replicas died over a request, or there are none."""


class UnknownModel(Exception):
    """Nothing of this name is served; the message names what is."""


class Model(Protocol):
    """What reads: frames in, a reading out."""

    @property
    def card(self) -> ModelCard:
        """What is told of it."""

    async def read(
        self, frames: Sequence[bytes], *, name: str, explain: bool
    ) -> Prediction | ReadBy[Prediction] | Unreadable | Unanswered | Failed:
        """Raises Busy if no more requests may wait, Lost if replicas died over it again and again."""

    async def embed(
        self, frames: Sequence[bytes], *, name: str
    ) -> Embedding | ReadBy[Embedding] | Unreadable | Refused | Failed:
        """Raises Busy if no more requests may wait, Lost if replicas died over it again and again."""

    async def ready(self) -> dict[str, ColdStart]:
        """How long each part took to start; empty while there would be no answers."""


class Models(Protocol):
    """The models that a server answers with."""

    def cards(self) -> Sequence[ModelCard]:
        """What can be asked for; the first answers those who ask for none."""

    def choose(self, name: str | None) -> Model:
        """Who answers a request for a model, or for none. Raises UnknownModel."""

    async def ready(self) -> dict[str, ColdStart]:
        """How long each part took to start; empty while there would be no answers."""


def expect_model(name: str | None, cards: Sequence[ModelCard]) -> ModelCard:
    """The card of the model that is asked for by name or NAME@VERSION. Raises UnknownModel.

    Adapters have the name NAME:ADAPTER; «:ADAPTER» is one of the first card's model.
    """
    wanted = f"{cards[0].name}{name}" if name and name.startswith(":") else name
    for card in cards:
        if wanted in (None, card.name, f"{card.name}@{card.version}"):
            return card
    known = [card.name for card in cards[:NAMED]]
    others = f" or {len(cards) - NAMED} others that /v1/models lists" if len(cards) > NAMED else ""
    raise UnknownModel(f"There is no model {wanted!r} here; ask for {', '.join(known)}{others}, or for none.")
