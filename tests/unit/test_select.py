"""The winner is the most accurate trial that is fast enough."""

import pytest

from glyphrun.sweeps.select import Measured, NoCandidate, pareto_front, select

TRIALS = [
    Measured("slow", 0.97, 50.0),
    Measured("good", 0.95, 10.0),
    Measured("twin", 0.95, 12.0),
    Measured("fast", 0.80, 2.0),
]


def test_the_most_accurate_within_the_budget_wins_and_a_tie_goes_to_the_faster():
    assert select(TRIALS, 20.0).winner == "good"
    assert select(TRIALS, 60.0).winner == "slow"
    assert select(TRIALS, 5.0).winner == "fast"
    assert "95.0%" in select(TRIALS, 20.0).reason and "3 of 4" in select(TRIALS, 20.0).reason


def test_a_budget_that_nothing_meets_names_the_fastest():
    with pytest.raises(NoCandidate, match=r"fast, takes 2\.0 ms"):
        select(TRIALS, 1.0)
    with pytest.raises(NoCandidate, match="no trial has a result"):
        select([], 1.0)


def test_the_front_holds_what_nothing_beats_in_both():
    assert pareto_front(TRIALS) == {"slow", "good", "fast"}
