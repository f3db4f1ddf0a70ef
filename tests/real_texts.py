"""Real French lines and Odia words, and what a recognizer with known habits makes of French."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

# What a hand may look like: each letter with another that it is taken for.
HAND = {"u": "n", "n": "u", "é": "e", "e": "c", "a": "o", "o": "a", "l": "t", "t": "l", "i": "r", "s": "r", "m": "n"}


def french(shared: Path, split: str) -> list[str]:
    """The labels of the handwriting pack."""
    with zipfile.ZipFile(shared / "data" / "handwriting_fr.zip") as pack:
        rows = [row.split("\t") for row in pack.read("labels.tsv").decode("utf-8").splitlines()[1:]]
    return [row[1] for row in rows if row[2] == split]


def odia(shared: Path) -> list[str]:
    """The word list of the Odia pack, the most frequent first, as it is written there."""
    with zipfile.ZipFile(shared / "data" / "odia_text_fonts.zip") as pack:
        return pack.read("ori.wordlist.txt").decode("utf-8").split()


def misread(text: str, rng: np.random.Generator) -> str:
    """The text as a recognizer of HAND reads it: one confusable letter in eight is confused, a few are lost or doubled."""
    read = ""
    for letter in text:
        chance = rng.random()
        if letter in HAND and chance < 0.12:
            read += HAND[letter]
        elif letter in HAND and chance < 0.135:
            read += letter * int(rng.integers(2)) * 2
        else:
            read += letter
    return read
