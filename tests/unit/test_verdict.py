"""When a challenger is given up: for what it does worse than its champion, and not for bad luck."""

from __future__ import annotations

import pytest

from glyphrun.prediction import Prediction
from glyphrun_serve.comparison import Comparison, Tally
from glyphrun_serve.verdict import Bounds, fault_of
from two_versions import seen


def test_percentiles_are_right_to_a_twentieth_and_add_up_over_processes() -> None:
    one, other, both = Tally(), Tally(), Tally()
    for ms in range(1, 1001):
        (one if ms % 2 else other).read(Prediction("7", 0.5, (), (), abstained=ms % 4 == 0), ms)
    both.add(one)
    both.add(other)
    assert both.percentile(50) == pytest.approx(500, rel=0.05) and both.percentile(95) == pytest.approx(950, rel=0.05)
    assert (both.answered, both.abstained, both.mean_confidence) == (1000, 250, 0.5)
    assert both.slower_than(950) == pytest.approx(50, abs=48)
    assert Tally().percentile(95) is None and Tally().mean_confidence is None


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        # Failures that are no luck end it at once, long before there are answers enough to speak of latency.
        (seen((27, 0), (0, 3)), "it failed on 3 of 3 items, the champion on 0 of 27 (last: RuntimeError: out of tune)"),
        (seen((900, 0), (90, 10)), "it failed on 10 of 100 items"),
        # One failure in a hundred may be luck, and a champion that fails as often is no better.
        (seen((900, 0), (99, 1)), None),
        (seen((500, 500), (50, 50)), None),
        (seen((0, 0), (0, 50)), None),
        # 50 answers of each: 150 ms are too many beside 20 ms, not beside 120 ms, and 90 ms are within the bound.
        (seen((50, 0), (50, 0), (20, 150)), "its 95th percentile is 15"),
        (seen((50, 0), (49, 0), (20, 150)), None),
        (seen((50, 0), (50, 0), (120, 150)), None),
        (seen((50, 0), (50, 0), (20, 90)), None),
        (seen((50, 0), (50, 0), (120, 200)), "and may be 18"),
    ],
)
def test_a_challenger_is_given_up_for_what_is_not_luck(counts: Comparison, words: str | None) -> None:
    fault = fault_of(counts, Bounds())
    assert fault == words if words is None else words in (fault or "")


def test_a_few_slow_answers_are_luck() -> None:
    counts = seen((1000, 0), (96, 0))
    for _ in range(4):
        counts.challenger.read(Prediction("7", 0.5, (), (), abstained=False), 900)
    assert fault_of(counts, Bounds()) is None
    for _ in range(12):
        counts.challenger.read(Prediction("7", 0.5, (), (), abstained=False), 900)
    assert "its 95th percentile is 9" in (fault_of(counts, Bounds()) or "")
