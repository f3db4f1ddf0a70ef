"""Items by which reading is timed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from glyphrun.data.sample import iterate_samples, read_card
from glyphrun.images import ImageProcessor, encode_image


def timed_items(dataset: Path, split: str, count: int, frames: int | None) -> list[tuple[bytes, ...]]:
    """The first items of a split, or of another if there is no such one, cut or repeated to a number of frames."""
    splits = read_card(dataset).counts
    split = split if split in splits else next(iter(splits))
    chosen = [sample.frames for sample in islice(iterate_samples(dataset, split), count)]
    return [tuple(item[place % len(item)] for place in range(frames or len(item))) for item in chosen if item]


def noise_items(processor: ImageProcessor, frames: int) -> Sequence[Sequence[bytes]]:
    """One item of noise at the size that a recognizer reads, where there is no data set to take real ones from."""
    shape = (frames, processor.height, processor.width, 3)
    return [[encode_image(frame) for frame in np.random.default_rng(0).integers(0, 255, shape, np.uint8)]]
