"""Exact match, CER and WER, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import editdistance
import numpy as np

from glyphrun.graphemes import graphemes
from glyphrun.text import normalise

Unit = Literal["characters", "graphemes"]

RESAMPLES_AT_ONCE = 100  # bounds the memory of the bootstrap to 800 bytes an item


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ErrorCounts:
    """For each of N items: whether the reading is exact, and edits and lengths in characters and in words, (N,) each."""

    exact: np.ndarray
    character_edits: np.ndarray
    characters: np.ndarray
    word_edits: np.ndarray
    words: np.ndarray


def count_errors(truths: Sequence[str], readings: Sequence[str], *, unit: Unit = "characters") -> ErrorCounts:
    """Compare readings with truths, both in the one normal form. Raises ValueError if their numbers differ.

    unit: what counts as one character, a code point or a whole grapheme cluster such as an Odia conjunct.
    """
    if len(truths) != len(readings):
        raise ValueError(f"{len(truths)} truths cannot be compared with {len(readings)} readings")
    pairs = [(normalise(truth), normalise(reading)) for truth, reading in zip(truths, readings, strict=True)]
    split: Callable[[str], Sequence[str]] = graphemes if unit == "graphemes" else str
    characters = [(split(truth), split(reading)) for truth, reading in pairs]
    words = [(truth.split(), reading.split()) for truth, reading in pairs]
    return ErrorCounts(
        exact=np.array([truth == reading for truth, reading in pairs], bool),
        character_edits=np.array([editdistance.eval(reading, truth) for truth, reading in characters], np.int64),
        characters=np.array([len(truth) for truth, _ in characters], np.int64),
        word_edits=np.array([editdistance.eval(reading, truth) for truth, reading in words], np.int64),
        words=np.array([len(truth) for truth, _ in words], np.int64),
    )


def exact_match(errors: ErrorCounts, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The share of items that are read without any error."""
    return _ratio(errors.exact, np.ones_like(errors.characters), resamples, seed)


def character_error_rate(errors: ErrorCounts, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Corpus level: Σ edits / Σ characters of the truths; 0 if there are neither, infinite without characters."""
    return _ratio(errors.character_edits, errors.characters, resamples, seed)


def word_error_rate(errors: ErrorCounts, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Corpus level: Σ word edits / Σ words of the truths."""
    return _ratio(errors.word_edits, errors.words, resamples, seed)


def _ratio(above: np.ndarray, below: np.ndarray, resamples: int, seed: int) -> Interval:
    """Σ above / Σ below with the percentile bootstrap over items (Efron 1979)."""
    rng = np.random.default_rng(seed)
    count = len(above)
    both = np.stack([above, below], axis=1)  # (N, 2)
    sums = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)  # (size, N): how often each is drawn
        sums.append(drawn @ both)
    values = _divide(*np.concatenate(sums).T)
    value = float(_divide(above.sum(), below.sum()))
    if not np.isfinite(value):
        return Interval(value, value, value)
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / below)
