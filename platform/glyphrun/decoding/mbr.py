"""Minimum Bayes risk: of all readings that anyone proposes, the one with the fewest expected edits.

Expected edits are what expected CER over a whole data set comes to: its denominator, the number of true characters, is the
same whatever is answered. The decision rule is that of S. Kumar and W. Byrne, «Minimum Bayes-risk decoding for statistical
machine translation», NAACL 2004, over pooled n-best lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import fsum

import editdistance


def expected_edits(masses: Mapping[str, float], segment: Callable[[str], Sequence[str]] = tuple) -> dict[str, float]:
    """For each text of a pool the edits by which it misses the truth on average, if the truth is in the pool.

    masses: how probable each text is, in any unit; they are brought to a sum of 1. segment: a text's characters.
    """
    texts = list(masses)
    characters = [tuple(segment(text)) for text in texts]
    total = fsum(masses.values())
    edits = [[0] * len(texts) for _ in texts]
    for row, one in enumerate(characters):
        for column in range(row):
            edits[row][column] = edits[column][row] = editdistance.eval(one, characters[column])
    return {
        text: fsum(distance * masses[other] for distance, other in zip(distances, texts, strict=True)) / total
        for text, distances in zip(texts, edits, strict=True)
    }
