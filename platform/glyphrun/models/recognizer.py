"""The contract that every recognizer keeps. Models see token ids, never text.

A recognizer that generates tokens one after another implements ``start`` and ``step``; one whose answer space is small
enough to be ranked exactly implements ``rank`` instead. Both train through ``loss`` and share ``encode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isnan, nan
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from glyphrun.inputs import InputSettings


class SubwordSettings(BaseModel):
    """Whose subwords a recognizer reads and writes: a tokenizer's hub name or folder and three of its tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    begin: int | str
    end: int | str
    pad: int | str


class ModelSettings(BaseModel):
    """Everything that fixes the shape of a recognizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def input(self) -> InputSettings:
        """What its frames look like."""
        raise NotImplementedError

    @property
    def subwords(self) -> SubwordSettings | None:
        """Its own vocabulary; None if it is built for any charset."""
        return None


class TokenSpace(Protocol):
    """What a recognizer may know of a codec. charset is empty where tokens are no characters."""

    @property
    def charset(self) -> str: ...
    @property
    def max_length(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


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


def frames_of(memory: Memory, numbers: list[int]) -> Memory:
    """Some frames of a memory, each an item of its own; numbers: rows of frame_tokens. What else is known of each stays."""
    rows = torch.tensor(numbers, device=memory.frame_tokens.device)
    frames = len(memory.frame_tokens)
    # In a memory of frames read together the fused tokens belong to items, and a frame's own stand for them.
    fused = len(memory.tokens) != frames or memory.frame_mask.shape[1] > 1
    kept: dict[str, Any] = {
        field.name: value[rows]
        for field in fields(memory)
        if isinstance(value := getattr(memory, field.name), Tensor) and len(value) == frames
    }
    for field in fields(memory):
        value = getattr(memory, field.name)
        if isinstance(value, tuple) and all(isinstance(one, Memory) for one in value):  # those of several recognizers
            kept[field.name] = tuple(frames_of(one, numbers) for one in value)
        elif isinstance(value, tuple) and len(value) == frames:
            kept[field.name] = tuple(value[number] for number in numbers)
    kept["frame_mask"] = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    if fused:
        kept |= {"tokens": kept["frame_tokens"]}
        return replace(memory, **kept, mask=None)
    return replace(memory, **kept)


@dataclass(frozen=True)
class TokenHypothesis:
    """One reading as token ids, without begin and end.

    log_prob is the natural logarithm of the reading's probability; token_log_probs has one entry for each token and, for
    a recognizer that generates an end token, one more for it. score is what a search ranks by: log_prob, unless lengths
    are penalised, something else is known of the text, or a cloze pass judges it. share: the part of the samples drawn
    that read so, 1 where none were drawn.
    """

    tokens: tuple[int, ...]
    log_prob: float
    token_log_probs: tuple[float, ...]
    score: float = nan
    share: float = 1.0

    def __post_init__(self) -> None:
        if isnan(self.score):
            object.__setattr__(self, "score", self.log_prob)


class Recognizer(nn.Module):
    """Frames in, distributions over token ids out. settings fix its shape and travel with its weights."""

    settings: ModelSettings
    reads_frames_together: bool
    """True if one reading comes out of all frames of an item; False if every frame is read alone and then votes."""

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> Memory:
        """frames: (B, T, 3, H, W) normalised float, T = 1 for still images; frame_mask: (B, T) bool, True = exists.

        sizes: (B, T, 2) long, height and width of the picture in each frame; what lies below and to its right is padding,
        which changes no answer. None: every picture fills its frame.
        """
        raise NotImplementedError

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a token; targets: (B, L) long: begin, characters, end, pad."""
        raise NotImplementedError

    def check(self, sizes: Sequence[tuple[int, int]], lengths: Sequence[int], names: Sequence[str]) -> None:
        """Refuse samples that can never be trained on, by name, before a training starts.

        sizes: height and width of each sample's largest picture; lengths: tokens of its label, its end counted. Raises
        ValueError naming the sample and what to do.
        """

    def regroup(self, memory: Memory, rows: Tensor, mask: Tensor) -> Memory:
        """Other items out of encoded frames, with no second pass through the encoder.

        rows: (G, W) long, which of memory.frame_tokens each of G items has; mask: (G, W) bool, True where it has one.
        """
        raise TypeError(f"{type(self).__name__} reads every frame alone, so its frames cannot be grouped anew")

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The submodules (prefixes of state-dict names) that make up «vision», «projector» and «decoder»."""
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
        """Cloze log-probabilities (B·n, L + 1, V); tokens: (B·n, L + 1) long, n first readings of each item."""


@runtime_checkable
class Ranking(Protocol):
    """A recognizer that ranks its whole answer space exactly."""

    def rank(self, memory: Memory, n: int) -> list[list[TokenHypothesis]]:
        """The n most probable readings of each of the B items, best first."""


@runtime_checkable
class Emitting(Protocol):
    """A recognizer with a distribution for each place along a line, read by connectionist temporal classification."""

    def emissions(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, S, V), token 0 being the blank, and how many of the S places each item has: (B,) long."""
