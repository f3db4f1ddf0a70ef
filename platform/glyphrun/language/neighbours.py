"""Entries within some edits of a reading, case apart, an edit being that of a whole grapheme cluster."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from glyphrun.graphemes import graphemes

# Private-use planes stand for clusters of several code points, so that a distance over code points counts clusters.
FIRST_CLUSTER, UNKNOWN_CLUSTER = 0xF0000, 0x10FFFF
REMEMBERED = 10_000  # readings


class Neighbours:
    """Entries by length, searched with bit-parallel edit distances (Hyyrö, 2003, as in rapidfuzz)."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._codes: dict[str, str] = {}
        self._entries: dict[str, list[tuple[str, ...]]] = {}
        for entry in sorted(entries):
            clusters = tuple(graphemes(entry))
            self._entries.setdefault(self._coded(clusters, new=True), []).append(clusters)
        self._by_length: dict[int, list[str]] = {}
        for code in self._entries:
            self._by_length.setdefault(len(code), []).append(code)
        # The hypotheses of an n-best list share most of their words.
        self.near = lru_cache(maxsize=REMEMBERED)(self._near)

    def _near(self, clusters: tuple[str, ...], edits: int) -> list[tuple[tuple[str, ...], int]]:
        """Entries within so many edits of a reading, all in grapheme clusters, with their distance; in a fixed order."""
        code = self._coded(clusters, new=False)
        return [
            (entry, int(distance))
            for length in range(len(code) - edits, len(code) + edits + 1)
            for found, distance, _ in process.extract(
                code, self._by_length.get(length, ()), scorer=Levenshtein.distance, score_cutoff=edits, limit=None
            )
            for entry in self._entries[found]
        ]

    def _coded(self, clusters: tuple[str, ...], *, new: bool) -> str:
        """One code point a cluster, the same for both cases."""
        return "".join(self._code(cluster.lower(), new) for cluster in clusters)

    def _code(self, cluster: str, new: bool) -> str:
        if len(cluster) == 1:
            return cluster
        if new and cluster not in self._codes:
            self._codes[cluster] = chr(FIRST_CLUSTER + len(self._codes))
        return self._codes.get(cluster, chr(UNKNOWN_CLUSTER))
