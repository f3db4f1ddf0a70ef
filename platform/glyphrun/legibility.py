"""How legible frames look before any of them is read: what decides which windows of a tracklet are read first.

A recognizer's own legibility gate or attention would be the better judge and comes too late: it sees encoded frames, and
frames that are never encoded are what early exit is for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def legibility(frames: Tensor, sizes: Tensor | None = None) -> Tensor:
    """The mean strength of edges in each frame, (N,) float: low where it is blurred, covered or empty.

    frames: (N, 3, H, W) uint8; sizes: (N, 2) long, height and width of the picture in each frame, None if it fills it. The
    edges are those of the grey picture at half its size, where noise is weak and strokes are not (the gradient measure of
    J. M. Tenenbaum, 1970). Scores can be compared within a tracklet, not between them.
    """
    grey = F.avg_pool2d(frames.float().mean(1, keepdim=True), 2, ceil_mode=True)  # (N, 1, H / 2, W / 2)
    across = (grey[..., :-1, 1:] - grey[..., :-1, :-1]).squeeze(1)
    down = (grey[..., 1:, :-1] - grey[..., :-1, :-1]).squeeze(1)
    strength = (across.square() + down.square()).sqrt()  # (N, H / 2 - 1, W / 2 - 1)
    if sizes is None:
        return strength.mean((1, 2)) if strength.numel() else strength.new_zeros(len(frames))
    # An edge between the picture and its padding belongs to neither.
    inside = (sizes.to(frames.device) // 2 - 1).clamp(min=1)
    rows = torch.arange(strength.shape[1], device=frames.device) < inside[:, :1]  # (N, H / 2 - 1)
    columns = torch.arange(strength.shape[2], device=frames.device) < inside[:, 1:]
    seen = rows.unsqueeze(2) & columns.unsqueeze(1)
    return (strength * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
