"""How long batches of each size take on the path that a served request goes: image processors, queue, reader; without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from glyphrun.images import ImageProcessor
from glyphrun.prediction import Prediction
from glyphrun_serve.batching import Batching
from glyphrun_serve.models import Failed, Unanswered, Unreadable
from glyphrun_serve.preprocess import Prepared, Preprocess
from glyphrun_serve.reading import QueuedReader
from glyphrun_serve.tuning import BatchPoint, Curve, TuningError

if TYPE_CHECKING:
    from glyphrun.ensemble import Reader

WARM_UP, REPEATS, SECONDS = 2, 100, 20.0


class TornApart(RuntimeError):
    """A batch was not read as one, so its time says nothing of its size."""


async def measure_curve(
    reader: Reader,
    processors: Sequence[ImageProcessor],
    items: Sequence[Sequence[bytes]],
    sizes: Sequence[int],
    slo_ms: float,
    *,
    place: int = 0,
    explain: bool = True,
    repeats: int = REPEATS,
    seconds: float = SECONDS,
    clock: Callable[[], float] = perf_counter,
    advance: Callable[[int], None] | None = None,
) -> Curve:
    """The curve of one reader over the items in turn; of each size two unmeasured batches come first.

    processors: those of the whole graph, of which the reader's is at ``place``. sizes: ascending; after the first of
    which half the batches take longer than slo_ms none is measured. repeats: batches of each; at least one in ten of
    them, and no more once some seconds are over. advance is told each size that is done. Raises TuningError for items
    that cannot be read.
    """
    if not items:
        raise TuningError("there are no items with frames to measure with: give another --dataset, or none for noise")
    preprocess = Preprocess(processors)
    points: list[BatchPoint] = []
    item_bytes, ended = 0, ""
    for size in sizes:
        queue = QueuedReader(reader, Batching(most=size))
        times: list[tuple[float, float]] = []
        until = clock() + seconds
        try:
            for repeat in range(-WARM_UP, repeats):
                chosen = [items[(repeat * size + number) % len(items)] for number in range(size)]
                started = clock()
                prepared = [await _prepared(preprocess, frames) for frames in chosen]
                decoded = clock()
                # All are in the queue before it is first looked into, so they are one batch.
                found = await asyncio.gather(*(queue.recognize(item, explain) for item in prepared))
                read = clock()
                _expect_one_batch(found, size)
                if repeat >= 0:
                    times.append((1e3 * (decoded - started), 1e3 * (read - decoded)))
                if len(times) >= max(1, repeats // 10) and read > until:
                    break
        except TornApart as error:
            if not points:
                raise TuningError(f"not even one item can be read: {error}") from None
            ended = f"batches of {size} cannot be read at once: {error}"
            break
        item_bytes = sum(stack.pixels.nbytes for stack in prepared[0].stacks)
        points.append(_point(size, times))
        if advance:
            advance(size)
        if points[-1].answer_ms > slo_ms:
            ended = f"half the batches of {size} take longer than {slo_ms:g} ms"
            break
    return Curve(item_bytes=item_bytes, points=tuple(points), ended=ended)


async def _prepared(preprocess: Preprocess, frames: Sequence[bytes]) -> Prepared:
    item = await preprocess.prepare(frames, "an item")
    if isinstance(item, Unreadable):
        raise TuningError(item.message)
    return item


def _expect_one_batch(found: Sequence[Prediction | Unreadable | Unanswered | Failed], size: int) -> None:
    for answer in found:
        if not isinstance(answer, Prediction):
            raise TornApart(answer.message)
        if answer.batch != size:
            raise TornApart(f"they were read {answer.batch} at a time, as after an error or where memory is too small")


def _point(size: int, times: Sequence[tuple[float, float]]) -> BatchPoint:
    decode, read = np.array(times).T
    return BatchPoint(
        batch=size,
        repeats=len(times),
        decode_ms=float(np.median(decode)),
        read_ms=float(np.median(read)),
        read_p99_ms=_p99(read),
        answer_ms=float(np.median(decode + read)),
        answer_p99_ms=_p99(decode + read),
    )


def _p99(times: np.ndarray) -> float:
    """Within which 99 % of those measured ended: of fewer than a hundred the longest, for between two nothing was measured."""
    return float(np.percentile(times, 99, method="inverted_cdf"))
