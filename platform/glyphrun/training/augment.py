"""Augmentation of frames on whatever device they are: small affine motion and changes of colour."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F


class AugmentSettings(BaseModel):
    """Strengths; no mirror and no turn by a right angle is ever drawn, since both change what a digit says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: float = Field(0.05, ge=0, lt=1)  # of the image's side, either way
    scale: float = Field(0.12, ge=0, lt=1)
    rotation: float = Field(0.12, ge=0)  # radians, either way
    shear: float = Field(0.10, ge=0)
    colour: float = Field(0.25, ge=0, lt=1)  # gain of a channel, either way
    invert: float = Field(0.3, ge=0, le=1)  # probability that light and dark change places
    erase: float = Field(0.25, ge=0, le=1)  # probability that a patch is covered


def augment(frames: Tensor, settings: AugmentSettings) -> Tensor:
    """frames: (N, 3, H, W) uint8 → the same. Draws from torch's global generator."""
    count, _, height, width = frames.shape
    device = frames.device

    def spread(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device) * 2 - 1

    turn, shear = spread(count) * settings.rotation, spread(count) * settings.shear
    across, down = 1 + spread(2, count) * settings.scale
    aspect = height / width
    matrix = torch.stack(
        [
            torch.stack(
                [across * turn.cos(), across * (shear - turn.sin()) * aspect, spread(count) * 2 * settings.shift], 1
            ),
            torch.stack([down * turn.sin() / aspect, down * turn.cos(), spread(count) * 2 * settings.shift], 1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(matrix, list(frames.shape), align_corners=False)
    moved = F.grid_sample(frames.float(), grid, padding_mode="border", align_corners=False)
    gain = 1 + spread(count, 3, 1, 1) * settings.colour
    coloured = (moved * gain + spread(count, 3, 1, 1) * 255 * settings.colour * 0.5).clamp(0, 255)
    inverted = torch.rand(count, 1, 1, 1, device=device) < settings.invert
    coloured = torch.where(inverted, 255 - coloured, coloured)
    covered = torch.where(_patches(count, height, width, settings.erase, device), _flat(count, device), coloured)
    return covered.round().to(torch.uint8)


def _patches(count: int, height: int, width: int, probability: float, device: torch.device) -> Tensor:
    """(N, 1, H, W) bool, True inside a rectangle of up to a third of each side for a share of the images."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    top, left = torch.rand(2, count, 1, device=device)
    tall, wide = torch.rand(2, count, 1, device=device) * 0.3 + 0.03
    rows = (y >= top * height) & (y < (top + tall) * height)  # (N, H)
    columns = (x >= left * width) & (x < (left + wide) * width)  # (N, W)
    chosen = torch.rand(count, 1, 1, 1, device=device) < probability
    return chosen & rows[:, None, :, None] & columns[:, None, None, :]


def _flat(count: int, device: torch.device) -> Tensor:
    return torch.rand(count, 3, 1, 1, device=device) * 255
