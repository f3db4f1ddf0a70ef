"""A split that each reader encodes once, for all the processes that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray

from glyphrun.bundle import load_engine
from glyphrun.data.batches import FrameArrays, load_split
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor
from glyphrun.sweeps.encodings import Encoding, size_in_bytes, store
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.points import DecodePoint


@dataclass(frozen=True)
class Split:
    """What is read: of a data set's split all items, or as many as the limit says, drawn by the seed."""

    dataset: Path
    name: str
    limit: int | None = None
    seed: int = 0

    def chosen(self, items: int) -> np.ndarray:
        """The numbers of the items that are read, of so many."""
        if self.limit is None or self.limit >= items:
            return np.arange(items)
        return np.sort(np.random.default_rng(self.seed).choice(items, self.limit, replace=False))


def encode_split(
    points: Iterable[DecodePoint], readers: Mapping[str, Path], split: Split, memory_mib: int, files: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """References to the ``Encoding`` of each reader that the points name, and the truths of the items.

    Encodings beyond memory_mib lie in files. Raises ExperimentError for a point that a reader cannot follow, before that
    reader encodes anything.
    """
    points = list(points)
    encodings: dict[str, Any] = {}
    arrays: dict[ImageProcessor, FrameArrays] = {}
    held, truths = 0, ()
    for name in sorted({member for point in points for member in point.members}):
        engine = load_engine(readers[name])
        _check(engine, name, points)
        if engine.processor not in arrays:
            # One split at a time: few readers differ in their processor, and pixels take more memory than anything else.
            arrays = {engine.processor: load_split(split.dataset, split.name, engine.processor)}
        whole = arrays[engine.processor]
        chosen = split.chosen(len(whole))
        truths = tuple(whole.texts[item] for item in chosen)
        started = perf_counter()
        batches = engine.encode([whole.item(item) for item in chosen])
        seconds = perf_counter() - started
        held += size_in_bytes(batches)
        folder = files / name if held > memory_mib * 2**20 else None
        encodings[name] = ray.put(Encoding(store(batches, folder), seconds, int(whole.counts()[chosen].sum())))
    return encodings, truths


def _check(engine: Engine, name: str, points: Iterable[DecodePoint]) -> None:
    for point in points:
        if name in point.members:
            try:
                engine.with_settings(point.ways[name].model_copy(update={"correction": None}))
            except ValueError as error:
                raise ExperimentError(f"{point.name} cannot be read: {error}") from None
