"""A scorer whose every word is known, for tests."""

from __future__ import annotations

import numpy as np


class Bigrams:
    """A random number for each pair of tokens, begin and end being token 0, and a bonus for every token."""

    def __init__(self, vocabulary: int, weight: float = 1.0, bonus: float = 0.0) -> None:
        self.table = -weight * np.random.default_rng(5).exponential(2.0, (vocabulary, vocabulary))
        self.bonus = bonus
        self.asked: list[tuple[int, int]] = []

    def start(self) -> int:
        return 0

    def extend(self, state: int, token: int) -> tuple[float, int]:
        self.asked.append((state, token))
        return float(self.table[state, token]) + self.bonus, token

    def finish(self, state: int) -> float:
        return float(self.table[state, 0])

    def total(self, text: tuple[int, ...]) -> float:
        """Of a whole text, without a beam."""
        pairs = zip((0, *text), (*text, 0), strict=True)
        return sum(float(self.table[pair]) for pair in pairs) + self.bonus * len(text)


class BoundedBigrams(Bigrams):
    """Bigrams that say what the most is that they add."""

    @property
    def most(self) -> float:
        return max(self.bonus, 0.0)


class Successors(BoundedBigrams):
    """Every token is to be followed by the next one, or the text to end; all else costs ``weight``."""

    def __init__(self, vocabulary: int, weight: float) -> None:
        super().__init__(vocabulary)
        tokens = np.arange(vocabulary)
        self.table = np.where(tokens == tokens[:, None] % (vocabulary - 1) + 1, 0.0, -weight)
        self.table[0], self.table[:, 0] = 0.0, 0.0
