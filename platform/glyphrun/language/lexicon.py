"""A lexicon: words with how often they occur, and how much likelier a text is for being made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import exp, log
from pathlib import Path

import regex

from glyphrun.graphemes import graphemes
from glyphrun.language.corpus import CorpusError, read_counts, write_whole
from glyphrun.text import normalise

# Any word may begin a sentence or stand in a headline, but few do.
CAPITALISED, UPPER = 0.1, 0.01
# How many words are new is estimated by the share of those seen once (Good, Biometrika 1953). A list in which every count
# is 1 says nothing of it, and where no word was seen once, the next one might still be new.
MOST_NEW = 0.5
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]")


@dataclass(frozen=True)
class Span:
    """Neighbouring grapheme clusters of a text, a word or what stands between words; start counts code points."""

    start: int
    clusters: tuple[str, ...]
    is_word: bool

    @property
    def text(self) -> str:
        return "".join(self.clusters)


def spans(text: str) -> list[Span]:
    """A text as words of letters and numerals and what stands between them, in order; joined they are the text."""
    found: list[Span] = []
    start = 0
    for is_word, group in groupby(graphemes(text), key=lambda cluster: bool(_WORD.match(cluster))):
        found.append(Span(start, tuple(group), is_word))
        start += len(found[-1].text)
    return found


def words(text: str) -> list[str]:
    """The words of a text without punctuation; an apostrophe or a hyphen separates two words."""
    return [span.text for span in spans(text) if span.is_word]


def forms(entry: str) -> dict[str, float]:
    """How an entry may be written, and how often: as it is, with a first capital, in capitals."""
    return {entry.upper(): UPPER, entry[:1].upper() + entry[1:]: CAPITALISED, entry: 1.0}


class Lexicon:
    """Entries with counts. Their words are the words of the lexicon, and those of several words are its phrases too."""

    def __init__(self, entries: Iterable[tuple[str, int]]) -> None:
        """Entries that hold no letter and no numeral are left out. Raises CorpusError if none is left."""
        self.entries: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.phrases: Counter[str] = Counter()
        for text, count in entries:
            entry = normalise(text).strip()
            parts = words(entry)
            if parts:
                self.entries[entry] += count
            if len(parts) > 1:
                self.phrases[entry] += count
            for part in parts:
                self.words[part] += count
        if not self.words:
            raise CorpusError("a lexicon needs at least one word")
        self._total = self.words.total()
        once = sum(count == 1 for count in self.words.values())
        self.new = min(max(once, 1) / self._total, MOST_NEW)
        self._letters, self._end, self._unseen = _letters(self.words)

    @classmethod
    def of_texts(cls, texts: Iterable[tuple[str, int]]) -> Lexicon:
        """The words of texts, each text with how often it counts."""
        return cls((word, count) for text, count in texts for word in words(normalise(text)))

    @classmethod
    def load(cls, path: Path) -> Lexicon:
        """A list of entries, each alone or with a tab and its count. Raises CorpusError naming the file."""
        entries = list(read_counts(path))
        try:
            return cls(entries)
        except CorpusError as error:
            raise CorpusError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the entries with their counts, the most frequent first, whole or not at all."""
        ranked = sorted(self.entries.items(), key=lambda entry: (-entry[1], entry[0]))
        write_whole(path, (f"{entry}\t{count}\n" for entry, count in ranked))

    def share(self, text: str, *, phrase: bool = False) -> float:
        """How much of all that was counted a text is, as a word or else as a phrase, in any form that entries have."""
        counts = self.phrases if phrase else self.words
        sources = {text, text[:1].lower() + text[1:], text.lower(), text[:1] + text[1:].lower()}
        found = (counts[entry] * forms(entry).get(text, 0.0) for entry in sorted(sources) if entry in counts)
        return sum(found) / self._total

    def drawn(self, clusters: Sequence[str]) -> float:
        """Log-probability of drawing grapheme clusters and then an end at random from all words, cases taken together."""
        return sum(self._letters.get(cluster.lower(), self._unseen) for cluster in clusters) + self._end

    @cached_property
    def variety(self) -> float:
        """Of how many clusters, if all were equally frequent, the choice of one would be as open as it is."""
        return exp(-sum(exp(log_prob) * log_prob for log_prob in self._letters.values()))


def _letters(counts: Mapping[str, int]) -> tuple[dict[str, float], float, float]:
    """Log-probabilities of each grapheme cluster, of a word's end and of a cluster that no word has, add-one smoothed."""
    clusters: Counter[str] = Counter()
    ends = sum(counts.values())
    for word, count in counts.items():
        for cluster in graphemes(word):
            clusters[cluster.lower()] += count
    everything = clusters.total() + ends + len(clusters) + 2
    known = {cluster: log((count + 1) / everything) for cluster, count in clusters.items()}
    return known, log((ends + 1) / everything), -log(everything)
