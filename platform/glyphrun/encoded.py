"""What the encoder makes of items: to be read under any decode settings, or kept as features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from glyphrun.models.recognizer import Memory


@dataclass(frozen=True)
class Encoded:
    """A batch after the encoder: what any decode settings can read without encoding again.

    memory: of all frames. counts: how many frames each item has. looks: how legible each frame looks (``legibility``).
    """

    memory: Memory
    counts: list[int]
    looks: list[float]


@dataclass(frozen=True)
class Embedding:
    """Encoder features of one item, before frames are fused and before anything is read from them.

    frames: for each frame (S, D) float32, a feature for each patch of the picture. pooled: (D,) float32, their mean over
    all patches of all frames.
    """

    pooled: np.ndarray
    frames: tuple[np.ndarray, ...]


def embeddings(encoded: Encoded, *, together: bool) -> list[Embedding]:
    """The features of each item of a batch; together: whether its frames are one item to the recognizer."""
    memory = encoded.memory
    # Only where every frame is an item of its own can parts of a frame be padding.
    seen = None if together else memory.mask
    features = memory.frame_tokens.float().cpu()  # (N, S, D)
    rows = ((tokens if seen is None else tokens[seen[row].cpu()]).numpy() for row, tokens in enumerate(features))
    items = [tuple(next(rows) for _ in range(count)) for count in encoded.counts]
    return [Embedding(np.concatenate(patches).mean(0), patches) for patches in items]
