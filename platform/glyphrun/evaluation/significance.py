"""Whether a difference is more than chance: paired bootstrap and McNemar's test for two readers of the same items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest  # type: ignore[import-untyped]

from glyphrun.evaluation.metrics import RESAMPLES_AT_ONCE, Interval


class Difference(NamedTuple):
    """The error rate of one reader less that of the other, its 95 % confidence interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """How many items only the one reads right and only the other, and the two-sided p."""

    only_one: int
    only_other: int
    p: float


def paired_bootstrap(
    one: ArrayLike, other: ArrayLike, below: ArrayLike | None = None, *, seed: int = 0, resamples: int = 2000
) -> Difference:
    """How much more often one errs than the other on the same N items, which are drawn together (Koehn, W04-3250).

    one, other: errors of each item, (N,): 0 or 1 where a reading is right or wrong, or edits. below: what they are counted
    against, (N,): 1 each by default, which gives the difference in exact match, or the characters of the truths, which
    gives that of the corpus level CER. A negative difference favours the one. p is the largest at which a percentile
    interval of level 1 - p still holds 0, so that p < .05 where the 95 % interval does not. Raises ValueError for unequal
    lengths, no items, or nothing to count against.
    """
    gaps = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    counts = np.ones_like(gaps) if below is None else np.asarray(below, np.float64)
    if gaps.ndim != 1 or gaps.shape != counts.shape:
        raise ValueError(f"errors of shape {gaps.shape} cannot be compared item by item against {counts.shape}")
    if not counts.sum() > 0:
        raise ValueError("no difference can be measured without items, or between texts that have no characters at all")
    rng = np.random.default_rng(seed)
    both = np.stack([gaps, counts], axis=1)  # (N, 2)
    drawn = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn.append(rng.multinomial(len(gaps), np.full(len(gaps), 1 / len(gaps)), size=size) @ both)
    above, whole = np.concatenate(drawn).T
    values = above[whole > 0] / whole[whole > 0]
    low, high = np.percentile(values, [2.5, 97.5])
    tail = 1 + min((values <= 0).sum(), (values >= 0).sum())
    return Difference(
        float(gaps.sum() / counts.sum()), float(low), float(high), min(1.0, 2 * float(tail) / (len(values) + 1))
    )


def mcnemar(one_right: ArrayLike, other_right: ArrayLike) -> McNemar:
    """The exact test of whether two readers are right equally often, by the items that only one of them reads right.

    one_right, other_right: (N,) bool over the same items (McNemar, Psychometrika 1947). Raises ValueError if their numbers
    differ.
    """
    first, second = np.asarray(one_right, bool), np.asarray(other_right, bool)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} readings cannot be compared item by item with {len(second)}")
    only_one, only_other = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_one + only_other
    return McNemar(only_one, only_other, float(binomtest(only_one, apart).pvalue) if apart else 1.0)


def binomial_interval(successes: int, of: int) -> Interval:
    """A share with its exact 95 % confidence interval (Clopper and Pearson, Biometrika 1934). Raises ValueError for 0."""
    if of < 1:
        raise ValueError("a share of no items has no interval")
    ends = binomtest(successes, of).proportion_ci(0.95, "exact")
    return Interval(successes / of, float(ends.low), float(ends.high))


def gap_of_shares(one: int, of_one: int, other: int, of_other: int) -> Interval:
    """The share of one less that of the other, of items that are not the same, with its 95 % confidence interval.

    From the score intervals of both (Newcombe, Statistics in Medicine 1998, method 10). Raises ValueError for 0 items.
    """
    if of_one < 1 or of_other < 1:
        raise ValueError("a share of no items has no interval")
    first, second = one / of_one, other / of_other
    ours = binomtest(one, of_one).proportion_ci(0.95, "wilson")
    theirs = binomtest(other, of_other).proportion_ci(0.95, "wilson")
    gap = first - second
    return Interval(
        gap,
        float(gap - np.hypot(first - ours.low, theirs.high - second)),
        float(gap + np.hypot(ours.high - first, second - theirs.low)),
    )
