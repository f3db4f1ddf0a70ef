"""Which items are read together: those of similar size, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

MAX_FRAMES = 512  # of one pass through an encoder, padding counted: larger batches are no faster and need more memory
MAX_PIXELS = 4_000_000  # the same for large frames
MAX_PIXELS_ON_CPU = (
    600_000  # beyond it what a layer leaves behind falls out of the cache, and a line takes twice as long
)
WINDOWS_AT_ONCE = 4  # of an item, that early exit counts for a batch: about as many as it reads
HELD = 8  # how many times the frames of an ordinary batch it may hold


def batches_of_similar_size(
    shapes: Sequence[tuple[int, int, int]], max_pixels: int = MAX_PIXELS
) -> Iterator[list[int]]:
    """Item numbers in batches, widest first; shapes: frames, height and width of each item.

    A batch holds at most MAX_FRAMES frames and max_pixels pixels after padding, or a single item.
    """
    order = sorted(range(len(shapes)), key=lambda item: (-shapes[item][2], -shapes[item][1], -shapes[item][0]))
    batch: list[int] = []
    most = (0, 0, 0)
    for item in order:
        frames, height, width = (max(pair) for pair in zip(most, shapes[item], strict=True))
        padded = frames * (len(batch) + 1)
        if batch and (padded > MAX_FRAMES or padded * height * width > max_pixels):
            yield batch
            batch = []
            frames, height, width = shapes[item]
        batch.append(item)
        most = (frames, height, width)
    if batch:
        yield batch


def batches_read_in_turn(
    shapes: Sequence[tuple[int, int, int]], window_frames: int, max_pixels: int = MAX_PIXELS
) -> Iterator[list[int]]:
    """The same for items that are encoded a window at a time, of which more are read together.

    Rounds encode a window of each item, and small batches of frames take longer each; pixels are held of all.
    """
    once = WINDOWS_AT_ONCE * window_frames
    counted = [(max(min(frames, once), ceil(frames / HELD)), high, wide) for frames, high, wide in shapes]
    return batches_of_similar_size(counted, max_pixels)
