"""Multi-scale features: an encoder's shallower blocks, where strokes are still sharp, added to its last one.

Every block of a transformer encoder has the same places, so nothing is resampled: hypercolumns (arXiv 1411.5752) read
each place at several depths, and a feature pyramid (arXiv 1612.03144) adds projected depths to one another. The depths
are evenly spaced, as in DPT's readout of a plain Vision Transformer (arXiv 2103.13413).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import skip_init


def depths(depth: int, scales: int) -> tuple[int, ...]:
    """Evenly spaced blocks of an encoder, counted from 1, that end at its last: ``depths(12, 3)`` is (4, 8, 12).

    Raises ValueError if the encoder has fewer blocks than scales.
    """
    if not 1 <= scales <= depth:
        raise ValueError(f"scales {scales} cannot be taken from an encoder of {depth} blocks: choose 1 to {depth}")
    return tuple(depth * scale // scales for scale in range(1, scales + 1))


class DepthFusion(nn.Module):
    """Features of several depths become one: the deepest plus a learned projection of each shallower one.

    The projections start at zero, so a new fusion changes nothing and pretrained weights read on as they did. With one
    scale there is nothing to learn and no parameter.
    """

    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(scales - 1))
        self.projections = nn.ModuleList()
        for _ in range(scales - 1):
            # No random numbers are drawn, so what is built after this starts as it would without it.
            projection = skip_init(nn.Linear, width, width)
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
            self.projections.append(projection)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """features: (N, S, D) each, shallow to deep, the deepest after the encoder's norm → (N, S, D)."""
        *shallow, fused = features
        for feature, norm, projection in zip(shallow, self.norms, self.projections, strict=True):
            fused = fused + projection(norm(feature))
        return fused
