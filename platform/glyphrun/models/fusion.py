"""Temporal fusion: the features of an item's frames become one memory, for every recognizer that reads tracklets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from glyphrun.models.recognizer import Memory

Fusion = Literal["none", "concatenate", "attention", "mean"]

MOMENTS = 8  # rows of the frame embedding, spread from an item's first frame to its last
LEGIBLE_AT_FIRST = 1.0  # logit of a new gate: every frame is in, and the gradient is still four fifths of its largest


def place_frames(frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """(N, S, D) of the existing frames → (B, T, S, D) with zeros where no frame is."""
    placed = frame_tokens.new_zeros(*frame_mask.shape, *frame_tokens.shape[1:])
    placed[frame_mask] = frame_tokens
    return placed


class TemporalFusion(nn.Module):
    """How T frames of an item become the S features that a decoder attends to.

    «none»: frames stay items of their own, (N, S, D). «concatenate»: the decoder sees the features of all frames,
    (B, T·S, D), each with the embedding of its moment, and may follow a number that moves. «attention»: each place of
    the picture is the weighted mean of that place over the frames, (B, S, D), by a learned legibility of each place of
    each frame. «mean»: each place is the plain mean over the legible frames, (B, S, D); see ``LegibilityGate``.

    The order of frames carries weight in «concatenate» alone. An item may have more frames than any seen in training.
    """

    def __init__(self, kind: Fusion, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "concatenate":
            self.frame_embedding = FrameEmbedding(width)
        elif kind == "attention":
            self.legibility = nn.Linear(width, 1)
        elif kind == "mean":
            self.gate = LegibilityGate(width)

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Memory:
        """frame_tokens: (N, S, D) of the existing frames; frame_mask: (B, T) bool, at least one frame an item."""
        if self.kind == "none":
            return Memory(frame_tokens, None, frame_tokens, frame_mask.new_ones(len(frame_tokens), 1))
        if self.kind == "concatenate":
            moments = self.frame_embedding(frame_mask).unsqueeze(1)  # (N, 1, D)
            placed = place_frames(frame_tokens + moments.to(frame_tokens.dtype), frame_mask)  # (B, T, S, D)
            places = frame_tokens.shape[1]
            mask = None if bool(frame_mask.all()) else frame_mask.repeat_interleave(places, dim=1)  # (B, T·S)
            return Memory(placed.flatten(1, 2), mask, frame_tokens, frame_mask)
        if self.kind == "attention":
            scores = place_frames(self.legibility(frame_tokens), frame_mask)  # (B, T, S, 1)
            weights = scores.masked_fill(~frame_mask[:, :, None, None], float("-inf")).softmax(1)
        else:
            weights = self.gate(frame_tokens, frame_mask)[:, :, None, None]  # (B, T, 1, 1)
        placed = place_frames(frame_tokens, frame_mask)
        return Memory((weights.to(placed.dtype) * placed).sum(1), None, frame_tokens, frame_mask)


class FrameEmbedding(nn.Module):
    """A learned vector for each moment of an item, from its first frame to its last.

    The table is stretched over the frames that an item has, however many, by linear interpolation: tracklets of any
    length train it from end to end, and one longer than the table needs no row of its own. A still image has no order,
    and nothing is added to it. The table starts at zero and draws no random numbers: a new one changes no answer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(MOMENTS, width))

    def forward(self, frame_mask: Tensor) -> Tensor:
        """frame_mask: (B, T) bool with N entries True → (N, D) in the order of the existing frames."""
        last = frame_mask.sum(1, keepdim=True) - 1  # (B, 1)
        number = frame_mask.cumsum(1) - 1  # (B, T), counted over existing frames: a gap is no moment
        moment = (number * (MOMENTS - 1) / last.clamp(min=1))[frame_mask].unsqueeze(1)  # (N, 1)
        rows = torch.arange(MOMENTS, device=frame_mask.device)
        shares = (1 - (moment - rows).abs()).clamp(min=0)  # (N, MOMENTS), of the two nearest rows
        ordered = (last > 0).expand_as(frame_mask)[frame_mask].unsqueeze(1)
        return (shares * ordered).to(self.table.dtype) @ self.table


class LegibilityGate(nn.Module):
    """Which frames can be read: a frame whose legibility is under .5 is left out, unless all of an item's are.

    Training computes the same hard mean as reading does, so the threshold means what it was trained to mean; the
    gradient is that of the mean weighted by the legibilities themselves (straight-through estimator, arXiv 1308.3432),
    so a frame that is left out can come back. A new gate lets every frame in.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.full((1,), LEGIBLE_AT_FIRST))

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """frame_tokens: (N, S, D), frame_mask: (B, T) bool → weights (B, T) float that add up to 1 over the frames."""
        scores = nn.functional.linear(frame_tokens.mean(1), self.weight, self.bias).squeeze(1).float()  # (N,)
        legibility = place_frames(scores.sigmoid(), frame_mask)  # (B, T)
        legible = (legibility >= 0.5) & frame_mask
        chosen = torch.where(legible.any(1, keepdim=True), legible, frame_mask).float()
        gates = chosen + (legibility - legibility.detach())  # the difference is 0 and has the gradient
        return gates / gates.sum(1, keepdim=True)
