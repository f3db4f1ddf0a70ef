"""Edit distance by its definition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


@cache
def levenshtein(one: Sequence[str], two: Sequence[str]) -> int:
    if not one or not two:
        return len(one) + len(two)
    return min(
        levenshtein(one[1:], two) + 1,
        levenshtein(one, two[1:]) + 1,
        levenshtein(one[1:], two[1:]) + (one[0] != two[0]),
    )
