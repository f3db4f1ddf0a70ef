"""The page of a decode sweep says what its rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from decode_rows import row, sample_rows
from glyphrun.evaluation.recommend import recommend
from glyphrun.report.decoding import accuracy_against_time, write_decode_page


def test_the_front_holds_what_nothing_beats_in_both():
    front, *points = accuracy_against_time(sample_rows())["data"]
    assert front["x"] == [4.0, 12.0, 30.0] and front["y"] == [0.2, 0.15, 0.11]
    assert [trace["name"] for trace in points] == ["members that vote", "beam", "greedy", "sample"]
    assert points[1]["error_y"]["array"] == pytest.approx([0.02, 0.02])


def test_the_page_holds_every_row_and_the_advice(tmp_path: Path):
    rows = sample_rows()
    write_decode_page(rows, tmp_path / "page.html", title="lines, val", advice=recommend(rows, 5.0))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert len(re.findall(r"<tr[ >]", page)) == 1 + len(rows)
    assert "one, &lt;sample&gt;" in page and "one, <sample>" not in page.split("application/json")[0]
    assert "Best within 5 ms: one, greedy." in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S).group(1))
    assert list(figures) == ["decoding"]


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ((0.4, 30.0, 700.0), ["1", "10", "100"]),
        ((3.1, 96.0), ["5", "10", "20", "50", "100"]),
        ((12.0, 19.0), ["11", "15", "19"]),
        ((7.3,), ["1", "10"]),
    ],
)
def test_the_time_axis_has_some_round_numbers_near_every_setting(times, shown):
    rows = [row(f"one, beam, width {width}", 0.1, ms) for width, ms in enumerate(times)]
    ticks = accuracy_against_time(rows)["layout"]["xaxis"]["ticktext"]
    assert set(shown) <= set(ticks) and 3 <= len(ticks) <= 8


def test_a_time_that_was_measured_on_some_items_says_on_how_many(tmp_path: Path):
    rows = [row("one, greedy", 0.2, 4.0), row("one, beam, width 3", 0.1, 9.0, search="beam", width=3)]
    write_decode_page([rows[0], {**rows[1], "timed_items": 48}], tmp_path / "page.html", title="lines")
    assert (tmp_path / "page.html").read_text("utf-8").count("on 48 items") == 1


def test_texts_without_characters_are_compared_by_wrong_answers(tmp_path: Path):
    rows = [row("one, greedy", None, 4.0, exact=0.6), row("one, beam, width 3", None, 8.0, exact=0.7)]
    drawn = accuracy_against_time(rows)
    assert drawn["data"][0]["y"] == pytest.approx([0.4, 0.3])
    assert drawn["layout"]["yaxis"]["title"]["text"] == "wrong answers"
    write_decode_page(rows, tmp_path / "page.html", title="blank", advice=recommend(rows))


def test_no_rows_are_no_page(tmp_path: Path):
    with pytest.raises(ValueError, match="without rows"):
        write_decode_page([], tmp_path / "page.html", title="none")
