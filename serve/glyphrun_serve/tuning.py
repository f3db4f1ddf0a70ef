"""From the measured times of batches to what a Serve config says, for a promise that 99 % of items are answered in time.

Batch size: a size keeps the promise if the 99th percentile of a whole batch, from encoded frames to text, and that of reading
the batch before it, for which an item waits that has just missed it, are within it together, at every recognizer. Of the
sizes up to the first that does not, the smallest that reads 95 % as many items a second as the best of them: a larger one
would make everybody wait and read no more. So a tighter promise never gives larger batches.

Batch wait: none where a full batch takes more than twice as long as an item, for then waiting costs more than it saves; else
a tenth of what a lone client's answer takes, within what the promise leaves.

Ongoing requests: at most two batches, one that is read and one that fills. So while batches are full nobody waits for more than
one other; of a burst of more than a batch at an idle replica, the last items wait for two. Where one batch is there on average,
a second often waits, and another replica is worth its start.

Queue: Little's law. As many as the fewest replicas read, at the 99th percentile of a batch, in the time that a request has
beyond the promise, shared by the gateways, for each has a queue of its own; and no more than fit into 256 MiB.

Replicas: the range that is given, or as many as read a stated peak at seven tenths of what they can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, takewhile
from math import ceil, floor

from pydantic import BaseModel, ConfigDict, Field

ENOUGH = 0.95  # of the items a second of the best size
HARDLY_LONGER = 2.0  # times an item alone, of a full batch that is worth a wait
LONE_SHARE = 0.1  # of a lone client's time, that it may wait for others
BUSY = 0.7  # of the time, that a replica reads at the stated peak: nearer to 1 queues grow without end
QUEUE_BYTES = 256 * 1024**2


class TuningError(ValueError):
    """Nothing can be promised; the message says what was measured and what to do."""


class BatchPoint(BaseModel):
    """Milliseconds of batches of one size: medians, and 99th percentiles.

    decode_ms: of all its items, one after the other; read: from prepared items to text; answer: both together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(gt=0)
    repeats: int = Field(gt=0)
    decode_ms: float = Field(gt=0)
    read_ms: float = Field(gt=0)
    read_p99_ms: float = Field(gt=0)
    answer_ms: float = Field(gt=0)
    answer_p99_ms: float = Field(gt=0)

    @property
    def worst_ms(self) -> float:
        """Of an item that has just missed a batch of this size: it waits for that one and is read in the next."""
        return self.answer_p99_ms + self.read_p99_ms

    @property
    def items_per_s(self) -> float:
        """What one replica reads where batches of this size follow each other."""
        return 1e3 * self.batch / self.read_ms


