"""What abstaining buys: error against coverage, and the confidence from which answers reach a stated precision."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import ArrayLike

from glyphrun.evaluation.metrics import Interval
from glyphrun.evaluation.significance import binomial_interval


@dataclass(frozen=True)
class RiskCoverage:
    """Share of items answered and share of those answers that is wrong, (K,) each, one a distinct confidence.

    area: the mean risk over all coverages (AURC, arXiv 1805.08206), the lower the better; it is at best that of an order
    in which every wrong answer comes last, and the error rate in an order by chance.
    """

    coverage: np.ndarray
    risk: np.ndarray
    area: float
    best_area: float


@dataclass(frozen=True)
class Answered:
    """What is left of a split's answers when those under a threshold abstain; no precision where all do."""

    n: int
    coverage: float
    precision: Interval | None


@dataclass(frozen=True)
class Threshold:
    """The confidence under which answers abstain and what that gives; None with a reason where nothing attains it."""

    threshold: float | None
    answered: Answered | None
    reason: str | None = None


def risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Error of the surest answers, for every number of them. Equal confidences are answered together.

    Raises ValueError without items.
    """
    _, sizes, wrong = _surest_first(confidences, correct)
    answered, errors = sizes.cumsum(), wrong.cumsum()
    # Within equal confidences every order is as likely: errors come evenly.
    evenly = np.repeat(wrong / sizes, sizes).cumsum()
    taken = np.arange(1, answered[-1] + 1)
    late = np.maximum(taken - (answered[-1] - errors[-1]), 0)
    return RiskCoverage(
        coverage=answered / answered[-1],
        risk=errors / answered,
        area=float((evenly / taken).mean()),
        best_area=float((late / taken).mean()),
    )


def threshold_for_precision(confidences: ArrayLike, correct: ArrayLike, precision: float) -> Threshold:
    """The threshold that answers most items while at least ``precision`` of the answers are right, 0 < precision < 1.

    It rests on at least 1 / (1 - precision) answers: one error among fewer would already miss the precision. It was
    chosen with these items in sight, so other items tell what it attains.
    """
    stated, sizes, wrong = _surest_first(confidences, correct)
    answered, errors = sizes.cumsum(), wrong.cumsum()
    fewest = ceil(1 / (1 - precision) - 1e-9)
    if answered[-1] < fewest:
        return Threshold(
            None,
            None,
            f"{answered[-1]} answers are too few for a precision of {precision:.1%}: it takes {fewest} until one may be "
            "wrong",
        )
    shares = 1 - errors / answered
    enough = answered >= fewest
    attained = np.flatnonzero(enough & (shares >= precision - 1e-12))
    if not len(attained):
        best = int(np.argmax(np.where(enough, shares, -1.0)))
        return Threshold(
            None,
            None,
            f"no threshold attains a precision of {precision:.1%}: the best leaves {answered[best]} of {answered[-1]} "
            f"answers, of which {shares[best]:.1%} are right",
        )
    last = int(attained[-1])
    # Half-way to the next confidence, so that rounding on another machine moves no answer across.
    threshold = 0.0 if last == len(stated) - 1 else float(stated[last] + stated[last + 1]) / 2
    return Threshold(threshold, answered_at(confidences, correct, threshold))


def answered_at(confidences: ArrayLike, correct: ArrayLike, threshold: float) -> Answered:
    """The answers at or above a threshold: how many, their share of all, and the share of them that is right."""
    kept = np.asarray(confidences, np.float64) >= threshold
    right = np.asarray(correct, bool)[kept]
    return Answered(
        n=len(right),
        coverage=float(kept.mean()),
        precision=binomial_interval(int(right.sum()), len(right)) if len(right) else None,
    )


def _surest_first(confidences: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences from the highest on, with how many items have each and how many of them are wrong, (K,)."""
    stated, right = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if len(stated) != len(right):
        raise ValueError(f"{len(stated)} confidences do not belong to {len(right)} answers")
    if not len(stated):
        raise ValueError("error against coverage cannot be measured without answers")
    values, group = np.unique(-stated, return_inverse=True)
    return -values, np.bincount(group), np.bincount(group, weights=~right).astype(int)
