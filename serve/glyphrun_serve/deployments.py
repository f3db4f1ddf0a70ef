"""Replicas of a recognizer: a thin shell over a reader behind a queue."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import ray

from glyphrun.device import Precision
from glyphrun.encoded import Embedding
from glyphrun.prediction import Prediction
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.batching import Batching
from glyphrun_serve.models import Failed, Refused, Unanswered, Unreadable
from glyphrun_serve.preprocess import Prepared
from glyphrun_serve.reading import QueuedReader
from glyphrun_serve.schemas import ColdStart


class RecognizerReplica:
    """What reads one bundle: a recognizer's, or that of an ensemble whose members are averaged.

    These share every step of one search, so they stay together in a replica. Members that vote have a deployment each.
    """

    def __init__(self, bundle: Path, batching: Batching, precision: Precision | None = None, place: int = 0) -> None:
        """place: which of the graph's image processors this bundle's is."""
        began = perf_counter()
        import torch  # here, so that what takes longest of a cold start is measured with it

        from glyphrun.ensemble_bundle import load_reader

        imported = perf_counter()
        granted = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
        # A card that Ray has not granted may be seen by this process and belongs to another.
        device = torch.device("cuda" if granted.get("GPU", 0) and torch.cuda.is_available() else "cpu")
        self._reader = QueuedReader(load_reader(bundle, device=device, precision=precision), batching, place)
        loaded = perf_counter()
        self._reader.warm_up()
        self._cold_start = ColdStart(
            import_ms=(imported - began) * 1e3,
            load_ms=(loaded - imported) * 1e3,
            warm_up_ms=milliseconds_since(loaded),
        )

    async def recognize(
        self, item: Prepared | Unreadable, explain: bool
    ) -> Prediction | Unreadable | Unanswered | Failed:
        """Read one item."""
        return await self._reader.recognize(item, explain)

    async def embed(self, item: Prepared | Unreadable) -> Embedding | Unreadable | Refused:
        """The encoder's features of one item."""
        return await self._reader.embed(item)

    async def ready(self) -> ColdStart:
        """How long it took to start: a replica takes no calls before it has loaded and warmed up."""
        return self._cold_start

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        await self._reader.check()
