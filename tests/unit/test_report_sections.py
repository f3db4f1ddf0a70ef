"""Sections of the report say what became of trials, what was searched, and what was learnt by heart."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decode_rows import sample_rows
from glyphrun.data.sample import Sample
from glyphrun.data.shards import write_samples
from glyphrun.evaluation.significance import gap_of_shares
from glyphrun.images import encode_image
from glyphrun.report.examples import Example, example_section
from glyphrun.report.generalization import generalization
from glyphrun.report.importance import importance_section
from glyphrun.report.parallel import parallel_coordinates
from glyphrun.report.render import render_report
from glyphrun.report.run import report_run
from glyphrun.report.unfinished import unfinished_section
from report_samples import sample_examples, sample_results, split_scores


def test_what_was_not_finished_is_told_failures_first_each_with_its_reason() -> None:
    trials = sample_results()["trials"]
    trials[9] |= {"status": "interrupted", "reason": "the sweep ended before this trial did"}
    section = unfinished_section(trials)
    assert section.sentences == (
        "4 of 10 trials trained to their last step.",
        "4 were stopped early: 3 at step 100 and 1 at step 300.",
        "1 failed.",
        "1 did not end before the sweep did.",
        "1 ran out of memory and went on with half the batch, accumulated twice as often.",
    )
    assert [row.id for row in section.rows[:2]] == ["trial-07", "trial-09"]
    assert section.rows[0].reasons == ("the loss was not finite at step 61 (nan); lower the learning rate",)
    assert section.rows[-1].id == "trial-03" and section.rows[-1].reasons[0].startswith("batch_size 32 became 16")
    assert (section.rows[0].steps, section.rows[0].share) == ("60 of 900", 6.7)


def test_a_run_in_which_all_trials_finished_has_nothing_to_list() -> None:
    trials = [{**trial, "status": "finished", "retried": None} for trial in sample_results()["trials"]]
    section = unfinished_section(trials)
    assert section.rows == () and section.sentences == ("10 of 10 trials trained to their last step.",)


def test_each_trial_is_a_line_over_the_settings_that_were_searched_of_it() -> None:
    results = sample_results()
    for index in (0, 3):
        results["trials"][index]["changes"]["start.lora.rank"] = 4 + 4 * index
    drawn = parallel_coordinates(results)
    assert drawn
    assert [axis.name for axis in drawn.axes] == [
        "family",
        "learning_rate",
        "encoder.width",
        "start.lora.rank",
        "exact match on val",
    ]
    lines = {line.trial: line for line in drawn.lines}
    assert lines["trial-00"].dots.count("M") == 5 and lines["trial-01"].dots.count("M") == 4
    assert lines["trial-07"].dots.count("M") == 3 and lines["trial-07"].level == 0
    assert drawn.lines[-1].trial == "trial-00" and drawn.lines[-1].level == 5
    widths = next(axis for axis in drawn.axes if axis.name == "encoder.width")
    assert [tick.text for tick in widths.ticks] == ["64", "96", "128"]
    assert "without a score" in lines["trial-07"].told


def test_numbers_over_decades_have_a_logarithmic_axis() -> None:
    results = sample_results()
    for index, trial in enumerate(results["trials"]):
        trial["changes"] = {"learning_rate": 10 ** (-4 + index / 4.5)}
    axis = parallel_coordinates(results).axes[1]
    assert [tick.text for tick in axis.ticks] == ["0.0001", "0.0003", "0.001", "0.003", "0.01"]
    places = {tick.text: tick.at for tick in axis.ticks}
    assert places["0.001"] - places["0.0001"] == pytest.approx(places["0.01"] - places["0.001"])


def test_where_nothing_was_searched_there_are_no_coordinates() -> None:
    results = sample_results()
    for trial in results["trials"]:
        trial |= {"changes": {}, "family": "one"}
    assert parallel_coordinates(results) is None


def said_of(**changes: Any) -> Any:
    share = {"setting": "train.learning_rate", "share": 0.4, "chance": 0.3, "searched": 12, "best": 0.00123}
    said = {"step": 300, "reached": 11, "scored": 12, "configurations": 11, "reason": None, "shares": [share]}
    return importance_section({"importance": {**said, **changes}})


def test_importance_of_few_trials_is_called_a_hint() -> None:
    section = said_of()
    assert section.sentences == (
        "11 configurations, compared by exact match on val after 300 steps, the last that enough trials reached; 1 that "
        "ended earlier is left out.",
        "train.learning_rate explains more than chance would. With so few trials this is a hint.",
    )
    (row,) = section.rows
    assert (row.told, row.share, row.chance, row.best, row.counts) == ("40\u00a0%", 40.0, 30.0, "0.00123", True)
    assert said_of(configurations=40).sentences[1] == "train.learning_rate explains more than chance would."


def test_importance_within_chance_or_without_enough_trials_claims_nothing() -> None:
    within = {"setting": "width", "share": 0.2, "chance": 0.3, "searched": 9, "best": None}
    section = said_of(shares=[within])
    assert section.sentences[1] == "No setting explains more than chance would: so few trials cannot tell."
    assert not section.rows[0].counts and section.rows[0].best == "–"
    refused = said_of(shares=[], reason="5 configurations are too few: at least 8 are needed")
    assert refused.rows == () and "5 configurations are too few" in refused.sentences[0]
    assert importance_section({}) is None


def test_a_gap_between_shares_has_the_published_interval() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80.
    gap = gap_of_shares(56, 70, 48, 80)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_what_was_learnt_by_heart_is_a_gap_with_its_interval() -> None:
    splits = sample_results()["splits"]
    gap = gap_of_shares(451, 500, 757, 800)
    assert generalization(splits).sentences == (
        f"On unseen exact match is {-100 * gap.value:.1f} points lower than on test (95\u00a0%\u00a0CI of the difference "
        f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}).",
    )
    groups = {"seen": {"n": 300, "exact": 0.9, "cer": 0.05}, "unseen": {"n": 20, "exact": 0.85, "cer": 0.08}}
    found = generalization({"lines": {**split_scores(320, 0.9, {}, []), "by_training": groups}})
    assert "which chance may explain" in found.sentences[0]
    assert [(row.group, row.cells[0].text) for row in found.rows] == [
        ("shown in training", "300"),
        ("never shown", "20"),
    ]


def test_examples_say_of_how_many_they_were_drawn_and_wrong_ones_come_first() -> None:
    section = example_section(sample_examples(), sample_results()["splits"])
    assert section
    assert section.sentence == "Drawn by chance on test: 3 of the 43 wrong readings and 21 of the 757 right ones."
    assert [card.right for card in section.cards] == [False] * 3 + [True] * 21
    assert example_section([], {}) is None


def test_small_frames_stay_as_they_are_and_large_ones_are_scaled() -> None:
    rng = np.random.default_rng(1)
    small, large = (encode_image(rng.integers(0, 256, (side, side, 3), np.uint8), "JPEG") for side in (32, 700))
    line = encode_image(np.full((120, 2400, 3), 255, np.uint8))
    examples = [Example("a", "test", "1", "1", 0.9, (small, large)), Example("b", "test", "1", "1", 0.9, (line,))]
    section = example_section(examples, {})
    assert section
    pictures = [Image.open(io.BytesIO(_bytes(frame.uri))).size for card in section.cards for frame in card.frames]
    assert pictures == [(32, 32), (160, 160), (800, 40)]
    assert _bytes(section.cards[0].frames[0].uri) == small


def _bytes(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def test_a_decode_sweep_inside_the_run_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    render_report(sample_results(), [], out, decode={"schema": 1, "split": "val", "rows": sample_rows()})
    source = out.read_text("utf-8")
    assert 'href="#decoding"' in source and 'id="settings"' in source
    assert "decoding" in json.loads(source.split('id="figures">')[1].split("</script>")[0])
    render_report(sample_results(), [], out)
    assert 'href="#decoding"' not in out.read_text("utf-8")


def test_a_run_folder_is_reported_with_its_examples_and_its_decode_sweep(tmp_path: Path) -> None:
    frame = encode_image(np.zeros((8, 8, 3), np.uint8))
    sample = Sample(sample_id="test-1", frames=(frame,), text="7", split="test")
    write_samples([sample], tmp_path / "examples", name="e", licence="none", description="made", charset="0123456789")
    example = {"sample_id": "test-1", "split": "test", "truth": "7", "reading": "1", "confidence": 0.5, "votes": []}
    (tmp_path / "results.json").write_text(json.dumps({**sample_results(), "examples": [example]}))
    before = report_run(tmp_path).read_text("utf-8")
    assert "✕ wrong" in before and 'href="#decoding"' not in before
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / "decode.json").write_text(json.dumps({"schema": 1, "split": "val", "rows": sample_rows()}))
    assert 'href="#decoding"' in report_run(tmp_path).read_text("utf-8")
    with pytest.raises(FileNotFoundError, match="the sweep has not finished"):
        report_run(tmp_path / "decode")
