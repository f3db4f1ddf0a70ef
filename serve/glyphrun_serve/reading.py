"""A reader behind a queue: items that wait are read together, each has its own answer, and a poisoned one fails alone.

Knows nothing of Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
    from glyphrun.adapter_shelf import AdapterShelf
    from glyphrun.ensemble import Reader

WARM_UP_FRAMES = 8
LONGEST_REASON = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """One prepared item that waits for its batch; adapter: what it is to be read with, "" for the base alone."""

    stack: FrameStack
    adapter: str
    explain: bool
    decode_ms: float
    since: float


class QueuedReader:
    """What reads one bundle: an engine, or members of an ensemble that are averaged and so read as one."""

    def __init__(
        self, reader: Reader, batching: Batching, place: int = 0, adapters: AdapterShelf | None = None
    ) -> None:
        """place: which of an item's stacks is prepared for this reader; adapters: those that it may be asked to wear."""
        self._reader = reader
        self._batching = batching
        self._place = place
        self._adapters = adapters
        self._answer = Batcher(self._read, batching, kind=lambda item: item.adapter)
        self._failures = 0

    async def recognize(
        self, item: Prepared | Unreadable, explain: bool, adapter: str = ""
    ) -> Prediction | Unreadable | Unanswered | Failed:
        """Read one item; one that could not be prepared is what it was found to be."""
        if isinstance(item, Unreadable):
            return item
        stack = item.stacks[self._place]
        try:
            return await self._answer(Waiting(stack, adapter, explain, item.decode_ms, perf_counter()))
        except EnsembleError as error:
            return Unanswered(str(error))
        except Exception as error:  # whatever it is, it concerns this item alone
            return self._failed(error)

    async def embed(self, item: Prepared | Unreadable, adapter: str = "") -> Embedding | Unreadable | Refused | Failed:
        """The encoder's features of one item, between two batches of readings."""
        if isinstance(item, Unreadable):
            return item
        try:
            return await self._answer.between(partial(self._embed, item.stacks[self._place], adapter))
        except Exception as error:  # whatever it is, it concerns this item alone
            return self._failed(error)

    def warm_up(self) -> None:
        """Read what will be read: a picture, a tracklet, and as many of these as a batch holds."""
        for items, frames in ((1, 1), (1, WARM_UP_FRAMES), (self._batching.most, WARM_UP_FRAMES)):
            self._read_blank(items, frames)

    async def check(self) -> None:
        """Raises if not even a blank picture can be read after items have failed, as on a card that is lost."""
        if self._failures:
            self._failures = 0
            await self._answer.between(partial(self._read_blank, 1, 1))

    def _failed(self, error: Exception) -> Failed:
        self._failures += 1
        logger.error("an item cannot be read, even alone", exc_info=error)
        return Failed(shorten(f"{type(error).__name__}: {error}", LONGEST_REASON, placeholder=" …"))

    def _read_blank(self, items: int, frames: int) -> None:
        prepared = self._reader.prepare([blank(self._reader.processor)] * frames, name="a blank picture")
        self._reader.read_prepared([prepared] * items, explain=True)

    def _embed(self, stack: FrameStack, adapter: str) -> Embedding | Refused:
        with self._wearing(adapter):
            try:
                return self._reader.embed([stack])[0]
            except ValueError as error:
                return Refused(str(error))

    @contextmanager
    def _wearing(self, adapter: str) -> Iterator[dict[str, float]]:
        """Within it is read with an adapter; tells how many ms that took, if it had to be loaded."""
        if not adapter:
            yield {}
            return
        if self._adapters is None:
            raise KeyError(f"there is no adapter {adapter}")
        with self._adapters.worn(adapter) as spent:
            yield {"adapter": spent} if spent else {}

    def _read(self, items: list[Waiting]) -> list[Prediction]:
        """Items of one adapter."""
        started = perf_counter()
        found: dict[int, Prediction] = {}
        with self._wearing(items[0].adapter) as loading:
            for explain in (False, True):
                chosen = [number for number, item in enumerate(items) if item.explain == explain]
                if chosen:
                    stacks = [items[number].stack for number in chosen]
                    predictions = self._reader.read_prepared(stacks, explain=explain)
                    found.update(zip(chosen, predictions, strict=True))
        return [
            replace(
                found[number],
                timings={
                    "decode": item.decode_ms,
                    "wait": (started - item.since) * 1e3,
                    **loading,
                    **found[number].timings,
                },
                batch=len(items),
            )
            for number, item in enumerate(items)
        ]
