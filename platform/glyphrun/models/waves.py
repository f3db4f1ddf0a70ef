"""Places of a picture as slow waves: what positions start from where a training is too short to find them."""

from __future__ import annotations

import torch
from torch import Tensor


def place_waves(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of a place's row and column, slow waves first: (1, rows · columns, width)."""
    rates = torch.linspace(0.5, 4.0, (width + 3) // 4) * torch.pi
    row, column = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
    phases = [place.flatten().unsqueeze(1) * rates for place in (row, column)]
    return torch.cat([wave(phase) for phase in phases for wave in (torch.sin, torch.cos)], dim=1)[None, :, :width]
