"""Several recognizers that read as one: their log-probabilities are averaged at every step of one search.

The mean is that of log-probabilities, brought to a sum of 1 again: a product of experts (G. Hinton, «Training products of
experts by minimizing contrastive divergence», 2002), in which one member's firm no is heard, as it would hardly be in a
mean of probabilities. Members must see the same pixels and emit the same tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from glyphrun.models.recognizer import (
    Emitting,
    Generative,
    Memory,
    Ranking,
    Recognizer,
    Refinable,
    State,
    TokenHypothesis,
)

Found = TypeVar("Found")
EVERYTHING = sys.maxsize  # asked of a recognizer that ranks its whole answer space


class MemberFailed(RuntimeError):
    """A member raised an error, which is the cause; ``member`` is its number."""

    def __init__(self, member: int, reason: str) -> None:
        super().__init__(reason)
        self.member = member


@dataclass(frozen=True)
class AverageMemory(Memory):
    """What each member knows of the items; the fields of Memory are the first member's."""

    members: tuple[Memory, ...]


@dataclass(frozen=True)
class AverageState:
    """Where each member's generation stands."""

    members: tuple[State, ...]

    def reorder(self, beams: Tensor) -> AverageState:
        """beams: (B·width,) long."""
        return AverageState(tuple(state.reorder(beams) for state in self.members))

    def keep(self, items: Tensor) -> AverageState:
        """items: (K,) long."""
        return AverageState(tuple(state.keep(items) for state in self.members))


