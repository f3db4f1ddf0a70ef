"""Replicas of a recognizer: a thin shell over the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from glyphrun.device import Precision
from glyphrun.encoded import Embedding
from glyphrun.ensemble import Ensemble, Reader
from glyphrun.ensemble_bundle import load_reader
from glyphrun.images import encode_image
from glyphrun.members import EnsembleError
from glyphrun.prediction import Prediction
from glyphrun_serve.routes import Refused, Unanswered, Unreadable

WARM_UP_FRAMES = 8


class Batching(BaseModel):
    """Requests that arrive within wait_s of one another are read together, at most `most` at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: int = Field(default=16, gt=0)
    wait_s: float = Field(default=0.005, ge=0)


@dataclass(frozen=True)
class Prepared:
    """One decoded item that waits for its batch."""

    stack: Any  # as the reader prepares it
    explain: bool
    decode_ms: float
    since: float


class RecognizerReplica:
    """An engine or an ensemble behind a queue: each item is decoded alone, then read together with those that wait."""

    def __init__(self, bundle: Path, batching: Batching, precision: Precision | None = None) -> None:
        granted = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(granted)))
        self._reader = load_reader(bundle, device=_granted_device(), precision=precision)
        # One thread reads, so that the event loop stays free to decode and to gather the next batch.
        self._reading = ThreadPoolExecutor(1, "read")
        self._batched: Callable[[Prepared], Coroutine[None, None, Prediction]] = serve.batch(
            max_batch_size=batching.most, batch_wait_timeout_s=batching.wait_s
        )(self._read_together)
        _warm_up(_patient(self._reader), batching.most)

    async def recognize(
        self, frames: Sequence[bytes], name: str, explain: bool
    ) -> Prediction | Unreadable | Unanswered:
        """Read the encoded frames of one item."""
        started = perf_counter()
        try:
            stack = await asyncio.to_thread(self._reader.prepare, frames, name=name)
        except ValueError as error:
            return Unreadable(str(error))
        since = perf_counter()
        try:
            return await self._batched(Prepared(stack, explain, (since - started) * 1e3, since))
        except EnsembleError as error:
            return Unanswered(str(error))

    async def embed(self, frames: Sequence[bytes], name: str) -> Embedding | Unreadable | Refused:
        """The encoder's features of one item, between two batches of readings."""
        try:
            stack = await asyncio.to_thread(self._reader.prepare, frames, name=name)
        except ValueError as error:
            return Unreadable(str(error))
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.embed, [stack])
        except ValueError as error:
            return Refused(str(error))
        return found[0]

    async def ready(self) -> bool:
        """True: a replica takes no calls before it is constructed, and it warms up while it is."""
        return True

    async def _read_together(self, items: list[Prepared]) -> list[Prediction]:
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, items)

    def _read(self, items: list[Prepared]) -> list[Prediction]:
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
            )
            for number, item in enumerate(items)
        ]


def _patient(reader: Reader) -> Reader:
    """The same members without deadlines, which no cold one would keep."""
    if not isinstance(reader, Ensemble):
        return reader
    settings = reader.settings.model_copy(update={"deadline_ms": {}})
    return Ensemble(reader.members, settings, reader.decode, files=reader.files)


def _warm_up(reader: Reader, most: int) -> None:
    blank = encode_image(np.zeros((reader.processor.height, reader.processor.width, 3), np.uint8))
    for items, frames in ((1, 1), (1, WARM_UP_FRAMES), (most, WARM_UP_FRAMES)):
        prepared = reader.prepare([blank] * frames, name="a blank picture")
        reader.read_prepared([prepared] * items, explain=True)


def _granted_device() -> torch.device:
    """A card that Ray has not granted may be seen by this process and belongs to another."""
    granted = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
    return torch.device("cuda" if granted and torch.cuda.is_available() else "cpu")
