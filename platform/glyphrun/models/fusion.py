"""Temporal fusion: the features of an item's frames become one memory. Shared by every recognizer that reads tracklets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from glyphrun.models.recognizer import Memory

Fusion = Literal["none", "concatenate", "attention"]


def place_frames(frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """(N, S, D) of the existing frames → (B, T, S, D) with zeros where no frame is."""
    placed = frame_tokens.new_zeros(*frame_mask.shape, *frame_tokens.shape[1:])
    placed[frame_mask] = frame_tokens
    return placed


class TemporalFusion(nn.Module):
    """How T frames of an item become the S features that a decoder attends to.

    none: frames stay items of their own, (N, S, D); «attention»: each place of the picture is the weighted mean of that
    place over the frames, (B, S, D); «concatenate»: the decoder sees the features of all frames, (B, T·S, D), and may
    follow a number that moves. Each frame counts by a learned legibility in «attention»; the order of frames carries no
    weight in either, so a tracklet may be longer than any seen in training.
    """

    def __init__(self, kind: Fusion, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.legibility = nn.Linear(width, 1)

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Memory:
        """frame_tokens: (N, S, D) of the existing frames; frame_mask: (B, T) bool."""
        frames = frame_mask.shape[1]
        if self.kind == "none" or frames == 1:
            alone = frame_mask.new_ones(len(frame_tokens), 1)
            return Memory(frame_tokens, None, frame_tokens, alone if self.kind == "none" else frame_mask)
        placed = place_frames(frame_tokens, frame_mask)  # (B, T, S, D)
        if self.kind == "attention":
            scores = place_frames(self.legibility(frame_tokens), frame_mask)  # (B, T, S, 1)
            scores = scores.masked_fill(~frame_mask[:, :, None, None], float("-inf"))
            tokens = (scores.softmax(1).to(placed.dtype) * placed).sum(1)  # (B, S, D)
            return Memory(tokens, None, frame_tokens, frame_mask)
        places = frame_tokens.shape[1]
        mask = None if bool(frame_mask.all()) else frame_mask.repeat_interleave(places, dim=1)  # (B, T·S)
        return Memory(placed.flatten(1, 2), mask, frame_tokens, frame_mask)

    def split(self, memory: Memory) -> Memory:
        """Every frame as an item of its own: (N, S, D)."""
        alone = torch.ones(len(memory.frame_tokens), 1, dtype=torch.bool, device=memory.frame_tokens.device)
        return Memory(memory.frame_tokens, None, memory.frame_tokens, alone)
