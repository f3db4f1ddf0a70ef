"""A convolutional stem in place of a linear patch embedding, for small encoders that are trained from nothing.

It learns several times faster (arXiv 2106.14881). Padding changes no answer: it is set to zero after every convolution,
which is what the convolution itself assumes beyond a picture's edge, and the norms take their statistics from the
channels of one place alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StemLayer(nn.Module):
    """A 3×3 convolution, a norm over the channels of each place, and a rectifier; padding stays zero."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x: (N, C, H, W), zero outside of sizes (N, 2) → the same at this layer's resolution."""
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()
        if sizes is None:
            return x, None
        sizes = -(-sizes // sizes.new_tensor(self.stride))
        return x * inside(sizes, x.shape[2], x.shape[3]).unsqueeze(1), sizes


class ConvolutionalStem(nn.Module):
    """Two layers at half and two at a quarter of the resolution, then one that shrinks to a place for each patch."""

    def __init__(self, patch: tuple[int, int], width: int) -> None:
        super().__init__()
        first, second = max(width // 4, 8), max(width // 2, 16)
        self.layers = nn.ModuleList(
            [
                StemLayer(3, first, (2, 2)),
                StemLayer(first, first, (1, 1)),
                StemLayer(first, second, (2, 2)),
                StemLayer(second, second, (1, 1)),
                StemLayer(second, width, (patch[0] // 4, patch[1] // 4)),
            ]
        )
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """x: (N, 3, H, W), zero outside of sizes (N, 2), None if pictures fill it → (N, S, D)."""
        x = x.contiguous(memory_format=torch.channels_last)  # so that a norm over channels copies nothing
        for layer in self.layers:
            x, sizes = layer(x, sizes)
        projected: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return projected


def inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """True above and left of each size; sizes: (N, 2) long → (N, height, width) bool."""
    row, column = (torch.arange(side, device=sizes.device) for side in (height, width))
    return (row[:, None] < sizes[:, 0, None, None]) & (column < sizes[:, 1, None, None])
