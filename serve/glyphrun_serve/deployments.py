"""Replicas of a recognizer: a thin shell over a reader behind a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import ray
from ray import serve

from glyphrun.encoded import Embedding
from glyphrun.prediction import Prediction
from glyphrun.shelved import Shelved
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.batching import Batching
from glyphrun_serve.models import Failed, Refused, Unanswered, Unreadable
from glyphrun_serve.preprocess import Prepared
from glyphrun_serve.reading import QueuedReader
from glyphrun_serve.schemas import ColdStart

if TYPE_CHECKING:
    from glyphrun.device import Precision  # which imports torch, whose time is a replica's to tell


class RecognizerReplica:
    """What reads one bundle: a recognizer's, or that of an ensemble whose members are averaged.

    These share every step of one search, so they stay together in a replica. Members that vote have a deployment each.
    """

    def __init__(
        self,
        bundle: Path,
        batching: Batching,
        precision: Precision | None = None,
        place: int = 0,
        adapters: Mapping[str, Shelved] = {},
        adapter_bytes: int = 0,
    ) -> None:
        """place: which of the graph's image processors this bundle's is; adapter_bytes: what those loaded may take."""
        began = perf_counter()
        import torch  # here, so that what takes longest of a cold start is measured with it

        from glyphrun.adapter_shelf import AdapterShelf
        from glyphrun.engine import Engine
        from glyphrun.ensemble_bundle import load_reader

        imported = perf_counter()
        granted = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(granted.get("CPU", 1))))
        # A card that Ray has not granted may be seen by this process and belongs to another.
        device = torch.device("cuda" if granted.get("GPU", 0) and torch.cuda.is_available() else "cpu")
        reader = load_reader(bundle, device=device, precision=precision)
        shelf = None
        if adapters:
            assert isinstance(reader, Engine)  # the graph has adapters for no ensemble
            shelf = AdapterShelf(reader, adapters, adapter_bytes)
        self._reader = QueuedReader(reader, batching, place, shelf)
        self._tell_loaded = _told_to_serve(adapters, adapter_bytes)
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
        """Read one item, with the adapter that the call names."""
        return await self._reader.recognize(item, explain, await self._adapter())

    async def embed(self, item: Prepared | Unreadable) -> Embedding | Unreadable | Refused | Failed:
        """The encoder's features of one item, with the adapter that the call names."""
        return await self._reader.embed(item, await self._adapter())

    async def ready(self) -> ColdStart:
        """How long it took to start: a replica takes no calls before it has loaded and warmed up."""
        return self._cold_start

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        await self._reader.check()

    async def _adapter(self) -> str:
        """What the call is to be read with, "" for the base alone."""
        name = serve.get_multiplexed_model_id()
        if name:
            await self._tell_loaded(name)
        return name


def _told_to_serve(adapters: Mapping[str, Shelved], most_bytes: int) -> Callable[[str], Awaitable[str]]:
    """What makes Serve send calls for an adapter to this replica, until others have taken its place.

    Serve counts models and the shelf bytes. So many of the largest always have room on the shelf, so what Serve takes to
    be loaded here is.
    """

    async def told(name: str) -> str:
        return name

    largest = max((adapter.size for adapter in adapters.values()), default=0)
    most = most_bytes // largest if largest else 1
    tell: Callable[[str], Awaitable[str]] = serve.multiplexed(max_num_models_per_replica=most)(told)
    return tell
