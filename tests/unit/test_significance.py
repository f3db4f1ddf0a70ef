"""Differences between two readers of the same items: intervals that cover, p-values that mean what they say."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from glyphrun.evaluation.metrics import count_errors, exact_match
from glyphrun.evaluation.significance import binomial_interval, mcnemar, paired_bootstrap


def two_readers(n: int, first: float, second: float, shared: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of two readers with some error rates, who err together on a share of the items that are hard for both."""
    rng = np.random.default_rng(seed)
    luck = rng.random(n)
    same = rng.random(n) < shared
    return luck < first, np.where(same, luck, rng.random(n)) < second


def test_the_difference_is_that_of_the_rates_and_has_a_sign():
    found = paired_bootstrap([0, 0, 1, 0], [1, 0, 1, 1])
    assert found.difference == pytest.approx(1 / 4 - 3 / 4)
    assert found.low <= found.difference <= found.high
    swapped = paired_bootstrap([1, 0, 1, 1], [0, 0, 1, 0])
    assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )
    assert swapped.p == found.p


def test_a_difference_in_cer_is_one_of_ratios_of_sums():
    errors = count_errors(["a" * 90, "b" * 10], ["a" * 90, "b" * 5])
    other = count_errors(["a" * 90, "b" * 10], ["a" * 81, "b" * 10])
    found = paired_bootstrap(errors.character_edits, other.character_edits, errors.characters)
    assert found.difference == pytest.approx(5 / 100 - 9 / 100)
    # Draws of the first alone, of the second alone, and of both: these three differences and no others.
    assert (found.low, found.high) == pytest.approx((-9 / 90, 5 / 10))


def test_readers_that_err_alike_do_not_differ_at_all():
    assert paired_bootstrap([0, 1, 1], [0, 1, 1]) == (0.0, 0.0, 0.0, 1.0)


def test_pairs_see_what_separate_intervals_do_not():
    one, other = two_readers(400, 0.20, 0.24, shared=1.0, seed=1)
    first = exact_match(count_errors(["1"] * 400, ["2" if wrong else "1" for wrong in one]))
    second = exact_match(count_errors(["1"] * 400, ["2" if wrong else "1" for wrong in other]))
    assert second.high > first.low, "the two intervals overlap"
    found = paired_bootstrap(one, other)
    assert found.high < 0 and found.p < 0.01


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_interval_covers_the_truth_about_19_times_in_20(shared):
    covered = 0
    for seed in range(200):
        one, other = two_readers(150, 0.2, 0.3, shared, seed)
        found = paired_bootstrap(one, other, resamples=400)
        covered += found.low <= -0.1 <= found.high
    assert 180 <= covered <= 199


def test_the_interval_of_a_ratio_covers_the_truth_too():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        characters = rng.integers(1, 12, 150)
        one, other = rng.binomial(characters, 0.1), rng.binomial(characters, 0.14)
        found = paired_bootstrap(one, other, characters, resamples=400)
        covered += found.low <= -0.04 <= found.high
    assert 180 <= covered <= 199


def test_equal_readers_are_called_different_about_once_in_20():
    called = sum(
        paired_bootstrap(*two_readers(150, 0.25, 0.25, 0.5, seed), resamples=400).p < 0.05 for seed in range(200)
    )
    assert 2 <= called <= 19


def test_p_and_interval_agree():
    for seed in range(40):
        found = paired_bootstrap(*two_readers(120, 0.2, 0.28, 0.5, seed), resamples=1000)
        if not 0.04 < found.p < 0.06:
            assert (found.p < 0.05) == (found.high < 0 or found.low > 0)


def test_the_bootstrap_follows_its_seed():
    one, other = two_readers(80, 0.2, 0.3, 0.5, seed=3)
    assert paired_bootstrap(one, other, seed=1) == paired_bootstrap(one, other, seed=1)
    assert paired_bootstrap(one, other, seed=1) != paired_bootstrap(one, other, seed=2)


@pytest.mark.parametrize(
    ("one", "other", "below", "said"),
    [
        ([0, 1], [0, 1], [1, 1, 1], "cannot be compared item by item"),
        ([], [], None, "without items"),
        ([1, 0], [0, 0], [0, 0], "no characters at all"),
    ],
)
def test_what_cannot_be_compared_is_refused(one, other, below, said):
    with pytest.raises(ValueError, match=said):
        paired_bootstrap(one, other, below)


def test_mcnemar_is_the_sign_test_of_the_items_that_only_one_reads_right():
    one = [True] * 50 + [True] * 9 + [False] * 2 + [False] * 20
    other = [True] * 50 + [False] * 9 + [True] * 2 + [False] * 20
    found = mcnemar(one, other)
    assert (found.only_one, found.only_other) == (9, 2)
    assert found.p == pytest.approx(2 * sum(comb(11, k) for k in (0, 1, 2)) / 2**11)
    assert mcnemar(other, one).p == pytest.approx(found.p)


def test_mcnemar_is_exact_by_enumeration():
    for apart in range(1, 9):
        for only_one in range(apart + 1):
            outcomes = [sum(sides) for sides in product((0, 1), repeat=apart)]
            far = abs(only_one - apart / 2)
            expected = np.mean([abs(outcome - apart / 2) >= far - 1e-9 for outcome in outcomes])
            one = [True] * only_one + [False] * (apart - only_one)
            assert mcnemar(one, [not right for right in one]).p == pytest.approx(expected)


def test_readers_that_are_right_on_the_same_items_do_not_differ():
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="2 readings cannot be compared item by item with 1"):
        mcnemar([True, False], [True])


def test_an_exact_interval_is_never_empty_and_stays_within_0_and_1():
    all_right = binomial_interval(20, 20)
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert all_right.low == pytest.approx(0.025 ** (1 / 20))
    with pytest.raises(ValueError, match="no items"):
        binomial_interval(0, 0)
