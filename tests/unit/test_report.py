"""The report says what the results say, safely and in one file."""

from __future__ import annotations

import base64
import copy
import gzip
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glyphrun.images import encode_image
from glyphrun.report.render import Example, render_report
from rendered_report import rendered
from report_samples import sample_examples, sample_results


def test_every_trial_is_in_the_leaderboard_with_its_score_and_interval(
    tmp_path: Path,
) -> None:
    results = sample_results()
    page, _ = rendered(results, tmp_path)
    rows = [attributes["data-trial"] for tag, attributes in page.tags if "data-trial" in attributes]
    assert sorted(rows, key=str) == [trial["id"] for trial in results["trials"]]
    assert rows[0] == "trial-00" and rows[-1] == "trial-07"
    assert "95.3 %" in page.text and "93.5 to 96.9" in page.text


def test_a_trial_that_went_on_from_another_says_from_which_and_when(tmp_path: Path) -> None:
    page, _ = rendered(sample_results(), tmp_path)
    assert page.text.count("from trial-01 at step 200") == 1


def test_a_failed_trial_shows_its_reason(tmp_path: Path) -> None:
    page, _ = rendered(sample_results(), tmp_path)
    assert "the loss was not finite at step 61 (nan); lower the learning rate" in page.text


def test_the_headline_gives_the_winner_its_scores_and_its_latency_against_the_budget(
    tmp_path: Path,
) -> None:
    page, _ = rendered(sample_results(), tmp_path)
    assert "Temporal PARSeq reads 94.6 % of the test set exactly." in page.text
    for said in (
        "95.3 %",
        "94.6 %",
        "90.2 %",
        "7.33 ms",
        "p95 9.53 ms",
        "Within the budget of 20 ms",
        "1.7 points ahead of trial-02",
    ):
        assert said in page.text, said


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    results = sample_results()
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    results["run"]["name"] = attack
    results["trials"][7]["reason"] = attack
    for trial in results["trials"]:
        trial["family"] = trial["recognizer"] = attack
    results["splits"]["test"]["confusions"][0] = {
        "truth": "<b>",
        "reading": "<i>",
        "n": 2,
    }
    example = sample_examples(1)[0]
    hostile = Example(
        attack,
        attack,
        attack,
        attack,
        0.5,
        example.frames,
        tuple((attack, 1.0) for _ in example.frames),
    )
    page, source = rendered(results, tmp_path, [hostile])
    assert attack in page.text
    assert attack not in source
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert all(attributes["src"] is not None and attributes["src"].startswith("data:image/")
               for tag, attributes in page.tags if tag == "img")  # fmt: skip


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, source = rendered(sample_results(), tmp_path, sample_examples())
    loaded = [
        (tag, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "poster", "action") and not (value or "").startswith(("data:", "#"))
    ]
    assert loaded == []
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in source
    assert len(source.encode()) < 6_000_000
    packed = re.search(r'id="plotly">(.*?)</script>', source)
    assert packed and gzip.decompress(base64.b64decode(packed[1])).count(b"plotly.js v") == 1


def test_24_tracklets_of_100_large_noisy_frames_make_a_page_of_less_than_6_mb(tmp_path: Path) -> None:
    """Noise is what JPEG makes least of."""
    rng = np.random.default_rng(0)
    noise = [encode_image(rng.integers(0, 256, (300, 400, 3), np.uint8), "JPEG") for _ in range(4)]
    frames = tuple(noise[number % 4] for number in range(100))
    examples = [Example(f"test-{number:03}", "test", "1", "17", 0.5, frames) for number in range(24)]
    page, source = rendered(many_trials(), tmp_path, examples)
    assert len(source.encode()) < 6_000_000
    assert sum(tag == "img" for tag, _ in page.tags) == 24 * 16
    assert page.text.count("and 84 more frames") == 24


def many_trials() -> dict[str, Any]:
    """A sweep of 120 trials with 200 reports each."""
    results = sample_results()
    shown = results["trials"][0]
    curve = [
        {"step": step, "seconds": step * 0.1, "train_loss": 1 / 3 + 1 / step, "exact": 1 - 1 / (3 + step), "cer": 0.1}
        for step in range(10, 2010, 10)
    ]
    results["trials"] += [{**shown, "id": f"more-{number:03}", "curve": curve} for number in range(110)]
    return results


def test_a_run_without_any_score_or_winner_is_still_reported(tmp_path: Path) -> None:
    results = sample_results()
    for trial in results["trials"]:
        trial |= {
            "val": None,
            "latency_ms": None,
            "curve": [],
            "status": "failed",
            "reason": "out of memory",
        }
    results |= {
        "winner": None,
        "splits": {},
        "selection": {"rule": "r", "reason": "No trial was scored."},
    }
    page, _ = rendered(results, tmp_path)
    assert "there is no winner" in page.text and "10 failed." in page.text
    assert (
        page.text.count("out of memory") == 21
    )  # in the leaderboard, among what was not finished, and of the one tried again


def test_a_loss_that_is_not_finite_leaves_no_hole_in_the_page(tmp_path: Path) -> None:
    results = sample_results()
    results["trials"][7]["curve"].append({"step": 61, "seconds": 7, "train_loss": math.nan, "exact": None, "cer": None})
    results["splits"]["unseen"] |= {"cer": math.inf, "cer_ci": [0.1, math.inf]}
    _, source = rendered(results, tmp_path)
    figures = re.search(r'id="figures">(.*?)</script>', source, re.DOTALL)
    assert figures and "NaN" not in figures[1] and "Infinity" not in figures[1]


def test_frames_that_no_browser_shows_are_refused_by_name(tmp_path: Path) -> None:
    bad = Example("test-00042", "test", "1", "1", 0.9, (b"BM not a png",))
    with pytest.raises(ValueError, match="frame 0 of sample 'test-00042' is neither PNG nor JPEG"):
        render_report(sample_results(), [bad], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_results_that_lack_a_key_are_refused_by_its_name(tmp_path: Path) -> None:
    results = sample_results()
    del results["run"]["dataset"]
    with pytest.raises(ValueError, match="the results lack a key .*dataset"):
        render_report(results, [], tmp_path / "report.html")


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schema 2 cannot be reported"):
        render_report(sample_results() | {"schema": 2}, [], tmp_path / "report.html")


def test_a_report_is_replaced_whole_and_the_results_are_left_as_they_were(
    tmp_path: Path,
) -> None:
    results = sample_results()
    before = copy.deepcopy(results)
    (tmp_path / "report.html").write_text("an older report")
    _, source = rendered(results, tmp_path)
    assert source.endswith("</html>") and results == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
