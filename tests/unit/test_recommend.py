"""Which setting is recommended for which need, and why."""

from __future__ import annotations

from typing import Any

import pytest

from glyphrun.evaluation.recommend import recommend


def row(
    name: str, cer: float | None, ms: float, *, exact: float = 0.5, ci: tuple[float, float] = (0, 0)
) -> dict[str, Any]:
    measured = {"difference": sum(ci) / 2, "ci": list(ci), "p": 1.0}
    against = {"exact": measured, "cer": None if cer is None else measured}
    return {"name": name, "cer": cer, "exact": exact, "ms": ms, "against_greedy": against}


ROWS = [
    row("greedy", 0.10, 2.0),
    row("beam", 0.085, 6.0, ci=(-0.02, -0.01)),
    row("vote", 0.08, 18.0, ci=(-0.03, 0.01)),
]


def test_each_need_has_its_row():
    assert [(one.need, one.name) for one in recommend(ROWS, 7.0)] == [
        ("most accurate", "vote"),
        ("fastest within one point of the most accurate", "beam"),
        ("best within 7 ms", "beam"),
    ]
    assert [one.name for one in recommend(ROWS, 2.5)][2] == "greedy"


def test_the_sentences_carry_the_numbers_that_justify_them():
    best, fastest, within = recommend(ROWS, 7.0)
    assert best.sentence.startswith("CER 8.00 %, exact 50.0 %, 18.00 ms an item, the lowest of 3")
    assert "-1.00 points of CER against greedy reading (95 % interval -3.00 to +1.00), so not surely" in best.sentence
    assert "3.0 times as fast as the most accurate for 0.50 points more" in fastest.sentence
    assert "the lowest of 2 within 7 ms" in within.sentence and "so surely better" in within.sentence


def test_one_that_is_both_is_not_compared_with_itself():
    _, fastest = recommend([ROWS[0]])
    assert fastest.sentence.endswith("nothing faster is as near")
    assert "greedy reading itself" in recommend([ROWS[0]])[0].sentence


def test_a_budget_that_nothing_meets_recommends_nothing_and_names_the_quickest():
    last = recommend(ROWS, 1.0)[-1]
    assert last.name is None
    assert last.sentence == "none: greedy is the quickest with 2.00 ms an item"


def test_equal_errors_are_decided_by_exact_match_then_time():
    rows = [row("slow", 0.1, 9.0), row("quick", 0.1, 3.0), row("exact", 0.1, 5.0, exact=0.6)]
    assert recommend(rows)[0].name == "exact"
    assert recommend(rows[:2])[0].name == "quick"


def test_texts_without_characters_are_judged_by_exact_match():
    rows = [row("greedy", None, 2.0, exact=0.9), row("beam", None, 4.0, exact=0.95, ci=(0.01, 0.09))]
    best, fastest = recommend(rows)
    assert best.name == "beam" and "CER" not in best.sentence
    assert "+5.00 points of exact match" in best.sentence and "surely better" in best.sentence
    assert fastest.name == "beam", "five points are more than one"


def test_nothing_measured_is_nothing_recommended():
    with pytest.raises(ValueError, match="nothing was measured"):
        recommend([])
