"""The page of a decode sweep says what its rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.evaluation.recommend import recommend
from glyphrun.report.decoding import accuracy_against_time, write_decode_page


def row(name: str, cer: float | None, ms: float, *, exact: float = 0.5, vote: str | None = None, **decode: Any) -> dict:
    against = None if cer is None else {"difference": cer - 0.2, "ci": [cer - 0.22, cer - 0.18], "p": 0.01}
    return {
        "name": name,
        "point": {
            "members": ["one", "two"] if vote else ["one"],
            "decode": DecodeSettings.model_validate(decode).model_dump(mode="json"),
            "ensemble_vote": vote,
        },
        "n": 200,
        "exact": exact,
        "exact_ci": [exact - 0.05, exact + 0.05],
        "cer": cer,
        "cer_ci": [None, None] if cer is None else [cer - 0.02, cer + 0.02],
        "wer": cer,
        "wer_ci": [None, None],
        "ms": ms,
        "images_per_s": 1000 / ms,
        "frames_read": 1.0,
        "against_greedy": {"exact": {"difference": 0.0, "ci": [0.0, 0.0], "p": 1.0}, "cer": against},
    }


def sample_rows() -> list[dict]:
    return [
        row("2 members, mbr, beam, width 5", 0.11, 30.0, exact=0.71, vote="mbr", search="beam", width=5),
        row("one, beam, width 5", 0.15, 12.0, exact=0.63, search="beam", width=5),
        row("one, beam, width 3", 0.16, 14.0, exact=0.62, search="beam", width=3),
        row("one, greedy", 0.2, 4.0, exact=0.6),
        row("one, <sample>", 0.27, 20.0, exact=0.4, search="sample", temperature=0.7, samples=5),
    ]


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
    assert list(figures) == ["scatter"]


def test_texts_without_characters_are_compared_by_wrong_answers(tmp_path: Path):
    rows = [row("one, greedy", None, 4.0, exact=0.6), row("one, beam, width 3", None, 8.0, exact=0.7)]
    drawn = accuracy_against_time(rows)
    assert drawn["data"][0]["y"] == pytest.approx([0.4, 0.3])
    assert drawn["layout"]["yaxis"]["title"]["text"] == "wrong answers"
    write_decode_page(rows, tmp_path / "page.html", title="blank", advice=recommend(rows))


def test_no_rows_are_no_page(tmp_path: Path):
    with pytest.raises(ValueError, match="without rows"):
        write_decode_page([], tmp_path / "page.html", title="none")
