"""How well confidences agree with what is right: temperature, reliability and expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import Levenshtein
from scipy.optimize import brentq  # type: ignore[import-untyped]

from glyphrun.decoding.confidence import log_odds
from glyphrun.evaluation.metrics import RESAMPLES_AT_ONCE, Interval, count_errors
from glyphrun.evaluation.significance import binomial_interval
from glyphrun.prediction import Prediction
from glyphrun.text import normalise

Bins = Literal["mass", "width"]
COLDEST, HOTTEST = 0.1, 100.0  # between these a temperature is sought
IMPOSSIBLE = 1e4  # log-odds against what has no probability at all
FEWEST = 10  # right and wrong answers each that a temperature can rest on


@dataclass(frozen=True)
class Answers:
    """Natural log-probabilities and correctness of N strings, and of the M characters that they are made of.

    log_probs, correct: (N,) float64 and bool; character_log_probs, character_correct: (M,).
    """

    log_probs: np.ndarray
    correct: np.ndarray
    character_log_probs: np.ndarray
    character_correct: np.ndarray


@dataclass(frozen=True)
class Temperature:
    """A temperature and, where it could not be fitted, the reason in a sentence."""

    value: float
    reason: str | None = None


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error with the ends of its 95 % confidence interval.

    chance: what perfectly calibrated confidences exceed once in 40 times on as many items.
    """

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class ReliabilityBin:
    """n items of similar confidence: their mean confidence, and the share of them that is right with its interval."""

    n: int
    confidence: float
    right: Interval


def answers(truths: Sequence[str], predictions: Sequence[Prediction]) -> Answers:
    """What there is to calibrate: the best readings of a split; a string is right if it is exact.

    A character is right if a shortest edit from reading to truth keeps it; a subword if it keeps all its characters.
    """
    best = [prediction.n_best[0] for prediction in predictions]
    characters = [
        (log_prob, right)
        for truth, reading in zip(truths, best, strict=True)
        for log_prob, right in zip(
            reading.token_log_probs, _right_pieces(truth, reading.pieces or tuple(reading.text)), strict=False
        )  # the end has a log-probability and no piece
    ]
    return Answers(
        log_probs=np.array([reading.log_prob for reading in best], np.float64),
        correct=count_errors(truths, [prediction.text for prediction in predictions]).exact,
        character_log_probs=np.array([log_prob for log_prob, _ in characters], np.float64),
        character_correct=np.array([right for _, right in characters], bool),
    )


def fit_temperature(log_probs: ArrayLike, correct: ArrayLike) -> Temperature:
    """The temperature under which the answers of a validation split are likeliest (arXiv 1706.04599).

    log_probs: natural logarithms of confidences as they come, (N,). correct: (N,) bool. The likelihood is that of a
    logistic regression on the log-odds without intercept, which has one maximum. Too few answers, or answers that
    confidence does not tell apart, give 1 and a reason.
    """
    odds, right = np.maximum(log_odds(log_probs), -IMPOSSIBLE), np.asarray(correct, bool)
    if len(odds) != len(right):
        raise ValueError(f"{len(odds)} confidences do not belong to {len(right)} answers")
    if min(right.sum(), (~right).sum()) < FEWEST:
        return Temperature(
            1.0,
            f"a temperature needs at least {FEWEST} right and {FEWEST} wrong answers, and there are {right.sum()} right "
            f"and {(~right).sum()} wrong",
        )

    def slope(cold: float) -> float:
        """The derivative of the negative log-likelihood by 1 / temperature; it grows."""
        return float((odds * (np.exp(-np.logaddexp(0.0, -cold * odds)) - right)).sum())

    if slope(1 / HOTTEST) >= 0:
        return Temperature(1.0, "confidence does not tell right from wrong answers, so no temperature calibrates it")
    if slope(1 / COLDEST) <= 0:
        return Temperature(
            1.0,
            "all answers above one half are right and the others wrong, or nearly so: any sharpening is likelier still",
        )
    return Temperature(1 / float(brentq(slope, 1 / HOTTEST, 1 / COLDEST)))


