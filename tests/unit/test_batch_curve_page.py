"""The page of tuned serving says what was measured and what was chosen."""

from __future__ import annotations

import json
import re
from pathlib import Path

from glyphrun.report.batch_curve import latency, throughput, write_curve_page

KEYS = ("decode_ms", "read_ms", "read_p99_ms", "answer_ms", "answer_p99_ms")


def point(batch: int, worst_ms: float, items_per_s: float) -> dict[str, float]:
    return {
        "batch": batch,
        "repeats": 100,
        **dict.fromkeys(KEYS, 7.0),
        "worst_ms": worst_ms,
        "items_per_s": items_per_s,
    }


POINTS = {
    "recognizer-<one>": [point(1, 20.5, 100.0), point(2, 22.25, 190.0), point(4, 60.0, 210.0)],
    "recognizer-two": [point(1, 18.0, 110.0), point(2, 21.0, 180.0)],
}


def test_each_recognizer_is_a_line_over_sizes_beside_the_promise_and_the_chosen_size() -> None:
    drawn = latency(POINTS, 50.0, 2)
    assert [(trace["x"], trace["y"]) for trace in drawn["data"]] == [
        ([1, 2, 4], [20.5, 22.25, 60.0]),
        ([1, 2], [18.0, 21.0]),
    ]
    promise, chosen = drawn["layout"]["shapes"]
    assert (promise["y0"], promise["y1"], chosen["x0"], chosen["x1"]) == (50.0, 50.0, 2, 2)
    assert drawn["layout"]["xaxis"]["ticktext"] == ["1", "2", "4"]
    assert throughput(POINTS, 2)["data"][0]["y"] == [100.0, 190.0, 210.0]


def test_the_page_has_every_size_in_its_table_and_marks_the_chosen_one(tmp_path: Path) -> None:
    out = tmp_path / "curve.html"
    write_curve_page(POINTS, out, title="shirts & co", slo_ms=50.0, chosen=2, told=["batch wait 0 ms"], under="a <CPU>")
    page = out.read_text("utf-8")
    assert len(re.findall(r"<tr[ >]", page)) == 1 + 5 and page.count('<tr class="won">') == 2
    assert "<h1>shirts &amp; co</h1>" in page and "a &lt;CPU&gt;" in page and "batch wait 0 ms." in page
    assert "recognizer-<one>" not in page.split("application/json")[0] and "exact match" not in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert set(figures) == {"latency", "throughput"}
