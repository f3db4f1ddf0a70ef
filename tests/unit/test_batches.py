from __future__ import annotations

import numpy as np
import pytest

from glyphrun.batching import MAX_FRAMES, MAX_PIXELS, batches_of_similar_size
from glyphrun.data.batches import FrameArrays, TrainingOrder
from glyphrun.images import Frame


def lines(items: int, seed: int = 0) -> FrameArrays:
    """Lines of many widths, one to three frames an item; every pixel of frame f is f modulo 251."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, items)
    frames = [
        Frame(np.full((3, 8, width), number % 251, np.uint8), (8, width - 1))
        for number, width in enumerate(rng.integers(4, 200, counts.sum()).tolist())
    ]
    names = [f"s{number}" for number in range(items)]
    return FrameArrays.of_frames(frames, np.concatenate([[0], counts.cumsum()]), names, names, padding=255)


def test_every_item_is_in_one_batch_and_batches_are_bounded():
    rng = np.random.default_rng(1)
    shapes = [tuple(map(int, shape)) for shape in rng.integers(1, 400, (900, 3))]
    batches = list(batches_of_similar_size(shapes))
    assert sorted(number for batch in batches for number in batch) == list(range(900))
    for batch in batches:
        frames, height, width = (max(shapes[number][axis] for number in batch) for axis in range(3))
        assert len(batch) == 1 or len(batch) * frames <= MAX_FRAMES
        assert len(batch) == 1 or len(batch) * frames * height * width <= MAX_PIXELS


def test_lines_are_read_with_lines_of_their_width():
    widths = np.random.default_rng(2).integers(20, 1100, 500)
    batches = list(batches_of_similar_size([(1, 48, int(width)) for width in widths]))
    padded = sum(len(batch) * widths[batch].max() for batch in batches)
    assert padded < 1.25 * widths.sum()
    in_order = [list(range(start, min(start + 75, 500))) for start in range(0, 500, 75)]
    assert sum(len(batch) * widths[batch].max() for batch in in_order) > 1.5 * widths.sum()


def test_frames_of_different_sizes_come_back_as_they_went_in():
    arrays = lines(20)
    assert not arrays.uniform
    for item in range(20):
        stack = arrays.item(item)
        rows = range(arrays.offsets[item], arrays.offsets[item + 1])
        assert stack.shape == (len(rows), 8, max(int(arrays.shapes[row, 1]) for row in rows))
        for place, row in zip(stack.pixels, rows, strict=True):
            width = arrays.shapes[row, 1]
            assert (place[:, :, :width] == row % 251).all()
            assert (place[:, :, width:] == 255).all()
        assert stack.sizes[:, 1].tolist() == [int(arrays.shapes[row, 1]) - 1 for row in rows]


@pytest.mark.parametrize("items", [64, 67, 5])
def test_an_epoch_of_lines_has_every_item_at_most_once_and_little_padding(items):
    arrays = lines(items)
    order = TrainingOrder(arrays, batch_size=8, frames_per_item=3, seed=3)
    texts = [text for step in range(order.steps_per_epoch) for text in order.batch(step)[3]]
    assert len(set(texts)) == len(texts) == (items // 8 * 8 or items)
    again = [text for step in range(order.steps_per_epoch) for text in order.batch(step)[3]]
    assert texts == again
    if items > 8:
        widths = dict(zip(arrays.texts, arrays.widths(), strict=True))
        spread = [np.ptp([widths[text] for text in texts[start : start + 8]]) for start in range(0, len(texts), 8)]
        assert np.mean(spread) < 60  # of 196 when items meet at random
        assert spread != sorted(spread)
