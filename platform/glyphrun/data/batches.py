"""Shards to padded batches: a split decoded once into arrays, and a training order that is a function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glyphrun.data.sample import DatasetError, iterate_samples
from glyphrun.images import Frame, FrameStack, ImageProcessor, decode_image, pad_stacks

POOL = 16  # batches whose items are sorted by width together: padding shrinks, and what meets what still changes


@dataclass(frozen=True)
class FrameArrays:
    """A decoded split; frames may differ in size.

    pixels: uint8, all frames one after another, each (3, height, width); shapes: (F, 2) int64, their heights and widths;
    sizes: (F, 2) int64, what of each is picture; offsets: (N + 1,) int64, item i has frames offsets[i]:offsets[i + 1];
    texts and sample_ids: N each. padding: the value that stands where a batch has no picture.
    """

    pixels: np.ndarray
    shapes: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    texts: tuple[str, ...]
    sample_ids: tuple[str, ...]
    padding: int = 0

    @classmethod
    def of_frames(
        cls,
        frames: Sequence[Frame],
        offsets: Sequence[int] | np.ndarray,
        texts: Sequence[str],
        sample_ids: Sequence[str],
        padding: int = 0,
    ) -> FrameArrays:
        """Frames of all items one after another."""
        return cls(
            np.concatenate([frame.pixels.reshape(-1) for frame in frames]),
            np.array([frame.pixels.shape[1:] for frame in frames], np.int64),
            np.array([frame.size for frame in frames], np.int64),
            np.asarray(offsets),
            tuple(texts),
            tuple(sample_ids),
            padding,
        )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(3 * self.shapes.prod(axis=1))])

    @cached_property
    def uniform(self) -> bool:
        """True if all frames have one size."""
        return bool((self.shapes == self.shapes[0]).all())

    def frame(self, number: int) -> np.ndarray:
        """(3, height, width) uint8."""
        height, width = self.shapes[number]
        start = self._starts[number]
        return self.pixels[start : start + 3 * height * width].reshape(3, height, width)

    def item(self, number: int) -> FrameStack:
        """All frames of an item."""
        return self.stack(np.arange(self.offsets[number], self.offsets[number + 1]))

    def stack(self, rows: np.ndarray) -> FrameStack:
        """Some frames as one item."""
        shapes = self.shapes[rows]
        if (shapes == shapes[0]).all() and (np.diff(rows) == 1).all():  # neighbours of one size lie as they are needed
            start = self._starts[rows[0]]
            whole = self.pixels[start : start + 3 * shapes.prod(axis=1).sum()]
            return FrameStack(whole.reshape(len(rows), 3, *shapes[0]), self.sizes[rows])
        height, width = shapes.max(axis=0)
        pixels = np.full((len(rows), 3, height, width), self.padding, np.uint8)
        for place, row in zip(pixels, rows, strict=True):
            high, wide = self.shapes[row]
            place[:, :high, :wide] = self.frame(row)
        return FrameStack(pixels, self.sizes[rows])

    def counts(self) -> np.ndarray:
        """Frames of each item: (N,)."""
        return np.diff(self.offsets)

    def widths(self) -> np.ndarray:
        """The widest frame of each item, in pixels: (N,)."""
        return np.maximum.reduceat(self.shapes[:, 1], self.offsets[:-1])


def load_split(
    folder: Path, split: str, processor: ImageProcessor, progress: Callable[[int], None] | None = None
) -> FrameArrays:
    """Decode every labelled sample of a split. Raises DatasetError if there is none, ImageError naming a bad frame."""
    frames: list[Frame] = []
    offsets, texts, ids = [0], [], []
    for sample in iterate_samples(folder, split):
        if sample.text is None:
            continue
        if not sample.frames:
            raise DatasetError(f"{folder}: sample {sample.sample_id} has no frames: run glyphrun data check {folder}")
        for number, data in enumerate(sample.frames):
            name = f"{folder.name}: sample {sample.sample_id}, frame {number}"
            frames.append(processor(decode_image(data, name=name)))
        offsets.append(len(frames))
        texts.append(sample.text)
        ids.append(sample.sample_id)
        if progress:
            progress(1)
    if not texts:
        raise DatasetError(f"{folder}: split {split!r} has no labelled samples")
    return FrameArrays.of_frames(frames, offsets, texts, ids, processor.padding)


@dataclass(frozen=True)
class TrainingOrder:
    """Which items and frames make up the batch of a step: a function of seed and step alone, so a run can resume anywhere.

    frames_per_item frames are drawn from each item without repeats (all of them if it has fewer). Where frames differ in
    width, items of similar width come together, and batches come in random order.
    """

    arrays: FrameArrays
    batch_size: int
    frames_per_item: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the items."""
        return max(len(self.arrays) // self.batch_size, 1)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Frames (B, T, 3, H, W) uint8, frame_mask (B, T) bool, sizes (B, T, 2) long and the texts of a step from 0 on."""
        epoch, place = divmod(step, self.steps_per_epoch)
        items = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, 1 << 20, step])
        stacks = [self.arrays.stack(self._frames(item, rng)) for item in items]
        frames, mask, sizes = map(torch.from_numpy, pad_stacks(stacks, self.arrays.padding))
        return frames, mask, sizes, [self.arrays.texts[item] for item in items]

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.arrays))
        if self.arrays.uniform:
            return order
        whole = self.steps_per_epoch * self.batch_size
        widths = self.arrays.widths()
        pools = [order[start : start + POOL * self.batch_size] for start in range(0, whole, POOL * self.batch_size)]
        sorted_pools = [pool[np.argsort(widths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(sorted_pools)[:whole]
        if len(batches) < whole:  # fewer items than one batch
            return batches
        return rng.permutation(batches.reshape(-1, self.batch_size)).reshape(-1)

    def _frames(self, item: int, rng: np.random.Generator) -> np.ndarray:
        first, last = self.arrays.offsets[item], self.arrays.offsets[item + 1]
        count = min(self.frames_per_item, int(last - first))
        return np.sort(first + rng.choice(last - first, size=count, replace=False))
