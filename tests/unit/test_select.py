"""The winner is the most accurate trial that is fast enough."""

import numpy as np
import pytest

from glyphrun.evaluation.pareto import pareto_front
from glyphrun.sweeps.policies import Best, Budget, Cheapest
from glyphrun.sweeps.select import Measured, NoCandidate, front_of, select

TRIALS = [
    Measured("slow", 0.97, 50.0),
    Measured("good", 0.95, 10.0),
    Measured("twin", 0.95, 12.0),
    Measured("fast", 0.80, 2.0),
]


def test_the_most_accurate_within_the_budget_wins_and_a_tie_goes_to_the_faster():
    assert select(TRIALS, Budget(latency_ms=20.0)).winner == "good"
    assert select(TRIALS, Budget(latency_ms=60.0)).winner == "slow"
    assert select(TRIALS, Budget(latency_ms=5.0)).winner == "fast"
    assert (
        "95.0%" in select(TRIALS, Budget(latency_ms=20.0)).reason
        and "3 of 4" in select(TRIALS, Budget(latency_ms=20.0)).reason
    )


def test_a_budget_that_nothing_meets_names_the_fastest():
    with pytest.raises(NoCandidate, match=r"fast, takes 2\.0 ms"):
        select(TRIALS, Budget(latency_ms=1.0))
    with pytest.raises(NoCandidate, match="no trial has a result"):
        select([], Budget(latency_ms=1.0))


