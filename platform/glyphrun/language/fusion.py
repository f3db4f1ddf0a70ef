"""Shallow fusion (arXiv 1503.03535): a character model weighs a recognizer's tokens while a beam grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import kenlm

from glyphrun.language.lm import CharacterLM

BROKEN = "\ufffd"  # what bytes that are no whole character are decoded to


@dataclass(frozen=True)
class FusionState:
    """The model's state after all whole characters, and the tokens since then, which are parts of one."""

    model: kenlm.State
    pending: tuple[int, ...] = ()


class ShallowFusion:
    """Adds weight · log P_LM of the characters that a token stands for, and length_bonus for each of them.

    text_of: the text of some token ids, "" for tokens that are no text; a token may be a part of a character, and counts
    once that is whole. longest: how many characters a token can have. most: the greatest score that one can have.
    """

    def __init__(
        self,
        model: CharacterLM,
        text_of: Callable[[Sequence[int]], str],
        *,
        weight: float,
        length_bonus: float,
        longest: float,
    ) -> None:
        self.model = model
        self.text_of = text_of
        self.weight = weight
        self.length_bonus = length_bonus
        self.most = length_bonus * longest if length_bonus > 0 else 0.0

    def start(self) -> FusionState:
        """The state of an empty text."""
        return FusionState(self.model.start())

    def extend(self, state: FusionState, token: int) -> tuple[float, FusionState]:
        """What a token adds, and the state after it."""
        tokens = (*state.pending, token)
        text = self.text_of(tokens)
        if text.endswith(BROKEN):
            return 0.0, FusionState(state.model, tokens)
        log_prob, following = self.model.extend(state.model, text)
        return self.weight * log_prob + self.length_bonus * len(text), FusionState(following)

    def finish(self, state: FusionState) -> float:
        """What it adds that the text ends here; a character that is never whole counts as one unknown."""
        left, model = self.model.extend(state.model, BROKEN if state.pending else "")
        return self.weight * (left + self.model.finish(model))
