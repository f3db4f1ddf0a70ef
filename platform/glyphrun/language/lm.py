"""Querying a character n-gram model with kenlm: whole texts, and one character after another inside a beam."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from pathlib import Path

import kenlm

from glyphrun.language.ngram import END, UNKNOWN, WORDS, characters
from glyphrun.text import normalise

_LN10 = log(10)


class LanguageModelError(ValueError):
    """A language model cannot be loaded; the message names the file."""


class CharacterLM:
    """A model of characters in ARPA form or in kenlm's own. States are kenlm's: equal and hashable, never changed."""

    def __init__(self, path: Path) -> None:
        """Raises LanguageModelError."""
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        if not path.is_file():
            raise LanguageModelError(f"there is no language model {path}: train one with `glyphrun lm train TEXT OUT`")
        try:
            self._model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError) as error:
            said = str(error).partition(" (")[2] or str(error)
            raise LanguageModelError(f"{path} is no model that kenlm reads: {' '.join(said.split())}") from None
        self._words: dict[str, str] = {}

    @property
    def order(self) -> int:
        return int(self._model.order)

    def start(self) -> kenlm.State:
        """The state before the first character of a text."""
        state = kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def extend(self, state: kenlm.State, text: str) -> tuple[float, kenlm.State]:
        """Natural log-probability of further characters, one or some, and the state after them."""
        total = 0.0
        for character in characters(text):
            following = kenlm.State()
            total += self._model.BaseScore(state, self._word(character), following)
            state = following
        return total * _LN10, state

    def finish(self, state: kenlm.State) -> float:
        """Natural log-probability that the text ends here."""
        return self._model.BaseScore(state, WORDS[END], kenlm.State()) * _LN10

    def log_probs(self, texts: Sequence[str]) -> list[float]:
        """Natural log-probability of each text with its end; a character outside the vocabulary counts as unknown."""
        found = []
        for text in texts:
            total, state = self.extend(self.start(), normalise(text))
            found.append(total + self.finish(state))
        return found

    def _word(self, character: str) -> str:
        if character not in self._words:
            word = WORDS.get(character, character)
            self._words[character] = word if word in self._model else WORDS[UNKNOWN]
        return self._words[character]


def perplexity(model: CharacterLM, texts: Sequence[str]) -> float:
    """The inverse geometric mean of the probabilities of the texts' characters and ends. Raises ValueError for none."""
    if not texts:
        raise ValueError("perplexity needs at least one text")
    return exp(-sum(model.log_probs(texts)) / sum(len(normalise(text)) + 1 for text in texts))
