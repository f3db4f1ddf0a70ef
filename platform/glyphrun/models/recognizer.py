"""The contract that every recognizer keeps. Models see token ids, never text.

A recognizer that generates tokens one after another implements ``start`` and ``step``; one whose answer space is small
enough to be ranked exactly implements ``rank`` instead. Both train through ``loss`` and share ``encode``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """What a recognizer knows of its items after the encoder ran.

    tokens: (B, S, D), the fused features that a decoder attends to.
    mask: (B, S) bool, True where a feature exists; None when all of them do.
    frame_tokens: (N, S1, D), the features of the N existing frames before fusion, in item order.
    frame_mask: (B, T) bool with N entries True.
    """

    tokens: Tensor
    mask: Tensor | None
    frame_tokens: Tensor
    frame_mask: Tensor

    def select(self, items: Tensor) -> Memory:
        """The memory of some items only; items: (K,) long."""
        frame_rows = torch.full(self.frame_mask.shape, -1, device=items.device)
        frame_rows[self.frame_mask] = torch.arange(len(self.frame_tokens), device=items.device)
        kept_rows, kept_mask = frame_rows[items], self.frame_mask[items]
        return replace(
            self,
            tokens=self.tokens[items],
            mask=None if self.mask is None else self.mask[items],
            frame_tokens=self.frame_tokens[kept_rows[kept_mask]],
            frame_mask=kept_mask,
        )


@dataclass(frozen=True)
class TokenHypothesis:
    """One reading as token ids, without begin and end.

    log_prob is the natural logarithm of the reading's probability; token_log_probs has one entry for each token and, for
    a recognizer that generates an end token, one more for it.
    """

    tokens: tuple[int, ...]
    log_prob: float
    token_log_probs: tuple[float, ...]


class Recognizer(nn.Module):
    """Frames in, distributions over token ids out. settings fix its shape and travel with its weights."""

    settings: BaseModel
    reads_frames_together: bool
    """True if one reading comes out of all frames of an item; False if every frame is read alone and then votes."""

    def encode(self, frames: Tensor, frame_mask: Tensor) -> Memory:
        """frames: (B, T, 3, H, W) normalised float, T = 1 for still images; frame_mask: (B, T) bool, True = exists."""
        raise NotImplementedError

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a token; targets: (B, L) long: begin, characters, end, pad."""
        raise NotImplementedError

    def split_frames(self, memory: Memory) -> Memory:
        """Every existing frame as an item of its own, (N, S, D), with no second pass through the encoder."""
        raise NotImplementedError


class State(Protocol):
    """Where a generation stands: caches for B items times ``width`` beams."""

    def reorder(self, beams: Tensor) -> State:
        """Beams continue from other beams of the same items; beams: (B·width,) long indices into the rows."""

    def keep(self, items: Tensor) -> State:
        """Items that are finished leave the batch; items: (K,) long."""


@runtime_checkable
class Generative(Protocol):
    """A recognizer that emits one token a step."""

    end: int
    begin: int
    max_length: int

    def start(self, memory: Memory, width: int) -> State:
        """width: beams kept per item. Cross-attention keys and values are computed once here."""

    def step(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """tokens: (B·width,) long, the last ones emitted → log-probabilities (B·width, V) and the next state."""


@runtime_checkable
class Refinable(Protocol):
    """A generative recognizer that can also predict all positions at once and repair a finished reading."""

    def parallel(self, memory: Memory) -> Tensor:
        """Non-autoregressive log-probabilities of all positions: (B, L + 1, V)."""

    def refine(self, memory: Memory, tokens: Tensor) -> Tensor:
        """tokens: (B, L + 1) long, a first reading → cloze log-probabilities (B, L + 1, V)."""


@runtime_checkable
class Ranking(Protocol):
    """A recognizer that ranks its whole answer space exactly."""

    def rank(self, memory: Memory, n: int) -> list[list[TokenHypothesis]]:
        """The n most probable readings of each of the B items, best first."""
