"""The winner is the most accurate trial that is fast enough."""

import pytest

from glyphrun.evaluation.pareto import pareto_front
from glyphrun.sweeps.select import Measured, NoCandidate, select

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
    assert pareto_front({one.trial: (one.exact, -one.latency_ms) for one in TRIALS}) == {"slow", "good", "fast"}
    assert pareto_front({"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0), "c": (1.0, 1.0, 3.0)}) == {"a", "b"}


def test_the_lowest_error_rate_wins_where_that_is_the_objective():
    trials = [Measured("exact", 0.95, 10.0, cer=0.05), Measured("close", 0.90, 10.0, cer=0.03)]
    assert select(trials, 20.0).winner == "exact"
    chosen = select(trials, 20.0, "cer")
    assert chosen.winner == "close" and "CER of 3.00%" in chosen.reason and "lowest character error" in chosen.rule


def test_a_configuration_is_judged_by_the_mean_of_its_seeds_and_not_by_its_luckiest():
    trials = [
        Measured("lucky", 0.96, 10.0, configuration=0),
        Measured("unlucky", 0.80, 10.0, configuration=0),
        Measured("steady", 0.93, 10.0, configuration=1),
        Measured("steadier", 0.94, 10.0, configuration=1),
    ]
    chosen = select(trials, 20.0)
    assert chosen.winner == "steadier"
    assert "93.5% as the mean of 2 seeds" in chosen.reason and "mean of their trials" in chosen.rule
