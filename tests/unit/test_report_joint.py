"""The report of a search over recognizers and ways of reading says what its points say."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from decode_rows import sample_rows
from glyphrun.report.joint import figures, joint_section
from glyphrun.report.render import render_report
from rendered_report import rendered
from report_samples import sample_results, sample_search


@pytest.fixture
def results() -> dict[str, Any]:
    return sample_search(sample_results())


def test_every_way_is_a_point_against_each_cost_and_ensembles_have_marks_of_their_own(results):
    drawn = figures(results)
    assert list(drawn) == ["joint", "joint-memory"]
    line, alone, pairs, all_three, ring = drawn["joint"]["data"]
    assert [len(trace["x"]) for trace in (alone, pairs, all_three, ring)] == [12, 12, 4, 1]
    assert [trace["name"] for trace in (alone, pairs, all_three)] == [
        "one recognizer",
        "ensembles of 2",
        "ensembles of 3",
    ]
    shapes = [
        {symbol.removesuffix("-open") for symbol in trace["marker"]["symbol"]} for trace in (alone, pairs, all_three)
    ]
    assert len(set.union(*shapes)) == 3 and all(len(shape) == 1 for shape in shapes)
    points = {point["name"]: point for point in results["decode_search"]["points"]}
    assert line["y"] == sorted(line["y"]) and line["x"] == sorted(line["x"])
    best = max(point["exact"] for point in points.values())
    assert line["y"][-1] == best
    outlined = [
        text for trace in (alone, pairs, all_three)
        for text, colour in zip(trace["text"], trace["marker"]["line"]["color"], strict=True) if colour == "var(--ink)"
    ]  # fmt: skip
    assert {re.match("<b>(.*?)</b>", text)[1] for text in outlined} == set(results["decode_search"]["front"])
    chosen = points[results["decode_search"]["chosen"]]
    assert (ring["x"], ring["y"]) == ([chosen["latency_ms"]["p50"]], [chosen["exact"]])
    shape, memory = drawn["joint"]["layout"]["shapes"], drawn["joint-memory"]["layout"]["shapes"]
    assert [one["x0"] for one in shape] == [20.0] and memory == []


def test_where_the_error_rate_is_the_objective_it_is_drawn_and_what_has_none_is_only_listed(results):
    by_cer = {**results, "objectives": ["cer", "ms"]}
    line, *families, _ = figures(by_cer)["joint"]["data"]
    assert line["y"] == sorted(line["y"], reverse=True)
    assert sum(len(trace["x"]) for trace in families) == 27
    section = joint_section(by_cer)
    assert section is not None and len(section.rows) == 28
    assert section.rows[-1].cells[1].key is None and section.accuracy == "CER"


def test_the_table_marks_the_winner_the_front_and_what_is_over_the_budget(results, tmp_path):
    page, source = rendered(results, tmp_path)
    search = results["decode_search"]
    table = source.split('id="ways"')[1].split("</table>")[0]
    assert table.count("<tr") == 1 + 28
    assert table.count("★ winner") == 1 and table.count(">on the front<") == len(search["front"]) - 1
    assert table.count("over budget") == sum(not point["within_budget"] for point in search["points"]) > 0
    assert f"{len(search['front'])} are on the Pareto front of exact match, latency and memory" in page.text
    assert "trial-00, trial-02 and trial-03 survived" in page.text
    # The trials that the winner reads with are marked as such, and the headline is about all of them.
    members = next(point["members"] for point in search["points"] if point["name"] == search["chosen"])
    assert len(members) == 2 and "An ensemble of 2 reads 94.6 % of the test set exactly." in page.text
    assert source.split('id="trials"')[1].split("</table>")[0].count("★ in the winner") == 2


def test_a_price_has_a_column_only_where_one_is_stated(results):
    section = joint_section(results)
    assert section is not None and ("Cost of a million", "low") in section.columns
    free = copy.deepcopy(results)
    for point in free["decode_search"]["points"]:
        point["cost"] = None
    section = joint_section(free)
    assert section is not None and not section.priced
    assert all(len(row.cells) == len(section.columns) == 6 for row in section.rows)


def test_the_rows_of_the_search_are_not_shown_again_as_a_decode_sweep(results, tmp_path: Path):
    out = tmp_path / "report.html"
    render_report(results, [], out, decode={"schema": 1, "split": "val", "rows": sample_rows()})
    source = out.read_text("utf-8")
    assert 'href="#joint"' in source and 'href="#decoding"' not in source
    render_report(sample_results(), [], out)
    assert 'href="#joint"' not in out.read_text("utf-8")
