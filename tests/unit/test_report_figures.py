"""Figures and tables of the report stand where the results put them."""

from __future__ import annotations

import pytest

from glyphrun.report import curves, errors, tables, tradeoff
from report_samples import sample_results


def test_trials_without_a_score_are_listed_but_not_plotted() -> None:
    results = sample_results()
    drawn = tradeoff.accuracy_against_latency(results)["data"]
    points = sum(len(trace["x"]) for trace in drawn if trace["mode"] == "markers" and trace["name"] != "winner")
    assert points == 9
    assert [row.rank for row in tables.leaderboard(results)] == [*range(1, 10), None]


def test_the_front_and_the_budget_are_drawn_where_the_results_put_them() -> None:
    results = sample_results()
    figure = tradeoff.accuracy_against_latency(results)
    front = next(trace for trace in figure["data"] if trace["name"] == "Pareto front")
    wanted = sorted((t["latency_ms"]["p50"], t["val"]["exact"]) for t in results["trials"] if t["on_front"])
    assert list(zip(front["x"], front["y"], strict=True)) == wanted
    assert figure["layout"]["shapes"][0]["x0"] == 20.0


def test_learning_curves_mark_the_stops_of_asha_and_end_with_the_winner() -> None:
    figure = curves.learning_curves(sample_results(), "exact")
    ends = [trace["marker"]["symbol"] for trace in figure["data"] if trace["mode"] == "markers"]
    assert ends.count("x-thin") == 5 and ends.count("triangle-down-open") == 1 and ends[-1] == "star"
    widths = [trace["line"]["width"] for trace in figure["data"] if trace["mode"] == "lines"]
    assert max(widths) == widths[-1] > 2 * widths[0]


def test_the_heat_map_counts_substitutions_of_equally_long_readings_only() -> None:
    figure = errors.character_confusions(
        [
            {"truth": "17", "reading": "11", "n": 4},
            {"truth": "71", "reading": "17", "n": 2},
            {"truth": "64", "reading": "6", "n": 9},
            {"truth": "", "reading": "7", "n": 9},
        ]
    )
    assert figure
    cells = figure["data"][0]["z"]
    assert cells[7][1] == 6 and cells[1][7] == 2
    assert sum(cell or 0 for row in cells for cell in row) == 8
    assert errors.character_confusions([{"truth": "64", "reading": "6", "n": 9}]) is None


@pytest.mark.parametrize(
    ("truth", "reading", "kind"),
    [
        ("17", "11", "substitution"),
        ("17", "71", "transposition"),
        ("38", "95", "2 substitutions"),
        ("64", "6", "deletion"),
        ("6", "64", "insertion"),
        ("", "7", "read although not readable"),
        ("5", "", "rejected although readable"),
    ],
)
def test_an_error_is_named(truth: str, reading: str, kind: str) -> None:
    assert tables.error_kind(truth, reading) == kind


def test_confusions_of_test_and_unseen_are_added_and_ordered() -> None:
    rows = tables.confusions(sample_results()["splits"])
    assert (rows[0].truth, rows[0].reading, rows[0].n, rows[0].splits) == (
        "38",
        "33",
        7,
        "4 in test, 3 in unseen",
    )
    assert [row.n for row in rows] == sorted((row.n for row in rows), reverse=True)
