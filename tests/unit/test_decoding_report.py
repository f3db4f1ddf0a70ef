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


def test_texts_without_characters_are_compared_by_wrong_answers(tmp_path: Path):
    rows = [row("one, greedy", None, 4.0, exact=0.6), row("one, beam, width 3", None, 8.0, exact=0.7)]
    drawn = accuracy_against_time(rows)
    assert drawn["data"][0]["y"] == pytest.approx([0.4, 0.3])
    assert drawn["layout"]["yaxis"]["title"]["text"] == "wrong answers"
    write_decode_page(rows, tmp_path / "page.html", title="blank", advice=recommend(rows))


def test_no_rows_are_no_page(tmp_path: Path):
    with pytest.raises(ValueError, match="without rows"):
        write_decode_page([], tmp_path / "page.html", title="none")
