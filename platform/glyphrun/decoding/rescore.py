"""Correction of n-best lists by what is known of texts: a lexicon that proposes and weighs, a language model that weighs.

A text's score is log_prob + evidence + lm_weight · log P_LM + length_bonus · characters. log_prob is the recognizer's, and
for a text that it did not say its own doubt in what it read instead, with the cost of the confusions that lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

import numpy as np

from glyphrun.decoding.vote import Hypothesis


class Respeller(Protocol):
    """What a lexicon says of texts."""

    def evidence(self, text: str) -> float:
        """Weighted natural-log score of a text for its words."""

    def respellings(self, text: str, log_probs: Sequence[float]) -> Sequence[tuple[str, float]]:
        """Texts that may have been meant, and the recognizer's log-odds of each against what was read.

        log_probs: the recognizer's log-probability of each code point of the text.
        """


class TextModel(Protocol):
    """A language model of whole texts."""

    def log_probs(self, texts: Sequence[str]) -> Sequence[float]:
        """Natural log-probability of each text and its end."""


@dataclass(frozen=True)
class Corrector:
    """What corrects, and how much a language model and a text's length count; either part may be absent."""

    speller: Respeller | None = None
    language_model: TextModel | None = None
    lm_weight: float = 0.5
    length_bonus: float = 0.0


@dataclass(frozen=True)
class CorrectedHypothesis(Hypothesis):
    """A text that no recognizer said, in place of what it ``read``; token_log_probs and pieces are those of ``read``."""

    read: str = ""


def correct(n_best: Sequence[Hypothesis], corrector: Corrector) -> list[Hypothesis]:
    """The n-best list of one item by score, before it the best respelling if that has a higher score than all of it."""
    return correct_all([n_best], corrector)[0]


def correct_all(items: Sequence[Sequence[Hypothesis]], corrector: Corrector) -> list[list[Hypothesis]]:
    """``correct`` for many items, whose texts a language model weighs together.

    Nothing that was read is dropped. Probabilities become proportional to exp(score); what is left to 1 is that of texts
    that nobody named, for which as much speaks as for those that were read, so that a list which nothing tells apart
    keeps its own. Scores are of whole texts: a length penalty of the search decides which are in the list, and not their
    order here.
    """
    pools = [[*n_best, *_respelled(n_best, corrector.speller)] for n_best in items]
    texts = sorted({found.text for pool in pools for found in pool})
    scores = dict(zip(texts, _text_scores(texts, corrector), strict=True))
    return [_ranked(pool, len(n_best), scores) for pool, n_best in zip(pools, items, strict=True)]


def character_log_probs(hypothesis: Hypothesis) -> list[float]:
    """The recognizer's log-probability of each code point of the text, a piece's being that of its first.

    Where the pieces are not those of the text, as for a vote of several, each has an equal part of log_prob.
    """
    text, said = hypothesis.text, "".join(hypothesis.pieces)
    if not text:
        return []
    if text not in (said, said.strip()) or len(hypothesis.pieces) > len(hypothesis.token_log_probs):
        return [hypothesis.log_prob / len(text)] * len(text)
    found = [0.0] * len(said)
    place = 0
    for piece, log_prob in zip(hypothesis.pieces, hypothesis.token_log_probs, strict=False):
        if piece:
            found[place] = log_prob
        place += len(piece)
    # A subword may begin with a space that the text has lost.
    first = said.index(text)
    return [sum(found[: first + 1]), *found[first + 1 : first + len(text)]]


def _respelled(n_best: Sequence[Hypothesis], speller: Respeller | None) -> list[Hypothesis]:
    """Texts that are not in the list, each made of the hypothesis that it is likeliest from."""
    if speller is None:
        return []
    read = {found.text for found in n_best}
    best: dict[str, Hypothesis] = {}
    for found in n_best:
        if not isfinite(found.log_prob):
            continue
        for text, log_odds in speller.respellings(found.text, character_log_probs(found)):
            log_prob = found.log_prob + log_odds
            if text not in read and (text not in best or best[text].log_prob < log_prob):
                best[text] = CorrectedHypothesis(text, log_prob, found.token_log_probs, found.pieces, read=found.text)
    return list(best.values())


def _text_scores(texts: Sequence[str], corrector: Corrector) -> list[float]:
    scores = [corrector.length_bonus * len(text) for text in texts]
    if corrector.speller is not None:
        scores = [score + corrector.speller.evidence(text) for score, text in zip(scores, texts, strict=True)]
    if corrector.language_model is not None and texts:
        log_probs = corrector.language_model.log_probs(texts)
        scores = [score + corrector.lm_weight * log_prob for score, log_prob in zip(scores, log_probs, strict=True)]
    return scores


def _ranked(pool: Sequence[Hypothesis], count: int, scores: dict[str, float]) -> list[Hypothesis]:
    """pool: the ``count`` hypotheses of an n-best list, then what they may be respelled as."""
    log_probs = np.array([found.log_prob if isfinite(found.log_prob) else -np.inf for found in pool])
    if not np.isfinite(log_probs).any():
        return list(pool[:count])
    totals = log_probs + [scores[found.text] for found in pool]
    read = np.logaddexp.reduce(totals[:count]) - np.logaddexp.reduce(log_probs[:count])
    unnamed = np.log1p(-min(np.exp(log_probs).sum(), 1 - 1e-12))
    shares = np.minimum(totals - np.logaddexp.reduce([*totals, unnamed + read]), 0.0)
    order = [int(number) for number in np.argsort(-totals, kind="stable")]
    kept = [number for place, number in enumerate(order) if number < count or place == 0]
    return [replace(pool[number], log_prob=float(shares[number])) for number in kept]
