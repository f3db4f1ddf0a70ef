from __future__ import annotations

from math import inf

import numpy as np
import pytest

from glyphrun.evaluation.evaluate import score
from glyphrun.evaluation.metrics import character_error_rate, count_errors, exact_match, word_error_rate


def test_rates_are_those_counted_by_hand():
    truths = ["kitten sits", "42", "abc"]
    readings = ["sitting sits", "4", "abc"]
    errors = count_errors(truths, readings)
    assert errors.character_edits.tolist() == [3, 1, 0]
    assert errors.characters.tolist() == [11, 2, 3]
    assert errors.word_edits.tolist() == [1, 1, 0]
    assert character_error_rate(errors).value == pytest.approx(4 / 16)
    assert word_error_rate(errors).value == pytest.approx(2 / 4)
    assert exact_match(errors).value == pytest.approx(1 / 3)


def test_rates_are_of_the_corpus_and_not_means_over_items():
    errors = count_errors(["a" * 99, "b"], ["a" * 99, "c"])
    assert character_error_rate(errors).value == pytest.approx(0.01)


def test_a_reading_where_nothing_is_readable_costs_its_characters():
    errors = count_errors(["", "12"], ["7", "12"])
    assert character_error_rate(errors).value == pytest.approx(1 / 2)
    assert exact_match(errors).value == 0.5
    assert character_error_rate(count_errors([""], [""])).value == 0


def test_a_split_without_any_character_has_an_infinite_rate_as_soon_as_one_is_read():
    rate = character_error_rate(count_errors(["", "", ""], ["", "7", ""]))
    assert (rate.value, rate.high) == (inf, inf)


def test_words_are_counted_between_any_white_space():
    errors = count_errors(["one  two\tthree"], ["one two three"])
    assert errors.word_edits.tolist() == [0]
    assert errors.words.tolist() == [3]
    assert errors.character_edits.tolist() == [2]


def test_texts_that_differ_in_their_code_points_alone_are_equal():
    errors = count_errors(["\u0b5c", "é"], ["\u0b21\u0b3c", "e\u0301"])
    assert errors.exact.tolist() == [True, True]
    assert errors.characters.tolist() == [2, 1]


def test_unequal_numbers_of_truths_and_readings_are_refused():
    with pytest.raises(ValueError, match="2 truths cannot be compared with 1 readings"):
        count_errors(["1", "2"], ["1"])


def test_an_interval_holds_its_value_and_shrinks_with_the_root_of_n():
    rng = np.random.default_rng(0)
    widths = {}
    for n in (100, 1600):
        readings = ["1" if right else "2" for right in rng.random(n) < 0.8]
        errors = count_errors(["1"] * n, readings)
        for interval in (exact_match(errors), character_error_rate(errors), word_error_rate(errors)):
            assert interval.low < interval.value < interval.high
        widths[n] = exact_match(errors).high - exact_match(errors).low
    assert widths[100] == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 100) ** 0.5, rel=0.25)
    assert widths[100] / widths[1600] == pytest.approx(4, rel=0.25)


def test_an_interval_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        errors = count_errors(["1"] * 150, ["1" if right else "2" for right in rng.random(150) < 0.7])
        interval = exact_match(errors, resamples=400)
        covered += interval.low <= 0.7 <= interval.high
    assert 180 <= covered <= 199


def test_intervals_follow_their_seed():
    errors = count_errors(["1"] * 60, ["1"] * 41 + ["2"] * 19)
    assert exact_match(errors, seed=3) == exact_match(errors, seed=3)
    assert exact_match(errors, resamples=100, seed=3) != exact_match(errors, resamples=100, seed=4)


def test_a_perfect_reader_has_no_doubt_about_itself():
    interval = exact_match(count_errors(["1", "2"], ["1", "2"]))
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_a_conjunct_read_wrong_is_one_error_where_clusters_count():
    # k-ssa-ma read as k-ta-ma: one of five code points, one of two clusters.
    by_character, by_cluster = (score(["କ୍ଷମା"], ["କ୍ତମା"], 1.0, unit=unit) for unit in ("characters", "graphemes"))
    assert by_character.cer.value == pytest.approx(1 / 5) and list(by_character.by_length) == ["5"]
    assert by_cluster.cer.value == pytest.approx(1 / 2) and list(by_cluster.by_length) == ["2"]


def test_scores_say_how_each_length_fares_and_what_is_confused():
    truths = ["", "7", "7", "23", "23", "23"]
    readings = ["", "1", "1", "23", "28", "23"]
    scores = score(truths, readings, seconds=3.0)
    assert scores.by_length == {
        "0": {"n": 1, "exact": 1.0},
        "1": {"n": 2, "exact": 0.0, "cer": 1.0},
        "2": {"n": 3, "exact": pytest.approx(2 / 3), "cer": pytest.approx(1 / 6)},
    }
    assert scores.confusions == (
        {"truth": "7", "reading": "1", "n": 2},
        {"truth": "23", "reading": "28", "n": 1},
    )
    assert scores.by_training == {}
    assert score(truths, readings, seconds=3.0, trained_texts={"", "7"}).by_training == {
        "seen": {"n": 3, "exact": pytest.approx(1 / 3), "cer": 1.0},
        "unseen": {"n": 3, "exact": pytest.approx(2 / 3), "cer": pytest.approx(1 / 6)},
    }
    assert (scores.n, scores.ms_per_sample, scores.samples_per_s) == (6, 500.0, 2.0)
    flat = scores.to_json()
    assert flat["exact"] == 0.5
    assert flat["exact_ci"][0] < 0.5 < flat["exact_ci"][1]
    assert flat["cer"] == pytest.approx(3 / 8)
