"""Grapheme clusters: what a reader calls one character, however many code points it has."""

from __future__ import annotations

import regex

_CLUSTER = regex.compile(r"\X")


def graphemes(text: str) -> list[str]:
    """The extended grapheme clusters of a text in order; joined they are the text (Unicode Standard Annex 29).

    A consonant, the virama and the consonant it joins are one cluster from Unicode 15.1 on, so an Odia conjunct stays
    whole with its vowel sign. Texts that only look alike have equal clusters once both are in the one normal form.
    """
    return _CLUSTER.findall(text)