def average(
    members: Sequence[Recognizer], weights: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> Recognizer:
    """One recognizer out of several; weights are above 0 and count by their shares, equal ones by default.

    names: what the members are called where they do not fit. Raises ValueError if members cannot be searched together: they read in different ways, or their tokens differ.
    """
    weights = [1.0] * len(members) if weights is None else list(weights)
    if not members or len(weights) != len(members) or min(weights) <= 0:
        raise ValueError(f"{len(members)} members and weights {weights}: an average needs a weight above 0 for each")
    names = names or [f"member {number}" for number in range(len(members))]
    ways = [_way(member) for member in members]
    for name, way in zip(names, ways, strict=True):
        if way != ways[0]:
            raise ValueError(
                f"log-probabilities can be averaged of recognizers alone that read in one way: {names[0]} {ways[0]} and "
                f"{name} {way}; let them vote instead"
            )
    return _average(members)(members, weights)


def joined(memories: Sequence[Memory]) -> AverageMemory:
    """What an average knows of items that each member encoded by itself, in the order of the members."""
    first = memories[0]
    return AverageMemory(first.tokens, first.mask, first.frame_tokens, first.frame_mask, tuple(memories))


def with_frames(memory: Memory, more: Memory) -> Memory:
    """A memory to be regrouped, with the frames of another one behind its own."""
    tokens = torch.cat([memory.frame_tokens, more.frame_tokens])
    if isinstance(memory, AverageMemory) and isinstance(more, AverageMemory):
        members = zip(memory.members, more.members, strict=True)
        joined = tuple(with_frames(one, other) for one, other in members)
        return replace(memory, frame_tokens=tokens, members=joined)
    return replace(memory, frame_tokens=tokens)


class Average(Recognizer):
    """Members that read side by side; what they have in common of a recognizer."""

    def __init__(self, members: Sequence[Recognizer], weights: Sequence[float]) -> None:
        super().__init__()
        self.settings = members[0].settings
        self.reads_frames_together = members[0].reads_frames_together
        self.members = nn.ModuleList(members)
        self.shares = [weight / sum(weights) for weight in weights]

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> AverageMemory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool; sizes: (B, T, 2) long or None."""
        return joined(self._each(lambda member, _: member.encode(frames, frame_mask, sizes)))

    def regroup(self, memory: Memory, rows: Tensor, mask: Tensor) -> AverageMemory:
        """Other items out of encoded frames; rows: (G, W) long, mask: (G, W) bool."""
        parts = _parts(memory)
        return joined(self._each(lambda member, number: member.regroup(parts[number], rows, mask)))

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The submodules of all members by what they do."""
        found: dict[str, tuple[str, ...]] = {}
        for number, member in enumerate(self.members):
            for part, names in cast(Recognizer, member).parts().items():
                found[part] = (*found.get(part, ()), *(f"members.{number}.{name}" for name in names))
        return found

    def _each(self, ask: Callable[[Any, int], Found]) -> list[Found]:
        """The answers of all members. Raises MemberFailed."""
        answers = []
        for number, member in enumerate(self.members):
            try:
                answers.append(ask(member, number))
            except Exception as error:  # whatever it is, the others can read without this member
                raise MemberFailed(number, str(error) or type(error).__name__) from error
        return answers

    def _mean(self, log_probs: Sequence[Tensor]) -> Tensor:
        """(…, V) of each member → (…, V). Raises ValueError if they differ in shape."""
        shapes = [tuple(one.shape) for one in log_probs]
        if len(set(shapes)) > 1:
            raise ValueError(f"members have distributions of the shapes {shapes}: only equal ones can be averaged")
        total = sum(share * one.float() for share, one in zip(self.shares, log_probs, strict=True))
        return cast(Tensor, total).log_softmax(-1)


class AverageGenerative(Average):
    """Members that emit one token a step."""

    def __init__(self, members: Sequence[Recognizer], weights: Sequence[float]) -> None:
        super().__init__(members, weights)
        first = cast(Generative, members[0])
        self.begin, self.end, self.max_length = first.begin, first.end, first.max_length

    def start(self, memory: Memory, width: int) -> AverageState:
        """width: beams kept per item."""
        parts = _parts(memory)
        return AverageState(tuple(self._each(lambda member, number: member.start(parts[number], width))))

    def step(self, state: AverageState, tokens: Tensor) -> tuple[Tensor, AverageState]:
        """tokens: (B·width,) long → log-probabilities (B·width, V) and the next state."""
        stepped = self._each(lambda member, number: member.step(state.members[number], tokens))
        return self._mean([log_probs for log_probs, _ in stepped]), AverageState(tuple(state for _, state in stepped))


class AverageRefinable(AverageGenerative):
    """Members that can also predict all positions at once and repair a finished reading."""

    def parallel(self, memory: Memory) -> Tensor:
        """Non-autoregressive log-probabilities of all positions: (B, L + 1, V)."""
        parts = _parts(memory)
        return self._mean(self._each(lambda member, number: member.parallel(parts[number])))

    def refine(self, memory: Memory, tokens: Tensor) -> Tensor:
        """tokens: (B, L + 1) long, a first reading → cloze log-probabilities (B, L + 1, V)."""
        parts = _parts(memory)
        return self._mean(self._each(lambda member, number: member.refine(parts[number], tokens)))


class AverageEmitting(Average):
    """Members with a distribution for each place along a line.

    Checkpoints of one run have their peaks in the same places. Strangers need not, and then average badly.
    """

    def emissions(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, S, V), token 0 being the blank, and how many of the S places each item has: (B,) long."""
        parts = _parts(memory)
        emitted = self._each(lambda member, number: member.emissions(parts[number]))
        return self._mean([log_probs for log_probs, _ in emitted]), emitted[0][1]


class AverageRanking(Average):
    """Members that rank one answer space exactly."""

    def rank(self, memory: Memory, n: int) -> list[list[TokenHypothesis]]:
        """The n most probable readings of each of the B items, best first; what norms their sum is put to the length."""
        parts = _parts(memory)
        by_member = self._each(lambda member, number: member.rank(parts[number], EVERYTHING))
        return [self._joined(rankings)[:n] for rankings in zip(*by_member, strict=True)]

    def _joined(self, rankings: Sequence[Sequence[TokenHypothesis]]) -> list[TokenHypothesis]:
        by_tokens = [{found.tokens: found for found in ranking} for ranking in rankings]
        every = list(by_tokens[0])
        means = torch.tensor(
            [[found[tokens].log_prob for tokens in every] for found in by_tokens], dtype=torch.float64
        )  # (members, readings)
        total = torch.tensor(self.shares, dtype=torch.float64) @ means
        norm = float(total.logsumexp(0))
        joined = []
        for tokens, log_prob in zip(every, (total - norm).tolist(), strict=True):
            steps = zip(*(found[tokens].token_log_probs for found in by_tokens), strict=True)
            *digits, length = (sum(share * one for share, one in zip(self.shares, step, strict=True)) for step in steps)
            joined.append(TokenHypothesis(tokens, log_prob, (*digits, length - norm)))
        return sorted(joined, key=lambda found: (-found.log_prob, found.tokens))


def _average(members: Sequence[Recognizer]) -> type[Average]:
    if isinstance(members[0], Ranking):
        return AverageRanking
    if isinstance(members[0], Emitting):
        return AverageEmitting
    return AverageRefinable if all(isinstance(member, Refinable) for member in members) else AverageGenerative


def _way(member: Recognizer) -> str:
    """How a recognizer reads, as far as it matters for a search that it shares."""
    frames = "all frames together" if member.reads_frames_together else "every frame alone"
    if isinstance(member, Ranking):
        return f"ranks its answers, {frames}"
    if isinstance(member, Emitting):
        return f"reads all places of a line at once, {frames}"
    if isinstance(member, Generative):
        tokens = f"at most {member.max_length} tokens between {member.begin} and {member.end}"
        return f"emits {tokens}, {frames}"
    raise ValueError(f"{type(member).__name__} has no distributions that could be averaged")


def _parts(memory: Memory) -> tuple[Memory, ...]:
    if not isinstance(memory, AverageMemory):
        raise TypeError("an average searches the memory that it encoded itself")
    return memory.members
