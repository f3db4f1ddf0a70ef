"""Shards to padded batches: a split decoded once into arrays, and a training order that is a function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glyphrun.data.sample import DatasetError, iterate_samples
from glyphrun.images import ImageProcessor, decode_image


@dataclass(frozen=True)
class FrameArrays:
    """A decoded split.

    frames: (F, 3, H, W) uint8, all frames one after another; offsets: (N + 1,) int64, item i has frames
    offsets[i]:offsets[i + 1]; texts and sample_ids: N each.
    """

    frames: np.ndarray
    offsets: np.ndarray
    texts: tuple[str, ...]
    sample_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def item(self, number: int) -> np.ndarray:
        """(T, 3, H, W) uint8."""
        return self.frames[self.offsets[number] : self.offsets[number + 1]]

    def counts(self) -> np.ndarray:
        """Frames of each item: (N,)."""
        return np.diff(self.offsets)


def load_split(
    folder: Path, split: str, processor: ImageProcessor, progress: Callable[[int], None] | None = None
) -> FrameArrays:
    """Decode every labelled sample of a split. Raises DatasetError if there is none, ImageError naming a bad frame."""
    frames: list[np.ndarray] = []
    offsets, texts, ids = [0], [], []
    for sample in iterate_samples(folder, split):
        if sample.text is None:
            continue
        if not sample.frames:
            raise DatasetError(f"{folder}: sample {sample.sample_id} has no frames: run glyphrun data check {folder}")
        for number, data in enumerate(sample.frames):
            name = f"{folder.name}: sample {sample.sample_id}, frame {number}"
            frames.append(processor(decode_image(data, name=name)).pixels)
        offsets.append(len(frames))
        texts.append(sample.text)
        ids.append(sample.sample_id)
        if progress:
            progress(1)
    if not texts:
        raise DatasetError(f"{folder}: split {split!r} has no labelled samples")
    return FrameArrays(np.stack(frames), np.asarray(offsets), tuple(texts), tuple(ids))


@dataclass(frozen=True)
class TrainingOrder:
    """Which items and frames make up the batch of a step: a function of seed and step alone, so a run can resume anywhere.

    frames_per_item frames are drawn from each item without repeats (all of them if it has fewer).
    """

    arrays: FrameArrays
    batch_size: int
    frames_per_item: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the items."""
        return max(len(self.arrays) // self.batch_size, 1)

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """frames (B, T, 3, H, W) uint8, frame_mask (B, T) bool and the texts of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.arrays))
        items = order[place * self.batch_size : (place + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, 1 << 20, step])
        drawn = [self._frames(item, rng) for item in items]
        longest = max(map(len, drawn))
        rows = np.zeros((len(items), longest), np.int64)
        mask = np.zeros((len(items), longest), bool)
        for row, chosen in enumerate(drawn):
            rows[row, : len(chosen)] = chosen
            mask[row, : len(chosen)] = True
        frames = torch.from_numpy(self.arrays.frames[rows])
        return frames, torch.from_numpy(mask), [self.arrays.texts[item] for item in items]

    def _frames(self, item: int, rng: np.random.Generator) -> np.ndarray:
        first, last = self.arrays.offsets[item], self.arrays.offsets[item + 1]
        count = min(self.frames_per_item, int(last - first))
        return np.sort(first + rng.choice(last - first, size=count, replace=False))


def batches_of_similar_length(arrays: FrameArrays, frames_per_batch: int) -> Iterator[Sequence[int]]:
    """Item numbers in batches of at most frames_per_batch padded frames, longest tracklets first."""
    counts = arrays.counts()
    order = np.argsort(-counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(frames_per_batch // int(counts[order[start]]), 1)
        yield order[start : start + size].tolist()
        start += size
