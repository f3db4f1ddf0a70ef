"""Figures and tables of the report stand where the results put them."""

from __future__ import annotations

import math

import pytest

from glyphrun.report import costs, curves, errors, tables
from report_samples import sample_results

LATENCY, MEMORY, *_ = costs.COSTS


def test_trials_without_a_score_are_listed_but_not_plotted() -> None:
    results = sample_results()
    drawn = costs.accuracy_against(results, LATENCY)["data"]
    points = sum(len(trace["x"]) for trace in drawn if trace["mode"] == "markers" and trace["name"] != "winner")
    assert points == len(costs.cost_rows(results)) == 9
    assert [row.rank for row in tables.leaderboard(results)] == [*range(1, 10), None]


def test_the_front_and_the_budget_are_drawn_where_the_results_put_them() -> None:
    results = sample_results()
    figure = costs.accuracy_against(results, LATENCY)
    front = next(trace for trace in figure["data"] if trace["name"] == "Pareto front")
    wanted = sorted((t["latency_ms"]["p50"], t["val"]["exact"]) for t in results["trials"] if t["on_front"])
    assert list(zip(front["x"], front["y"], strict=True)) == wanted
    assert figure["layout"]["shapes"][0]["x0"] == 20.0
    assert costs.accuracy_against(results, MEMORY)["layout"]["shapes"] == []


def test_the_front_of_all_costs_holds_a_trial_that_is_best_in_one_of_them() -> None:
    results = sample_results()
    before = costs.front_of_all(results)
    assert "trial-08" not in before and {"trial-00", "trial-02"} <= before
    results["trials"][8]["memory_mib"] = 0.5
    assert costs.front_of_all(results) == {*before, "trial-08"}
    rows = {row.id: row for row in costs.cost_rows(results)}
    assert rows["trial-08"].on_front and not rows["trial-04"].on_front
    headings = [name for name, _ in costs.cost_section(results).columns]
    assert headings == ["Exact match", "Latency", "Memory", "Parameters", "Multiply-adds", "Items/s"]
    adds = rows["trial-00"].cells[headings.index("Multiply-adds")].text
    assert adds == f"{0.0123 * 64 / 2:.3g}\u00a0G"


def test_costs_over_decades_have_a_logarithmic_axis_and_the_winner_stands_on_it() -> None:
    results = sample_results()
    results["trials"][3]["memory_mib"] = 900.0
    drawn = costs.accuracy_against(results, MEMORY)["layout"]
    assert drawn["xaxis"]["type"] == "log"
    assert drawn["annotations"][0]["x"] == pytest.approx(math.log10(0.03 * 64))
    low, high = drawn["xaxis"]["range"]
    assert low < math.log10(0.03 * 64) and high > math.log10(900)


def test_learning_curves_mark_the_stops_of_asha_and_end_with_the_winner() -> None:
    figure = curves.learning_curves(sample_results(), "exact")
    ends = [trace["marker"]["symbol"] for trace in figure["data"] if trace["mode"] == "markers"]
    assert ends.count("x-thin") == 5 and ends.count("triangle-down-open") == 1 and ends[-1] == "star"
    widths = [trace["line"]["width"] for trace in figure["data"] if trace["mode"] == "lines"]
    assert max(widths) == widths[-1] > 2 * widths[0]


def test_many_lengths_are_shown_in_ranges_of_about_as_many_items() -> None:
    results = sample_results()
    by_length = {
        str(length): {"n": 10 if length < 60 else 1, "exact": 0.9 if length < 30 else 0.5} for length in range(1, 81)
    }
    results["splits"] = {"val": {**results["splits"]["val"], "by_length": by_length}}
    (bars,) = errors.exact_by_length(results)["data"]
    assert len(bars["x"]) == 6 and bars["x"][0] == "1 to 11" and bars["x"][-1].endswith(" to 80")
    assert sum(bars["customdata"]) == 611 and max(bars["customdata"]) <= 120
    assert bars["y"][0] == pytest.approx(0.9) and bars["y"][-1] < 0.55
    assert bars["error_y"]["array"][0] > 0


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
