"""What may have been meant by what was read: entries of a lexicon in place of a recognizer's doubtful words."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import exp, inf, log, log1p

import numpy as np
import regex
from rapidfuzz.distance import Levenshtein

from glyphrun.graphemes import graphemes
from glyphrun.language.confusions import Confusions
from glyphrun.language.lexicon import Lexicon, forms, spans
from glyphrun.language.neighbours import Neighbours

# A recognizer is surer than it is right, and a reading of probability 0 would be replaced by anything.
SUREST, UNSUREST = log(1 - 1e-4), log(1e-4)
# A language model does not make up for more than this, in nats.
REACH = 5.0
WORDS_KEPT, TEXTS_KEPT = 3, 4
REMEMBERED = 100_000  # words
_NUMBER = regex.compile(r"\p{N}+")

# What a stretch of text is replaced by: how much is gained, the part of that which is the recognizer's, and the text.
Way = tuple[float, float, str]


class Speller:
    """A lexicon and a recognizer's confusions as a noisy channel (Kernighan, Church and Gale, COLING 1990).

    A word that was read with probability p was meant otherwise with 1 - p, and then as a word of the lexicon that the
    confusions turn into what was read. It is replaced where log (1 - p) - cost + weight · evidence of the other word
    exceeds log p + weight · evidence of what was read. Grapheme clusters are replaced whole.
    """

    def __init__(self, lexicon: Lexicon, confusions: Confusions, *, max_edits: int, weight: float) -> None:
        self.lexicon = lexicon
        self.confusions = confusions
        self.max_edits = max_edits
        self.weight = weight
        self._words = Neighbours(lexicon.words)
        self._phrases = Neighbours(lexicon.phrases)
        # A dozen replacements of each word are weighed, and most of them again in the next hypothesis.
        self._word = lru_cache(maxsize=REMEMBERED)(self._word_evidence)

    def evidence(self, text: str) -> float:
        """Weighted logarithm of how much likelier a text is than its letters drawn at random, word by word or as a whole.

        Relative to the letters, no word is better or worse for its length alone.
        """
        of_words = sum(self._word(span.clusters) for span in spans(text) if span.is_word)
        return self.weight * max(of_words, self._phrase(tuple(graphemes(text))))

    def respellings(self, text: str, log_probs: Sequence[float]) -> list[tuple[str, float]]:
        """Other texts that may have been meant, best first, and the recognizer's log-odds of each against what was read.

        log_probs: the recognizer's log-probability of each code point of the text. A number among words is left as it is,
        for no list has them all.
        """
        ways: list[Way] = [(0.0, 0.0, "")]
        parts = spans(text)
        for part in parts:
            options: list[Way] = [(0.0, 0.0, part.text)]
            if part.is_word and (len(parts) == 1 or not _NUMBER.fullmatch(part.text)):
                log_prob = sum(log_probs[part.start : part.start + len(part.text)])
                read = self.weight * self._word(part.clusters)
                options += self._replacements(part.clusters, log_prob, read, self._words, self._word)
            longer = [
                (gain + added, odds + other, passed + option)
                for gain, odds, passed in ways
                for added, other, option in options
            ]
            ways = heapq.nlargest(TEXTS_KEPT + 1, longer)
        if self.lexicon.phrases:
            whole = tuple(graphemes(text))
            ways += self._replacements(whole, sum(log_probs), self.evidence(text), self._phrases, self._phrase)
        return [(found, odds) for _, odds, found in sorted(ways, reverse=True) if found != text][:TEXTS_KEPT]

    def _replacements(
        self,
        clusters: tuple[str, ...],
        log_prob: float,
        read: float,
        entries: Neighbours,
        evidence: Callable[[tuple[str, ...]], float],
    ) -> list[Way]:
        """The best entries in place of some clusters; read: the weighted evidence of what stands there."""
        log_prob = min(max(log_prob, UNSUREST), SUREST)
        wrong = log1p(-exp(log_prob)) - log_prob
        bounds = [
            (wrong - distance * self.confusions.cheapest + self.weight * evidence(entry) - read, entry)
            for entry, distance in entries.near(clusters, self._edits(clusters))
        ]
        best: list[Way] = []
        for bound, entry in sorted(bounds, reverse=True):
            least = best[-1][0] if len(best) == WORDS_KEPT else -REACH
            if bound < least:
                break
            for form in sorted({tuple(graphemes(form)) for form in forms("".join(entry))} - {clusters}):
                gained = self.weight * evidence(form) - read
                if wrong - Levenshtein.distance(form, clusters) * self.confusions.cheapest + gained > least:
                    odds = wrong - self.confusions.cost(form, clusters)
                    best = heapq.nlargest(WORDS_KEPT, {*best, (odds + gained, odds, "".join(form))})
        return [way for way in best if way[0] > -REACH]

    def _word_evidence(self, clusters: tuple[str, ...]) -> float:
        """Of a word of the lexicon by its count; of a new one as letters at random, or as a known word with changes.

        New words are inflections and names that differ little from known ones: without that, each would be taken for an
        error. All places of a change are as likely, and so are all letters that stood there before, by their frequency.
        """
        lexicon = self.lexicon
        new, share = log(lexicon.new), lexicon.share("".join(clusters))
        if share:
            return float(np.logaddexp(new, log((1 - lexicon.new) * share) - lexicon.drawn(clusters)))
        changes = log((2 * len(clusters) + 1) * lexicon.variety)
        changed = (
            log(lexicon.share("".join(entry))) - lexicon.drawn(entry) - distance * changes
            for entry, distance in self._words.near(clusters, self._edits(clusters))
        )
        return new + max(0.0, max(changed, default=0.0))

    def _phrase(self, clusters: tuple[str, ...]) -> float:
        share = self.lexicon.share("".join(clusters), phrase=True)
        return log(share) - self.lexicon.drawn(clusters) if share else -inf

    def _edits(self, clusters: tuple[str, ...]) -> int:
        """With more than half of a word gone nothing speaks for one word rather than another."""
        return min(self.max_edits, len(clusters) // 2)
