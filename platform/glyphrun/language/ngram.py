"""Character n-gram models: interpolated modified Kneser-Ney (Chen and Goodman, TR-10-98, 1998), written as ARPA.

A text is a sequence of its code points between a begin and an end. The unit is the code point and not the grapheme
cluster, because it is what a recognizer's charset emits and what a beam extends by.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log, log10
from pathlib import Path

from glyphrun.language.corpus import CorpusError, write_whole

MAX_ORDER = 6  # what kenlm's published builds can query
SPACE = "\u2581"  # an ARPA file separates its words by spaces, so that a space needs another name
# Control characters never reach a model, so that these three can stand for what is no character.
BEGIN, END, UNKNOWN = "\x02", "\x03", "\x1a"
WORDS = {BEGIN: "<s>", END: "</s>", UNKNOWN: "<unk>", " ": SPACE}
# For orders in which some count up to four does not occur, as with few characters: those of the published lmplz.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
IMPOSSIBLE = -99.0


def characters(text: str) -> str:
    """The text as a model sees it: any white space is one kind of space, and a character without meaning is unknown."""
    return "".join(map(_character, text))


def _character(character: str) -> str:
    if character.isspace() or character == SPACE:
        return " "
    # Category Cc are controls, Cs halves of surrogate pairs, which no file can hold.
    return UNKNOWN if unicodedata.category(character) in ("Cc", "Cs") else character


@dataclass(frozen=True)
class NgramModel:
    """Base-10 logarithms: log_probs[n - 1] of each n-gram's last character after the others, backoffs of contexts."""

    log_probs: tuple[dict[str, float], ...]
    backoffs: dict[str, float]

    @property
    def order(self) -> int:
        return len(self.log_probs)

    @property
    def vocabulary(self) -> list[str]:
        """All that can follow a context: the characters, the end, and the unknown."""
        return sorted(self.log_probs[0])

    def log10(self, context: str, character: str) -> float:
        """log10 P(character | context); the context may be longer than the model's order and begin with BEGIN."""
        context = context[max(len(context) - self.order + 1, 0) :]
        if character not in self.log_probs[0]:
            character = UNKNOWN
        backoff = 0.0
        while context:
            found = self.log_probs[len(context)].get(context + character)
            if found is not None:
                return backoff + found
            backoff += self.backoffs.get(context, 0.0)
            context = context[1:]
        return backoff + self.log_probs[0][character]

    def log_prob(self, text: str) -> float:
        """Natural logarithm of the probability of a text and its end."""
        sequence = BEGIN + characters(text) + END
        steps = (self.log10(sequence[:place], sequence[place]) for place in range(1, len(sequence)))
        return sum(steps) * log(10)


def train(texts: Iterable[tuple[str, int]], order: int) -> NgramModel:
    """A model of texts, each with how often it counts; texts are streamed, the distinct n-grams are kept in memory.

    The order falls to that of the longest text. Raises CorpusError if there is no text or the order is not 2 to 6.
    """
    if not 2 <= order <= MAX_ORDER:
        raise CorpusError(f"order {order} cannot be queried: choose 2 to {MAX_ORDER}")
    counts = adjusted_counts(texts, order)
    if not counts:
        raise CorpusError("there is no text to learn from: give at least one line with a character")
    return _estimate(counts)


def adjusted_counts(texts: Iterable[tuple[str, int]], order: int) -> list[dict[str, int]]:
    """For each order from 1 on: how often its n-grams occur if it is the highest or they begin a text, else after how
    many different characters they occur. Orders that no text is long enough for are left out.
    """
    highest: Counter[str] = Counter()
    beginnings: Counter[str] = Counter()
    for text, times in texts:
        known = characters(text).replace(UNKNOWN, "")
        if not known:
            continue
        sequence = BEGIN + known + END
        for start in range(len(sequence) - order + 1):
            highest[sequence[start : start + order]] += times
        for length in range(2, min(order, len(sequence) + 1)):
            beginnings[sequence[:length]] += times
    levels: list[dict[str, int]] = [highest]
    for length in range(order - 1, 0, -1):
        level = Counter(ngram[1:] for ngram in levels[0])
        level.update({ngram: count for ngram, count in beginnings.items() if len(ngram) == length})
        levels.insert(0, level)
    return [level for level in levels if level]


def discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """What is taken off the counts 1, 2 and all from 3 on (Chen and Goodman, equation 26)."""
    times = Counter(min(count, 5) for count in counts)
    if not all(times[count] for count in (1, 2, 3, 4)):
        return FALLBACK_DISCOUNTS
    share = times[1] / (times[1] + 2 * times[2])
    first, second, third = (count - (count + 1) * share * times[count + 1] / times[count] for count in (1, 2, 3))
    sound = 0 < first <= 1 and 0 < second <= 2 and 0 < third <= 3
    return (first, second, third) if sound else FALLBACK_DISCOUNTS


def _estimate(counts: list[dict[str, int]]) -> NgramModel:
    spread = 1 / (len(counts[0]) + 1)  # over the characters, the end and the unknown
    log_probs: list[dict[str, float]] = []
    backoffs: dict[str, float] = {}
    lower: dict[str, float] = {}
    for level in counts:
        taken = discounts(level.values())
        totals: Counter[str] = Counter()
        freed: dict[str, float] = {}
        for ngram, count in level.items():
            context = ngram[:-1]
            totals[context] += count
            freed[context] = freed.get(context, 0.0) + taken[min(count, 3) - 1]
        shares = {context: mass / totals[context] for context, mass in freed.items()}
        probabilities = {
            ngram: (count - taken[min(count, 3) - 1]) / totals[ngram[:-1]]
            + shares[ngram[:-1]] * lower.get(ngram[1:], spread)
            for ngram, count in level.items()
        }
        if not log_probs:
            probabilities[UNKNOWN] = shares.pop("") * spread
        backoffs.update({context: log10(share) for context, share in shares.items()})
        log_probs.append({ngram: log10(probability) for ngram, probability in probabilities.items()})
        lower = probabilities
    return NgramModel(tuple(log_probs), backoffs)


def write_arpa(model: NgramModel, path: Path) -> None:
    """Write the model in ARPA form, whole or not at all."""
    write_whole(path, _arpa_lines(model))


def _arpa_lines(model: NgramModel) -> Iterator[str]:
    # The begin is in the list of words, though nothing can be followed by it.
    first = {**model.log_probs[0], BEGIN: IMPOSSIBLE}
    levels = (first, *model.log_probs[1:])
    yield "\\data\\\n"
    for length, level in enumerate(levels, start=1):
        yield f"ngram {length}={len(level)}\n"
    for length, level in enumerate(levels, start=1):
        yield f"\n\\{length}-grams:\n"
        for ngram in sorted(level):
            words = " ".join(WORDS.get(character, character) for character in ngram)
            # The probability of the end has no backoff, nor has anything of the highest order.
            backoff = f"\t{model.backoffs[ngram]:.8g}" if ngram in model.backoffs else ""
            yield f"{level[ngram]:.8g}\t{words}{backoff}\n"
    yield "\n\\end\\\n"
