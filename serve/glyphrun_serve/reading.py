"""A reader behind a queue: items that wait are read together, each has its own answer, and a poisoned one fails alone.

Knows nothing of Ray.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from textwrap import shorten
from time import perf_counter
from typing import TYPE_CHECKING

from glyphrun.encoded import Embedding
from glyphrun.images import FrameStack
from glyphrun.members import EnsembleError
from glyphrun.prediction import Prediction
from glyphrun_serve.batching import Batcher, Batching
from glyphrun_serve.models import Failed, Refused, Unanswered, Unreadable
from glyphrun_serve.preprocess import Prepared, blank

if TYPE_CHECKING:
    from glyphrun.ensemble import Reader

WARM_UP_FRAMES = 8
LONGEST_REASON = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """One prepared item that waits for its batch."""

    stack: FrameStack
    explain: bool
    decode_ms: float
    since: float


class QueuedReader:
    """What reads one bundle: an engine, or members of an ensemble that are averaged and so read as one."""

    def __init__(self, reader: Reader, batching: Batching, place: int = 0) -> None:
        """place: which of an item's stacks is prepared for this reader."""
        self._reader = reader
        self._batching = batching
        self._place = place
        self._answer = Batcher(self._read, batching)
        self._failures = 0

    async def recognize(
        self, item: Prepared | Unreadable, explain: bool
    ) -> Prediction | Unreadable | Unanswered | Failed:
        """Read one item; one that could not be prepared is what it was found to be."""
        if isinstance(item, Unreadable):
            return item
        try:
            return await self._answer(Waiting(item.stacks[self._place], explain, item.decode_ms, perf_counter()))
        except EnsembleError as error:
            return Unanswered(str(error))
        except Exception as error:  # whatever it is, it concerns this item alone
            self._failures += 1
            logger.exception("an item cannot be read, even alone")
            return Failed(shorten(f"{type(error).__name__}: {error}", LONGEST_REASON, placeholder=" …"))

    async def embed(self, item: Prepared | Unreadable) -> Embedding | Unreadable | Refused:
        """The encoder's features of one item, between two batches of readings."""
        if isinstance(item, Unreadable):
            return item
        try:
            found = await self._answer.between(partial(self._reader.embed, [item.stacks[self._place]]))
        except ValueError as error:
            return Refused(str(error))
        return found[0]

    def warm_up(self) -> None:
        """Read what will be read: a picture, a tracklet, and as many of these as a batch holds."""
        for items, frames in ((1, 1), (1, WARM_UP_FRAMES), (self._batching.most, WARM_UP_FRAMES)):
            self._read_blank(items, frames)

    async def check(self) -> None:
        """Raises if not even a blank picture can be read after items have failed, as on a card that is lost."""
        if self._failures:
            self._failures = 0
            await self._answer.between(partial(self._read_blank, 1, 1))

    def _read_blank(self, items: int, frames: int) -> None:
        prepared = self._reader.prepare([blank(self._reader.processor)] * frames, name="a blank picture")
        self._reader.read_prepared([prepared] * items, explain=True)

    def _read(self, items: list[Waiting]) -> list[Prediction]:
        started = perf_counter()
        found: dict[int, Prediction] = {}
        for explain in (False, True):
            chosen = [number for number, item in enumerate(items) if item.explain == explain]
            if chosen:
                predictions = self._reader.read_prepared([items[number].stack for number in chosen], explain=explain)
                found.update(zip(chosen, predictions, strict=True))
        return [
            replace(
                found[number],
                timings={
                    "decode": item.decode_ms,
                    "wait": (started - item.since) * 1e3,
                    **found[number].timings,
                },
                batch=len(items),
            )
            for number, item in enumerate(items)
        ]