def test_the_front_holds_what_nothing_beats_in_both():
    assert pareto_front({one.name: (one.exact, -one.latency_ms) for one in TRIALS}) == {"slow", "good", "fast"}
    assert pareto_front({"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0), "c": (1.0, 1.0, 3.0)}) == {"a", "b"}


def test_the_lowest_error_rate_wins_where_that_is_the_objective():
    trials = [Measured("exact", 0.95, 10.0, cer=0.05), Measured("close", 0.90, 10.0, cer=0.03)]
    assert select(trials, Budget(latency_ms=20.0)).winner == "exact"
    chosen = select(trials, Budget(latency_ms=20.0), "cer")
    assert chosen.winner == "close" and "CER of 3.00%" in chosen.reason and "lowest character error" in chosen.rule


def test_a_configuration_is_judged_by_the_mean_of_its_seeds_and_not_by_its_luckiest():
    trials = [
        Measured("lucky", 0.96, 10.0, configuration=0),
        Measured("unlucky", 0.80, 10.0, configuration=0),
        Measured("steady", 0.93, 10.0, configuration=1),
        Measured("steadier", 0.94, 10.0, configuration=1),
    ]
    chosen = select(trials, Budget(latency_ms=20.0))
    assert chosen.winner == "steadier"
    assert "93.5% as the mean of 2 seeds" in chosen.reason and "mean of their trials" in chosen.rule


def test_the_front_keeps_equals_drops_what_is_beaten_in_one_measure_alone_and_leaves_out_what_was_not_measured():
    points = [
        Measured("best", 0.95, 20.0, memory_mib=50.0),
        Measured("twin", 0.95, 20.0, memory_mib=50.0),
        Measured("same but larger", 0.95, 20.0, memory_mib=51.0),
        Measured("small", 0.90, 20.0, memory_mib=9.0),
        Measured("unmeasured", 0.99, 1.0, memory_mib=None),
        Measured("not a number", 0.99, float("nan"), memory_mib=1.0),
    ]
    assert front_of(points, ["exact", "ms", "memory"]) == {"best", "twin", "small"}
    # By accuracy and latency alone there is one best, and its equals in both stay beside it.
    assert front_of(points[:4], ["exact", "ms"]) == {"best", "twin", "same but larger"}
    assert front_of([Measured("blank", 0.9, 1.0, cer=None)], ["cer", "ms"]) == set()


def test_the_cheapest_within_a_tolerance_of_the_best_is_taken_by_what_the_rule_names():
    points = [
        Measured("slow", 0.97, 50.0, memory_mib=40.0),
        Measured("good", 0.96, 10.0, memory_mib=30.0),
        Measured("small", 0.96, 12.0, memory_mib=5.0),
        Measured("poor", 0.95, 1.0, memory_mib=1.0),
    ]
    wide = Budget(latency_ms=60)
    assert select(points, wide, rule=Cheapest(kind="cheapest")).winner == "good"
    assert select(points, wide, rule=Cheapest(kind="cheapest", by="memory")).winner == "small"
    assert select(points, wide, rule=Cheapest(kind="cheapest", tolerance=0.02)).winner == "poor"
    assert select(points, wide, rule=Cheapest(kind="cheapest", tolerance=0)).winner == "slow"
    # The best is that of what meets the budget: the tolerance counts from there.
    chosen = select(points, Budget(latency_ms=20), rule=Cheapest(kind="cheapest"))
    assert chosen.winner == "poor"
    assert "lowest median latency of the 3 within 1 point of the best" in chosen.reason
    assert "the best, good, reads 96.0% of val exactly at 10.0 ms" in chosen.reason
    assert "meets the budget and that come within 1 point of the highest exact match on val among them" in chosen.rule


def test_a_tolerance_is_not_missed_by_a_rounding():
    best, quick = 301 / 600, 295 / 600  # six of 600 items are one point
    assert quick < best - 0.01
    points = [Measured("best", best, 9.0), Measured("quick", quick, 1.0)]
    assert select(points, Budget(), rule=Cheapest(kind="cheapest", tolerance=0.01)).winner == "quick"


def test_of_error_rates_a_tolerance_is_above_the_lowest():
    points = [
        Measured("close", 0.5, 9.0, cer=0.030),
        Measured("quick", 0.4, 1.0, cer=0.036),
        Measured("far", 0.9, 1.0, cer=0.05),
    ]
    assert select(points, Budget(), "cer", Cheapest(kind="cheapest")).winner == "quick"
    assert select(points, Budget(), "cer", Cheapest(kind="cheapest", tolerance=0.005)).winner == "close"


def test_every_limit_of_the_budget_counts_and_what_is_not_known_meets_none():
    points = [
        Measured("large", 0.97, 5.0, memory_mib=600.0, cost=0.2),
        Measured("dear", 0.96, 9.0, memory_mib=50.0, cost=1.2),
        Measured("unknown", 0.95, 5.0, cost=0.2),
        Measured("fine", 0.90, 5.0, memory_mib=50.0, cost=0.2),
    ]
    budget = Budget(latency_ms=20, memory_mib=500, cost_per_million=1, price_per_hour=0.35)
    chosen = select(points, budget)
    assert chosen.winner == "fine"
    assert "1 of 4 measured trials meet the budget of 20 ms, 500 MiB and 1 a million items" in chosen.reason
    assert "whose median latency, memory and cost of a million items meet the budget" in chosen.rule
    with pytest.raises(NoCandidate, match=r"the fastest, large, takes 5\.0 ms and the smallest, dear, takes 50 MiB"):
        select(points, Budget(latency_ms=20, memory_mib=5))


def test_whatever_is_picked_lies_on_the_front_of_what_meets_the_budget():
    """Few values make ties in every measure common."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        points = [
            Measured(f"{number}", *map(float, rng.integers(1, 4, 2)), memory_mib=float(rng.integers(1, 4)), cer=0.0)
            for number in range(8)
        ]
        budget = Budget(latency_ms=2, memory_mib=2)
        within = [one for one in points if not one.over(budget)]
        if not within:
            continue
        front = front_of(points, ["exact", "ms", "memory"])
        for rule in (Best(), Cheapest(kind="cheapest", tolerance=0.5), Cheapest(kind="cheapest", by="memory")):
            assert select(points, budget, rule=rule).winner in front & {one.name for one in within}
