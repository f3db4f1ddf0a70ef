"""Which settings the validation suite holds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from glyphrun.decoding.settings import VoteMethod
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.suite import available_corrections, has_tracklets, suite_points
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}
VOTES = len(get_args(VoteMethod))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    save_tiny_bundle(folder / "one", "parseq-nano", {**TINY, "fusion": "mean"}, windows=2, window_frames=2)
    save_tiny_bundle(folder / "two", "parseq-nano", {**TINY, "fusion": "mean"}, seed=1)
    save_tiny_bundle(folder / "digits", "query-digits-nano", TINY)
    return {name: folder / name for name in ("one", "two", "digits")}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of what corrections are made of; nobody looks into it here."""
    for name in ("words.tsv", "confusions.json", "model.arpa"):
        (tmp_path / name).touch()
    (tmp_path / "causal").mkdir()
    return tmp_path


def some(readers: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: readers[name] for name in names}


def test_one_reader_is_read_greedily_by_beams_and_by_samples(readers):
    points, without = suite_points(some(readers, "two"), {})
    searches = [(point.decode.search, point.decode.width, point.decode.temperature) for point in points]
    assert searches == [("greedy", 1, 1.0), ("beam", 3, 1.0), ("beam", 5, 1.0), ("beam", 7, 1.0), ("sample", 1, 0.7)]
    assert all(point.ensemble_vote is None for point in points) and without == []


def test_several_vote_in_every_way_each_with_windows_of_its_own(readers):
    points, without = suite_points(some(readers, "one", "two"), {})
    votes = [point for point in points if point.ensemble_vote]
    assert [point.ensemble_vote for point in votes] == [*get_args(VoteMethod), "average"] and without == []
    assert all(point.members == ("one", "two") and point.decode.width == 5 for point in votes)
    assert all(point.decode.windows == 2 and point.decode.window_frames == 2 for point in points)
    assert all(point.ways["two"].window_frames is None for point in votes[:-1])


def test_recognizers_that_differ_vote_and_are_not_averaged(readers):
    points, without = suite_points(some(readers, "one", "digits"), {})
    assert [point.ensemble_vote for point in points if point.ensemble_vote] == [*get_args(VoteMethod)]
    assert without == [
        "one and digits differ in their recognizer, codec or image processor, so they cannot be averaged: let them vote"
    ]


def test_tracklets_are_left_early_where_something_is_left(readers):
    points, without = suite_points(some(readers, "one"), {}, tracklets=True)
    exits = [(point.decode.search, point.decode.early_exit) for point in points if point.decode.early_exit]
    assert exits == [("greedy", "decided"), ("greedy", 0.9), ("beam", "decided"), ("beam", 0.9)] and without == []
    points, without = suite_points(some(readers, "two"), {}, tracklets=True)
    assert not any(point.decode.early_exit for point in points)
    assert "two reads a tracklet whole" in without[0]


def test_quick_holds_beams_and_votes_alone(readers):
    corrections = {"lexicon": {"lexicon": "words.tsv"}}
    points, without = suite_points(some(readers, "one", "two"), corrections, tracklets=True, quick=True)
    assert without == ["a quick validation tries beams and votes alone, so nothing is corrected"]
    assert len(points) == 4 + VOTES + 1
    assert {point.decode.search for point in points} == {"greedy", "beam"}
    assert all(point.decode.correction is None and not point.decode.early_exit for point in points)


def test_what_ranks_every_answer_has_no_beams_and_no_model_inside_one(readers, files):
    corrections = available_corrections(files / "words.tsv", None, files / "model.arpa")
    points, without = suite_points(some(readers, "digits"), corrections)
    assert [point.decode.search for point in points] == ["greedy", "sample", *["greedy"] * 3]
    assert without == [
        "digits ranks every answer that there is, so that a beam of any width reads what greedy reading does"
    ]
    told = [point.decode.correction.lm_fusion for point in points if point.decode.correction]
    assert told == ["rerank"] * 3


def test_every_correction_is_tried_alone_with_a_beam_and_with_all_members(readers, files):
    corrections = available_corrections(files / "words.tsv", files / "confusions.json", files / "model.arpa")
    assert list(corrections) == [
        "lexicon",
        "language model, reranking",
        "language model in the beam",
        "lexicon and language model, reranking",
        "lexicon and language model in the beam",
    ]
    assert all(
        Path(value).is_absolute() for one in corrections.values() for key, value in one.items() if key != "lm_fusion"
    )
    points, _ = suite_points(some(readers, "one", "two"), corrections)
    corrected = [point for point in points if point.decode.correction]
    assert len(points) == 5 + VOTES + 1 + len(corrected)
    assert [(point.decode.search, point.ensemble_vote) for point in corrected] == [
        *[("greedy", None), ("beam", None), ("beam", "mbr")],
        *[("beam", None), ("beam", "mbr")] * 2,
        *[("greedy", None), ("beam", None), ("beam", "mbr")],
        *[("beam", None), ("beam", "mbr")],
    ]


def test_files_that_are_not_given_are_no_corrections(files):
    assert available_corrections(None, None, None) == {}
    assert list(available_corrections(None, None, files / "causal")) == ["language model, reranking"]


def test_files_that_are_not_there_or_correct_nothing_are_told_before_anything_is_read(files):
    with pytest.raises(ExperimentError, match=r"--lm: there is no .*french.arpa"):
        available_corrections(files / "words.tsv", None, files / "french.arpa")
    with pytest.raises(ExperimentError, match="give --lexicon too"):
        available_corrections(None, files / "confusions.json", None)


def test_items_of_several_frames_are_tracklets(small_dataset):
    assert has_tracklets(small_dataset, "val")
