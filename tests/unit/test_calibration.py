"""Calibration error, reliability, error against coverage and thresholds, by hand and on answers of known calibration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from glyphrun.decoding.vote import Hypothesis
from glyphrun.evaluation.abstention import answered_at, risk_coverage, threshold_for_precision
from glyphrun.evaluation.calibration import answers, expected_calibration_error, reliability
from glyphrun.prediction import Prediction


def drawn(temperature: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are calibrated once their log-odds are divided by the temperature, and what is right."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(2.0, 1.5, n)
    return 1 / (1 + np.exp(-honest * temperature)), rng.random(n) < 1 / (1 + np.exp(-honest))


def prediction(text: str, tokens: list[float], pieces: tuple[str, ...] = ()) -> Prediction:
    found = Hypothesis(text, sum(tokens), tuple(tokens), pieces)
    return Prediction(text, 0.0, (found,), (), False)


def test_the_error_is_the_one_counted_by_hand():
    confidences = [0.55, 0.65, 0.9, 1.0]
    correct = [True, False, True, True]
    # Two bins of two: |1.2 - 1| and |1.9 - 2|, over four items.
    mass = expected_calibration_error(confidences, correct, bins=2, by="mass")
    assert mass.value == pytest.approx((0.2 + 0.1) / 4)
    # Ten bins a tenth wide; 1 belongs to the last: |.55 - 1|, |.65 - 0|, |1.9 - 2|.
    width = expected_calibration_error(confidences, correct, bins=10, by="width")
    assert width.value == pytest.approx((0.45 + 0.65 + 0.1) / 4)


def test_equal_confidences_share_a_bin_whatever_their_order():
    rng = np.random.default_rng(0)
    confidences = np.array([0.5] * 30 + [0.9] * 50 + [1.0] * 20)
    correct = rng.random(100) < 0.6
    found = set()
    for _ in range(5):
        order = rng.permutation(100)
        found.add(round(expected_calibration_error(confidences[order], correct[order], resamples=2).value, 12))
    by_hand = sum(
        abs(float((confidences[here] - correct[here]).sum())) for here in (confidences == c for c in (0.5, 0.9, 1.0))
    )
    assert found == {round(by_hand / 100, 12)}
    assert [bin.n for bin in reliability(confidences, correct)] == [30, 50, 20]


def test_bins_of_equal_mass_are_of_equal_mass():
    confidences, correct = drawn(1.0, 600, seed=1)
    table = reliability(confidences, correct)
    assert [bin.n for bin in table] == [60] * 10
    assert [bin.confidence for bin in table] == sorted(bin.confidence for bin in table)
    gaps = sum(bin.n * abs(bin.confidence - bin.right.value) for bin in table) / 600
    assert expected_calibration_error(confidences, correct).value == pytest.approx(gaps)
    assert all(bin.right.low <= bin.right.value <= bin.right.high for bin in table)


def test_calibrated_confidences_differ_by_chance_and_overconfident_ones_by_more():
    honest = expected_calibration_error(*drawn(1.0, 800, seed=2))
    boastful = expected_calibration_error(*drawn(3.0, 800, seed=2))
    assert honest.value <= honest.chance < 0.045 and honest.low == 0.0
    assert boastful.value > 3 * boastful.chance and boastful.low > boastful.chance
    stated, correct = drawn(3.0, 200_000, seed=3)
    true = expected_calibration_error(stated, correct, resamples=2).value
    assert boastful.low < true < boastful.high


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.2, 2.0])
def test_the_interval_holds_the_true_error_about_19_times_in_20(temperature):
    stated, _ = drawn(temperature, 200_000, seed=0)
    honest = 1 / (1 + (1 / stated - 1) ** (1 / temperature))
    true = float(
        np.mean([abs((here[0] - here[1]).mean()) for here in np.array_split(np.sort([stated, honest]), 10, axis=1)])
    )
    held = 0
    for seed in range(1, 101):
        found = expected_calibration_error(*drawn(temperature, 500, seed=seed), resamples=200)
        held += found.low <= true <= found.high
    assert held >= 90


def test_intervals_follow_their_seed_and_no_items_are_refused():
    confidences, correct = drawn(2.0, 60, seed=5)
    assert expected_calibration_error(confidences, correct, seed=1) == expected_calibration_error(
        confidences, correct, seed=1
    )
    for measure in (expected_calibration_error, reliability, risk_coverage):
        with pytest.raises(ValueError, match="without answers"):
            measure([], [])
        with pytest.raises(ValueError, match="2 confidences do not belong to 1 answers"):
            measure([0.5, 0.5], [True])


def test_a_character_is_right_if_the_shortest_edit_keeps_it():
    found = answers(
        ["17", "305", "", "42"],
        [
            prediction("17", [-0.1, -0.2, -0.3]),
            prediction("35", [-0.4, -0.5, -0.6]),
            prediction("8", [-0.7, -0.8]),
            prediction("", [-0.9]),
        ],
    )
    assert found.correct.tolist() == [True, False, False, False]
    assert found.log_probs == pytest.approx([-0.6, -1.5, -1.5, -0.9])
    assert found.character_log_probs.tolist() == [-0.1, -0.2, -0.4, -0.5, -0.7]
    assert found.character_correct.tolist() == [True, True, True, True, False]


def test_a_subword_is_right_if_all_its_characters_are():
    found = answers(["cathode"], [prediction("cathede", [-0.1, -0.2, -0.3, -0.4], ("cat", "he", "de"))])
    assert found.character_correct.tolist() == [True, False, True]
    assert found.character_log_probs.tolist() == [-0.1, -0.2, -0.3]
    spaced = answers(["the sea"], [prediction("the see", [-0.1, -0.2, -0.3], (" the", " s", "ee"))])
    assert spaced.character_correct.tolist() == [True, True, False]


def test_the_area_under_error_and_coverage_is_the_one_counted_by_hand():
    found = risk_coverage([0.9, 0.8, 0.7, 0.6], [True, False, True, False])
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert found.best_area == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)


def test_equal_confidences_are_answered_together_and_weigh_as_their_mean_order():
    correct = [True, False, False, True]
    tied = risk_coverage([0.9, 0.5, 0.5, 0.5], correct)
    assert tied.coverage.tolist() == [0.25, 1.0]
    orders = [risk_coverage([0.9, *order], correct).area for order in permutations([0.5, 0.4, 0.3])]
    assert tied.area == pytest.approx(np.mean(orders))


def test_no_temperature_changes_error_against_coverage():
    confidences, correct = drawn(1.0, 300, seed=6)
    odds = confidences / (1 - confidences)
    changed = odds**0.3 / (1 + odds**0.3)
    one, other = risk_coverage(confidences, correct), risk_coverage(changed, correct)
    assert one.area == other.area and one.risk.tolist() == other.risk.tolist()
    assert one.best_area < one.area < 1 - correct.mean()


def test_a_threshold_answers_most_items_at_the_stated_precision():
    confidences = np.linspace(0.99, 0.01, 99)
    correct = ~np.isin(np.arange(99), [9, 30, 31, 32, 60])  # from the surest on
    # All 99 answers hold 5 errors, .949 are right; the first 30 hold 1, .967; the first 31 hold 2, .935.
    assert threshold_for_precision(confidences, correct, 0.94).threshold == 0.0
    found = threshold_for_precision(confidences, correct, 0.96)
    assert found.threshold == pytest.approx((0.70 + 0.69) / 2)
    assert found.answered is not None and found.answered.precision is not None
    assert (found.answered.n, found.answered.coverage) == (30, pytest.approx(30 / 99))
    assert found.answered.precision.value == pytest.approx(29 / 30)
    assert found.answered == answered_at(confidences, correct, found.threshold)


def test_the_precision_of_a_threshold_has_its_exact_interval():
    confidences = np.r_[np.full(100, 0.9), np.full(100, 0.2)]
    correct = np.r_[np.arange(100) >= 2, np.arange(100) >= 50]
    found = threshold_for_precision(confidences, correct, 0.98)
    assert found.threshold == pytest.approx(0.55)
    assert found.answered.coverage == 0.5
    # Clopper and Pearson's for 98 of 100.
    assert found.answered.precision.value == pytest.approx(0.98)
    assert (found.answered.precision.low, found.answered.precision.high) == pytest.approx((0.92962, 0.99757), abs=1e-5)


def test_a_precision_that_no_threshold_attains_is_said_to_be_out_of_reach():
    confidences, correct = np.linspace(0.01, 0.99, 200), np.arange(200) % 2 == 0
    found = threshold_for_precision(confidences, correct, 0.9)
    assert (found.threshold, found.answered) == (None, None)
    assert "no threshold attains a precision of 90.0%" in str(found.reason)
    few = threshold_for_precision([0.9] * 49, [True] * 49, 0.98)
    assert few.threshold is None and "it takes 50 until one may be wrong" in str(few.reason)
    assert threshold_for_precision([0.9] * 50, [True] * 50, 0.98).threshold == 0.0


def test_one_lucky_answer_attains_no_precision():
    confidences = np.r_[0.99, np.linspace(0.98, 0.5, 199)]
    correct = np.r_[True, np.arange(199) % 3 > 0]
    found = threshold_for_precision(confidences, correct, 0.95)
    assert found.threshold is None


def test_a_threshold_above_all_answers_leaves_none_and_no_precision():
    none = answered_at([0.4, 0.5], [True, True], 0.9)
    assert (none.n, none.coverage, none.precision) == (0, 0.0, None)


def test_equal_confidences_are_never_parted_by_a_threshold():
    confidences = np.r_[np.full(60, 0.9), np.full(60, 0.6)]
    correct = np.r_[np.full(60, True), np.arange(60) < 57]
    found = threshold_for_precision(confidences, correct, 0.98)
    assert found.threshold == pytest.approx(0.75) and found.answered.n == 60