class Curve(BaseModel):
    """What was measured of one recognizer, smallest batch first; item_bytes: of a prepared item.

    ended: why no larger batches were measured, if not for the bound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_bytes: int = Field(gt=0)
    points: tuple[BatchPoint, ...] = Field(min_length=1)
    ended: str = ""


@dataclass(frozen=True)
class Bounds:
    """Seconds that a request may take, the fewest and the most replicas of each recognizer, gateways before them."""

    answer_s: float
    replicas: Mapping[str, tuple[int, int]]
    gateways: int = 1


@dataclass(frozen=True)
class Replicas:
    """What a config says of one recognizer, with the items a second that each replica reads."""

    max_ongoing_requests: int
    target_ongoing_requests: int
    max_queued_requests: int
    min_replicas: int
    max_replicas: int
    items_per_s: float


@dataclass(frozen=True)
class Tuning:
    """What a config says; worst_ms: of the slowest recognizer at this batch size, without the wait."""

    slo_ms: float
    most: int
    wait_s: float
    worst_ms: float
    recognizers: Mapping[str, Replicas]

    def told(self) -> list[str]:
        """Each value with where it comes from, a line each."""
        lines = [
            f"batches of {self.most}: 99 % of items are answered within {self.worst_ms:.1f} ms of {self.slo_ms:g} ms, "
            "the wait for the batch before theirs counted",
            f"batch wait {1e3 * self.wait_s:g} ms"
            + ("" if self.wait_s else ": what comes while a batch is read is the next one"),
        ]
        for name, one in self.recognizers.items():
            lines.append(
                f"{name}: {one.items_per_s:.0f} items/s a replica; {one.min_replicas} to {one.max_replicas} replicas, one more "
                f"above {one.target_ongoing_requests} ongoing requests each, at most {one.max_ongoing_requests}; "
                f"{one.max_queued_requests} more may wait, then 503"
            )
        return lines


def sizes_up_to(bound: int) -> list[int]:
    """1, 2, 4, … up to the bound."""
    return [1 << power for power in range(bound.bit_length())]


def tune(curves: Mapping[str, Curve], slo_ms: float, bounds: Bounds, peak: float | None = None) -> Tuning:
    """What a config says for recognizers that all read each item, by the rules above.

    peak: items a second that come at most. Raises TuningError if no size keeps the promise, or if requests are cut off
    before it is due.
    """
    if slo_ms >= 1e3 * bounds.answer_s:
        raise TuningError(
            f"requests are cut off after {bounds.answer_s:g} s, so {slo_ms:g} ms cannot be promised: promise less with --slo-ms, "
            "or raise limits.answer_s and http_options.request_timeout_s in the base"
        )
    points = _common(curves)
    sizes = list(points)
    # Larger batches take no less time; where a measured one does, that was luck.
    worst = dict(
        zip(sizes, accumulate((max(one.worst_ms for one in points[size].values()) for size in sizes), max), strict=True)
    )
    kept = list(takewhile(lambda size: worst[size] <= slo_ms, sizes))
    if not kept:
        raise TuningError(_missed(points, worst, slo_ms))
    rate = {size: min(one.items_per_s for one in points[size].values()) for size in kept}
    most = next(size for size in kept if rate[size] >= ENOUGH * max(rate.values()))
    return Tuning(
        slo_ms=slo_ms,
        most=most,
        wait_s=_wait_ms(points[sizes[0]], points[most], slo_ms - worst[most]) / 1e3,
        worst_ms=worst[most],
        recognizers={
            name: _replicas(name, points[most][name], curve.item_bytes, slo_ms, bounds, peak)
            for name, curve in curves.items()
        },
    )


def _common(curves: Mapping[str, Curve]) -> dict[int, dict[str, BatchPoint]]:
    """The points of all recognizers by batch size, smallest first, of the sizes that all were measured at."""
    measured = {name: {point.batch: point for point in curve.points} for name, curve in curves.items()}
    sizes = sorted(set.intersection(*map(set, measured.values())))
    return {size: {name: points[size] for name, points in measured.items()} for size in sizes}


def _missed(points: Mapping[int, Mapping[str, BatchPoint]], worst: Mapping[int, float], slo_ms: float) -> str:
    size = min(points)
    name, slowest = max(points[size].items(), key=lambda one: one[1].worst_ms)
    return (
        f"no batch size answers 99 % of items within {slo_ms:g} ms: the best that was measured is {worst[size]:.1f} ms, with "
        f"batches of {size} at {name}, {slowest.answer_p99_ms:.1f} ms from frames to text after {slowest.read_p99_ms:.1f} ms for "
        "the batch before; promise that much with --slo-ms, give replicas more cores or a card in the base, or serve what reads "
        "faster (glyphrun quantize, greedy decoding, a smaller recognizer)"
    )


def _wait_ms(alone: Mapping[str, BatchPoint], full: Mapping[str, BatchPoint], left_ms: float) -> float:
    first, last = next(iter(alone.values())), next(iter(full.values()))
    if last.batch == first.batch or any(full[name].read_ms > HARDLY_LONGER * alone[name].read_ms for name in full):
        return 0.0
    wait = min(left_ms, LONE_SHARE * max(one.answer_ms for one in alone.values()))
    return floor(10 * wait) / 10


def _replicas(
    name: str, point: BatchPoint, item_bytes: int, slo_ms: float, bounds: Bounds, peak: float | None
) -> Replicas:
    fewest, most = bounds.replicas[name]
    if peak is not None:
        most = max(1, fewest, ceil(peak / (BUSY * point.items_per_s)))
    drained_per_s = max(1, fewest) * 1e3 * point.batch / point.read_p99_ms
    within_time = (bounds.answer_s - slo_ms / 1e3) * drained_per_s
    return Replicas(
        max_ongoing_requests=2 * point.batch,
        target_ongoing_requests=point.batch,
        max_queued_requests=max(1, floor(min(within_time, QUEUE_BYTES / item_bytes) / bounds.gateways)),
        min_replicas=fewest,
        max_replicas=most,
        items_per_s=point.items_per_s,
    )
