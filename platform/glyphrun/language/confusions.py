"""How likely a recognizer is to take one character for another, learnt from what it read where the truth is known.

The unit is the grapheme cluster. The cost of reading one word where another stands is that of its cheapest alignment, the
sum of the negative logarithms of its edits (a noisy channel with single edits: Kernighan, Church and Gale, COLING 1990).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from math import log
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from rapidfuzz.distance import Levenshtein

from glyphrun.graphemes import graphemes
from glyphrun.language.corpus import CorpusError, write_whole
from glyphrun.text import normalise

# One substitution, deletion and insertion each in a hundred characters, until counts say otherwise.
PRIOR_ERRORS, PRIOR_CHARACTERS = 1, 100
SMOOTHING = 20  # so many characters at the average error rate are added to what was seen of each
HOPELESS = 0.5  # a reading with more errors than this share of its truth is no reading of it


class Confusions(BaseModel):
    """Counts over aligned characters: truth → reading, with the truth itself where it was read right.

    missed: truths that were not read. invented: readings where nothing stood. Without counts every edit costs the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: dict[str, dict[str, NonNegativeInt]] = {}
    missed: dict[str, NonNegativeInt] = {}
    invented: dict[str, NonNegativeInt] = {}

    def substitution(self, truth: str, reading: str) -> float:
        """Cost of reading something else where ``truth`` stands."""
        seen = self.read.get(truth, {}).get(reading, 0)
        return self._cost(seen, self._rates[0] / self._alphabet, self._totals.get(truth, 0))

    def deletion(self, truth: str) -> float:
        """Cost of reading nothing where ``truth`` stands."""
        return self._cost(self.missed.get(truth, 0), self._rates[1], self._totals.get(truth, 0))

    def insertion(self, reading: str) -> float:
        """Cost of reading ``reading`` where nothing stands."""
        return self._cost(self.invented.get(reading, 0), self._rates[2] / self._alphabet, self.characters)

    @cached_property
    def cheapest(self) -> float:
        """The least that any edit costs."""
        substitutions = (
            self.substitution(truth, other) for truth, row in self.read.items() for other in row if other != truth
        )
        deletions, insertions = map(self.deletion, self.missed), map(self.insertion, self.invented)
        unseen = (self.substitution("", ""), self.deletion(""), self.insertion(""))
        return min((*unseen, *substitutions, *deletions, *insertions))

    def cost(self, truth: Sequence[str], reading: Sequence[str]) -> float:
        """Cost of reading ``reading`` where ``truth`` stands, both as grapheme clusters; 0 if they are equal."""
        invented = [self.insertion(character) for character in reading]
        before = list(accumulate(invented, initial=0.0))
        for expected in truth:
            missed = self.deletion(expected)
            row = [before[0] + missed]
            for place, character in enumerate(reading):
                kept = before[place] + (0.0 if character == expected else self.substitution(expected, character))
                row.append(min(kept, before[place + 1] + missed, row[place] + invented[place]))
            before = row
        return before[-1]

    @property
    def errors(self) -> tuple[int, int, int]:
        """How many characters were read wrong, missed and invented."""
        right = sum(row.get(truth, 0) for truth, row in self.read.items())
        missed = sum(self.missed.values())
        return self.characters - missed - right, missed, sum(self.invented.values())

    @cached_property
    def characters(self) -> int:
        """How many characters there were to read."""
        return sum(self._totals.values())

    @staticmethod
    def _cost(seen: int, expected: float, times: int) -> float:
        return -log((seen + SMOOTHING * expected) / (times + SMOOTHING))

    @cached_property
    def _totals(self) -> dict[str, int]:
        totals = Counter({truth: sum(row.values()) for truth, row in self.read.items()})
        totals.update(self.missed)
        return dict(totals)

    @cached_property
    def _alphabet(self) -> int:
        """How many characters a wrong one can be."""
        readings = {reading for row in self.read.values() for reading in row}
        return len(readings | set(self._totals) | set(self.invented)) or 1

    @cached_property
    def _rates(self) -> tuple[float, float, float]:
        """Substitutions, deletions and insertions for each character."""
        first, second, third = ((count + PRIOR_ERRORS) / (self.characters + PRIOR_CHARACTERS) for count in self.errors)
        return first, second, third


def learn_confusions(pairs: Iterable[tuple[str, str]]) -> Confusions:
    """Count the edits of (truth, reading) pairs, each aligned with the fewest edits; hopeless readings are left out."""
    read: dict[str, Counter[str]] = {}
    missed: Counter[str] = Counter()
    invented: Counter[str] = Counter()
    for texts in pairs:
        truth, reading = (graphemes(normalise(text)) for text in texts)
        if Levenshtein.distance(truth, reading) > HOPELESS * len(truth):
            continue
        for step in Levenshtein.opcodes(truth, reading):
            before, after = truth[step.src_start : step.src_end], reading[step.dest_start : step.dest_end]
            if step.tag == "delete":
                missed.update(before)
            elif step.tag == "insert":
                invented.update(after)
            else:
                for expected, character in zip(before, after, strict=True):
                    read.setdefault(expected, Counter())[character] += 1
    return Confusions(read={truth: dict(row) for truth, row in read.items()}, missed=missed, invented=invented)


def save_confusions(confusions: Confusions, path: Path) -> None:
    """Write the counts as JSON, whole or not at all."""
    write_whole(path, [confusions.model_dump_json(indent=1), "\n"])


def load_confusions(path: Path) -> Confusions:
    """Raises CorpusError naming the file and what is wrong in it."""
    try:
        return Confusions.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise CorpusError(f"{path} holds no confusions: {first['msg']} at {'.'.join(map(str, first['loc']))}") from None
