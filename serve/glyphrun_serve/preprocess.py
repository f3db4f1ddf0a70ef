"""Replicas that decode images: a thin shell over the image processors, in a process that starts without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from glyphrun.images import FrameStack, ImageProcessor, encode_image, prepare_frames
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.models import Unreadable
from glyphrun_serve.schemas import ColdStart


@dataclass(frozen=True)
class Prepared:
    """One item as recognizers take it: its frames made ready by each of the graph's image processors, in their order."""

    stacks: tuple[FrameStack, ...]
    decode_ms: float


class Preprocess:
    """Image processors behind a queue."""

    def __init__(self, processors: Sequence[ImageProcessor]) -> None:
        started = perf_counter()
        self._processors = tuple(processors)
        # One thread: small images spend their time under the interpreter's lock, and more threads only fight for it.
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._decode([blank(processors[0])], "a blank picture")
        self._cold_start = ColdStart(import_ms=0.0, load_ms=0.0, warm_up_ms=milliseconds_since(started))

    async def prepare(self, frames: Sequence[bytes], name: str) -> Prepared | Unreadable:
        """Decode the encoded frames of one item once, for all recognizers."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, self._decode, frames, name)

    async def ready(self) -> ColdStart:
        """How long it took to start: a replica takes no calls before it has."""
        return self._cold_start

    def _decode(self, frames: Sequence[bytes], name: str) -> Prepared | Unreadable:
        started = perf_counter()
        try:
            stacks = prepare_frames(frames, self._processors, name=name)
        except ValueError as error:
            return Unreadable(str(error))
        return Prepared(stacks, milliseconds_since(started))


def blank(processor: ImageProcessor) -> bytes:
    """An encoded black picture of the size that a processor makes."""
    return encode_image(np.zeros((processor.height, processor.width, 3), np.uint8))
