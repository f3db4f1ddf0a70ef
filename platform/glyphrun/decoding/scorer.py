"""Shallow fusion: what else is known of a text is added to a hypothesis while it grows inside a beam."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any, Protocol, runtime_checkable

from glyphrun.models.recognizer import TokenHypothesis

State = Any
"""Whatever a scorer has to remember of a text: hashable and never changed. Equal states are extended alike."""

ASKED = 32  # continuations of a hypothesis that a scorer is asked about, if the beam is no wider


class Scorer(Protocol):
    """Weighted natural-log scores of a text that grows token by token; all are finite, tokens are the recognizer's ids."""

    def start(self) -> State:
        """What is remembered of an empty text."""

    def extend(self, state: State, token: int) -> tuple[float, State]:
        """What a token adds to the score of a text, and what is remembered of the longer one."""

    def finish(self, state: State) -> float:
        """What it adds that a text ends here."""


@runtime_checkable
class Bounded(Protocol):
    """A scorer that knows the most it can add for one token or an end: 0 if all its scores are log-probabilities.

    A beam can then tell when no open hypothesis will reach the n-best any more; with any other scorer it has to go on
    to the longest text.
    """

    most: float


class Memoised:
    """A scorer that is asked each question once: hypotheses of a beam have most of their pasts in common."""

    def __init__(self, scorer: Scorer) -> None:
        self.most = scorer.most if isinstance(scorer, Bounded) else inf
        self._scorer = scorer
        self._extensions: dict[tuple[State, int], tuple[float, State]] = {}
        self._endings: dict[State, float] = {}

    def start(self) -> State:
        """What is remembered of an empty text."""
        return self._scorer.start()

    def extend(self, state: State, token: int) -> tuple[float, State]:
        """As the scorer says."""
        question = (state, token)
        if question not in self._extensions:
            self._extensions[question] = self._scorer.extend(state, token)
        return self._extensions[question]

    def finish(self, state: State) -> float:
        """As the scorer says."""
        if state not in self._endings:
            self._endings[state] = self._scorer.finish(state)
        return self._endings[state]


def scored(hypothesis: TokenHypothesis, length_penalty: float, scorer: Scorer | None) -> TokenHypothesis:
    """A whole text with the score that it has in a beam: (log_prob + what the scorer adds) / length**length_penalty.

    length counts the tokens and the end.
    """
    total = hypothesis.log_prob
    if scorer is not None:
        state = scorer.start()
        for token in hypothesis.tokens:
            added, state = scorer.extend(state, token)
            total += added
        total += scorer.finish(state)
    return replace(hypothesis, score=total / (len(hypothesis.tokens) + 1) ** length_penalty)


def ranked(hypotheses: Iterable[TokenHypothesis]) -> list[TokenHypothesis]:
    """Best score first; equal ones in the order of their tokens."""
    return sorted(hypotheses, key=lambda hypothesis: (-hypothesis.score, hypothesis.tokens))
