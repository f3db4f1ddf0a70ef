"""Narrow beams out of a wide one: what its recognizer said of the hypotheses that it expanded is kept and asked again.

A beam depends on its recognizer through nothing but the distributions after the hypotheses that it expands. So where the
wide beam expanded all that a narrower one expands, the narrower is searched by the same code without the recognizer,
whatever its length penalty, early stop or scorer, and gives the same up to rounding. That holds for most items and not
for all: a hypothesis that the narrow beam keeps for want of better may be crowded out of the wide one, which also may
have stopped earlier. Items that need a hypothesis nobody expanded are searched with the recognizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphrun.decoding.beam import beam, considered
from glyphrun.decoding.scorer import Scorer
from glyphrun.models.recognizer import Generative, Memory, State, TokenHypothesis

Text = tuple[int, ...]
NEVER = -1e9  # log-probability of what follows an unknown hypothesis: finite, since a scorer may add without bound


@dataclass
class Record:
    """What one search asked, filled by the first and read by those that follow over the same items.

    kept: how many of the likeliest tokens are known after each hypothesis. said: those tokens and the end, with their
    log-probabilities, by the item's place and the hypothesis. anew: how many items were searched with the recognizer again.
    """

    kept: int = 0
    vocabulary: int = 0
    said: dict[tuple[int, Text], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    anew: int = 0


def recorded_beam(
    record: Record,
    recognizer: Generative,
    memory: Memory,
    width: int,
    n_best: int,
    *,
    scorer: Scorer | None = None,
    **options: Any,
) -> list[list[TokenHypothesis]]:
    """As ``beam``, which fills an empty record and otherwise asks the recognizer only of what the record does not hold.

    Raises ValueError for a beam that looks at more tokens than were recorded.
    """
    kept = considered(width, scorer) + 1
    if not record.said:
        record.kept = kept
        return beam(_Recording(recognizer, record), memory, width, n_best, scorer=scorer, **options)
    if kept > record.kept:
        raise ValueError(
            f"a record of {record.kept} tokens cannot answer a beam that looks at {kept}: record the widest"
        )
    replayed = _Replayed(recognizer, record)
    found = beam(replayed, memory, width, n_best, scorer=scorer, **options)
    if replayed.unknown:
        places = sorted(replayed.unknown)
        record.anew += len(places)
        again = beam(recognizer, memory, width, n_best, scorer=scorer, places=places, **options)
        for place, hypotheses in zip(places, again, strict=True):
            found[place] = hypotheses
    return found


@dataclass(frozen=True)
class _Rows:
    """Which hypothesis stands in each row of a search, by its item's place and its tokens, and the recognizer's state."""

    hypotheses: list[tuple[int, Text]]
    width: int
    inner: State | None

    def reorder(self, beams: Tensor) -> _Rows:
        """beams: (B·width,) long."""
        chosen = [self.hypotheses[row] for row in beams.tolist()]
        return replace(self, hypotheses=chosen, inner=self.inner and self.inner.reorder(beams))

    def keep(self, items: Tensor) -> _Rows:
        """items: (K,) long."""
        chosen = [
            self.hypotheses[row] for item in items.tolist() for row in range(item * self.width, (item + 1) * self.width)
        ]
        return replace(self, hypotheses=chosen, inner=self.inner and self.inner.keep(items))

    def grown(self, tokens: Tensor) -> list[tuple[int, Text]]:
        """tokens: (B·width,) long, the last ones emitted."""
        pairs = zip(self.hypotheses, tokens.tolist(), strict=True)
        return [(item, (*text, token)) for (item, text), token in pairs]


class _Generation:
    """What both sides of a record have in common of a generative recognizer."""

    def __init__(self, recognizer: Generative, record: Record) -> None:
        self.begin, self.end, self.max_length = recognizer.begin, recognizer.end, recognizer.max_length
        self.recognizer, self.record = recognizer, record


class _Recording(_Generation):
    """A recognizer whose answers are kept."""

    def start(self, memory: Memory, width: int) -> _Rows:
        nothing: list[tuple[int, Text]] = [(item, ()) for item in range(len(memory.tokens)) for _ in range(width)]
        return _Rows(nothing, width, self.recognizer.start(memory, width))

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, _Rows]:
        assert state.inner is not None
        log_probs, inner = self.recognizer.step(state.inner, tokens)
        hypotheses = state.grown(tokens)
        likely = log_probs.topk(min(self.record.kept, log_probs.shape[1]))
        known = torch.cat([likely.indices, likely.indices.new_full((len(log_probs), 1), self.end)], dim=1).cpu().numpy()
        values = torch.cat([likely.values, log_probs[:, self.end : self.end + 1]], dim=1).float().cpu().numpy()
        self.record.vocabulary = log_probs.shape[1]
        self.record.said.update(zip(hypotheses, zip(known, values, strict=True), strict=True))
        return log_probs, replace(state, hypotheses=hypotheses, inner=inner)


class _Replayed(_Generation):
    """Answers out of a record; unknown: the places of items that asked what it does not hold, for which the text ends."""

    def __init__(self, recognizer: Generative, record: Record) -> None:
        super().__init__(recognizer, record)
        self.unknown: set[int] = set()

    def start(self, memory: Memory, width: int) -> _Rows:
        return _Rows([(item, ()) for item in range(len(memory.tokens)) for _ in range(width)], width, None)

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, _Rows]:
        hypotheses, record = state.grown(tokens), self.record
        answers = [record.said.get(hypothesis) for hypothesis in hypotheses]
        log_probs = torch.full((len(hypotheses), record.vocabulary), -torch.inf)
        rows = [row for row, answer in enumerate(answers) if answer is not None]
        if rows:
            known, values = (torch.from_numpy(np.stack(part)) for part in zip(*filter(None, answers), strict=True))
            log_probs[torch.tensor(rows)[:, None], known] = values
        for row, ((item, _), answer) in enumerate(zip(hypotheses, answers, strict=True)):
            if answer is None:
                log_probs[row], log_probs[row, self.end] = NEVER, 0.0
                self.unknown.add(item)
        return log_probs, replace(state, hypotheses=hypotheses)
