"""Requests that are worth a label become a data set, in a thread of its own: no request waits for it or fails by it.

Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Condition, Thread
from typing import Any

from glyphrun.data.rolling import UNLABELLED, RollingDataset
from glyphrun.data.sample import DatasetCard, Sample
from glyphrun.prediction import Prediction
from glyphrun_serve.request_ids import current_request
from glyphrun_serve.sample_log import SampleLog, reasons_to_keep
from glyphrun_serve.schemas import HEARD, ModelCard, ModelIdentity

# What may wait for the disk. More is dropped: a request's memory must not outlive it by more than this.
QUEUE_ITEMS = 256
QUEUE_BYTES = 64 * 1024**2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offered:
    """A request and what was read in it."""

    frames: tuple[bytes, ...]
    found: Prediction
    source: str
    why: tuple[str, ...]
    request: str | None
    at: float

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


class KeptSamples:
    """The data set of a server's requests that are worth a label.

    outcomes counts what became of them: kept, known (the same frames are there) or larger than a shard, dropped because the
    queue was full, failed to be written.
    """

    def __init__(
        self, log: SampleLog, model: ModelCard, *, every_s: float = 1.0, now: Callable[[], float] = time.time
    ) -> None:
        """every_s: how long requests are gathered before they are written; now: seconds since 1970."""
        self.outcomes = Counter(kept=0, known=0, dropped=0, failed=0)
        self._log = log
        self._every_s = every_s
        self._now = now
        self._dataset = RollingDataset(
            log.folder, _new_card(log, model), most_items=log.items, most_bytes=log.total_bytes
        )
        self._queue: deque[Offered] = deque()
        self._held = self._held_bytes = 0  # in the queue and being written
        self._changed = Condition()
        self._closed = False
        self._writer: Thread | None = None
        self._told = ""

    def offer(self, frames: Sequence[bytes], found: Prediction, model: ModelIdentity) -> None:
        """Keep a request that a model has read if it is worth a label and there is room; returns at once."""
        why = reasons_to_keep(found, self._log.below)
        if not why:
            return
        offered = Offered(
            tuple(frames), found, f"{model.name} version {model.version}", why, current_request.get(), self._now()
        )
        with self._changed:
            if self._closed or self._held >= QUEUE_ITEMS or self._held_bytes + offered.size > QUEUE_BYTES:
                self.outcomes["dropped"] += 1
                return
            self._held += 1
            self._held_bytes += offered.size
            self._queue.append(offered)
            if self._writer is None:
                self._writer = Thread(target=self._write_on, name="kept-samples", daemon=True)
                self._writer.start()
            self._changed.notify()

    def close(self) -> None:
        """Write what waits and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join()

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._changed.wait_for(lambda: self._closed, timeout=self._every_s)
                taken = list(self._queue)
                self._queue.clear()
                if not taken and self._closed:
                    return
            outcomes = self._written(taken)
            with self._changed:
                self.outcomes.update(outcomes)
                self._held -= len(taken)
                self._held_bytes -= sum(offered.size for offered in taken)

    def _written(self, taken: Sequence[Offered]) -> dict[str, int]:
        try:
            kept = self._dataset.add(self._sample(offered) for offered in taken)
        except Exception as error:  # whatever it is, requests go on being answered
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("Samples cannot be kept in %s: %s", self._log.folder, error)
            return {"failed": len(taken)}
        return {"kept": kept, "known": len(taken) - kept}

    def _sample(self, offered: Offered) -> Sample:
        """Nothing that the client said is in it but the frames: a file's name is never here, a request's id is hashed."""
        found = offered.found
        meta: dict[str, Any] = {
            "why": list(offered.why),
            "reading": found.text,
            "confidence": round(found.confidence, 6),
            "n_best": [hypothesis.text for hypothesis in found.n_best],
            "at": datetime.fromtimestamp(offered.at, UTC).isoformat(timespec="seconds"),
        }
        if found.members:
            meta["members"] = {member.member: member.text for member in found.members if member.status in HEARD}
        return Sample(
            sample_id=_name(*offered.frames),
            frames=offered.frames,
            text=None,
            split=UNLABELLED,
            # What came together, such as the tracklets of a clip, must stay together when splits are made.
            group=None if offered.request is None else _name(offered.request.encode()),
            source=offered.source,
            meta=meta,
        )


def _name(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def _new_card(log: SampleLog, model: ModelCard) -> DatasetCard:
    return DatasetCard(
        name=f"{model.name}, to be labelled",
        licence="not stated",
        description=f"Requests to a server of {model.name} that were read with less than {log.below:.0%} confidence, "
        "abstained from or read differently by members. The text is to be filled in; meta says what was read.",
        charset=model.charset,
        counts={},
        shards=(),
    )