def expected_calibration_error(
    confidences: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = 10,
    by: Bins = "mass",
    resamples: int = 2000,
    seed: int = 0,
) -> CalibrationError:
    """Mean distance between confidence and share of right answers over bins, weighted by their numbers of items.

    by: bins of equal mass (arXiv 1904.01685), or of equal width (arXiv 1706.04599); equal confidences share a bin. Raises
    ValueError without items.

    Noise alone puts the error of perfectly calibrated confidences above 0. Where the error is within theirs (Bröcker and
    Smith, Weather and Forecasting 2007) the interval begins at 0; elsewhere it is the percentile bootstrap's over items,
    bins kept, with its low end moved down by twice what resampling adds on average: the value holds that excess once,
    its resamples twice.
    """
    stated, right = _checked(confidences, correct)
    places = _bins(stated, bins, by)
    inside = np.zeros((len(stated), bins))
    inside[np.arange(len(stated)), places] = 1.0  # (N, bins)
    rng = np.random.default_rng(seed)
    drawn, chance = [], []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        counts = rng.multinomial(len(stated), np.full(len(stated), 1 / len(stated)), size=size)  # (size, N)
        drawn.append(_error((counts * (stated - right)) @ inside, len(stated)))
        chance.append(_error((stated - (rng.random((size, len(stated))) < stated)) @ inside, len(stated)))
    value = float(_error((stated - right) @ inside, len(stated)))
    resampled = np.concatenate(drawn)
    low, high = np.percentile(resampled, [2.5, 97.5])
    low -= 2 * (resampled.mean() - value)
    by_chance = float(np.percentile(np.concatenate(chance), 97.5))
    return CalibrationError(
        value, 0.0 if value <= by_chance else min(max(float(low), 0.0), value), max(float(high), value), by_chance
    )


def reliability(
    confidences: ArrayLike, correct: ArrayLike, *, bins: int = 10, by: Bins = "mass"
) -> list[ReliabilityBin]:
    """The bins of the expected calibration error that hold items, by rising confidence. Raises ValueError without items."""
    stated, right = _checked(confidences, correct)
    places = _bins(stated, bins, by)
    return [
        ReliabilityBin(
            n=int(here.sum()),
            confidence=float(stated[here].mean()),
            right=binomial_interval(int(right[here].sum()), int(here.sum())),
        )
        for place in np.unique(places)
        for here in [places == place]
    ]


def _right_pieces(truth: str, pieces: Sequence[str]) -> list[bool]:
    said = "".join(pieces)
    lead = len(said) - len(said.lstrip())  # a text's first subword may begin with a space that no text has
    kept = np.arange(len(said)) < lead
    for step in Levenshtein.opcodes(said[lead:], normalise(truth)):
        if step.tag == "equal":
            kept[lead + step.src_start : lead + step.src_end] = True
    ends = np.cumsum([len(piece) for piece in pieces], dtype=int)
    return [bool(kept[end - len(piece) : end].all()) for end, piece in zip(ends, pieces, strict=True)]


def _checked(confidences: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    stated, right = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if len(stated) != len(right):
        raise ValueError(f"{len(stated)} confidences do not belong to {len(right)} answers")
    if not len(stated):
        raise ValueError("calibration cannot be measured without answers")
    return stated, right


def _bins(confidences: np.ndarray, bins: int, by: Bins) -> np.ndarray:
    """The bin of each item, (N,) long; by mass, equal confidences go where the middle of them would."""
    if by == "width":
        return np.minimum((confidences * bins).astype(int), bins - 1)
    _, group, sizes = np.unique(confidences, return_inverse=True, return_counts=True)
    middles = (np.cumsum(sizes) - sizes / 2) / len(confidences)
    return (middles * bins).astype(int)[group]


def _error(gaps: np.ndarray, items: int) -> np.ndarray:
    """gaps: summed confidences less right answers, (…, bins)."""
    return np.abs(gaps).sum(-1) / items
