from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, combine
from glyphrun.decoding.windows import rows_of_windows, window_ballots, window_rows
from glyphrun.engine import Engine
from glyphrun.images import encode_image
from glyphrun.prediction import Prediction
from stretched import engine_for, recognizer


@pytest.mark.parametrize(
    ("frames", "windows", "size", "starts"),
    [
        (20, 4, 5, [0, 5, 10, 15]),
        (20, 3, 8, [0, 6, 12]),
        (21, 3, 8, [0, 6, 13]),
        (9, 5, 8, [0, 1]),  # no window twice
        (100, 2, 10, [0, 90]),
        (12, 1, 4, [4]),  # the middle
        (7, 7, 1, list(range(7))),
    ],
)
def test_windows_are_spread_from_the_first_frames_to_the_last(frames, windows, size, starts):
    assert window_rows(frames, windows, size) == [list(range(start, start + size)) for start in starts]


def test_a_tracklet_shorter_than_a_window_is_one_window():
    for windows in (1, 2, 9):
        assert window_rows(3, windows, 8) == [[0, 1, 2]]
        assert window_rows(8, windows, 8) == [list(range(8))]


def test_windows_of_any_tracklet_are_different_stretches_that_reach_both_ends():
    for frames in range(1, 40):
        for windows in range(2, 8):
            for size in range(1, 12):
                found = window_rows(frames, windows, size)
                assert 1 <= len(found) <= windows
                assert all(window == list(range(window[0], window[0] + min(size, frames))) for window in found)
                starts = [window[0] for window in found]
                assert starts == sorted(set(starts))
                assert found[0][0] == 0 and found[-1][-1] == frames - 1
                gaps = np.diff(starts)
                assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_no_frames_no_windows_and_no_size_are_refused(numbers):
    with pytest.raises(ValueError, match="each must be at least 1"):
        window_rows(*numbers)


def test_windows_of_a_batch_point_at_the_frames_that_are_read():
    batch = rows_of_windows([2, 9, 1], 2, 3)
    assert batch.items == [[[0, 1]], [[0, 1, 2], [6, 7, 8]], [[0]]]
    assert batch.read.tolist() == [True] * 2 + [True] * 3 + [False] * 3 + [True] * 3 + [True]
    assert batch.mask.tolist() == [[True, True, False], [True] * 3, [True] * 3, [True, False, False]]
    read = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [1, 6], [1, 7], [1, 8], [2, 0]])  # item and frame
    named = [read[rows[mask]].tolist() for rows, mask in zip(batch.rows, batch.mask, strict=True)]
    assert named == [
        [[0, 0], [0, 1]],
        [[1, 0], [1, 1], [1, 2]],
        [[1, 6], [1, 7], [1, 8]],
        [[2, 0]],
    ]


def test_overlapping_windows_share_their_frames():
    batch = rows_of_windows([5], 3, 3)
    assert batch.rows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert batch.read.all() and batch.mask.all()


def reading(*texts: tuple[str, float]) -> list[Hypothesis]:
    return [Hypothesis(text, log(probability), (log(probability),)) for text, probability in texts]


def test_windows_vote_and_each_ballot_names_its_stretch():
    windows = [[0, 1, 2], [3, 4, 5], [6, 7]]
    readings = [reading(("23", 0.9)), reading(("28", 0.6), ("23", 0.3)), reading(("28", 0.5))]
    ranked, weights = combine(readings, floor=0.2)
    ballots = window_ballots(windows, readings, weights)
    assert {found.text: pytest.approx(exp(found.log_prob)) for found in ranked} == {"23": 1.2 / 2.3, "28": 1.1 / 2.3}
    assert ballots == [
        Ballot(0, "23", pytest.approx(0.9), pytest.approx(0.9), frames=3),
        Ballot(3, "28", pytest.approx(0.6), pytest.approx(0.6), frames=3),
        Ballot(6, "28", pytest.approx(0.5), pytest.approx(0.5), frames=2),
    ]


def test_a_single_window_keeps_its_own_readings():
    only = reading(("7", 0.15), ("1", 0.1))
    ranked, weights = combine([only], floor=0.2)
    assert ranked == only
    assert window_ballots([[0, 1]], [only], weights) == [Ballot(0, "7", pytest.approx(0.15), 0.0, frames=2)]


def test_several_windows_need_a_size():
    with pytest.raises(ValidationError, match="windows 3 need window_frames"):
        DecodeSettings(windows=3)
    with pytest.raises(ValidationError, match="window_frames"):
        DecodeSettings(window_frames=0)
    assert DecodeSettings(windows=3, window_frames=8).windows == 3
    assert DecodeSettings(window_frames=8).windows == 1


JOINT = [(kind, fusion) for kind in ("parseq", "query-digits") for fusion in ("attention", "concatenate", "mean")]


def engine_of(kind: str, fusion: str, **settings: object) -> Engine:
    return engine_for(recognizer(kind, fusion), **{"vote_floor": 0.1, **settings})


@pytest.fixture(scope="module")
def tracklets() -> list[list[bytes]]:
    """Tracklets of 1 to 11 frames; the pictures of a tracklet differ from frame to frame."""
    rng = np.random.default_rng(0)
    counts = (7, 1, 11, 3, 6, 9, 2)
    return [
        [encode_image(rng.integers(0, 60 + 195 * (frame % 2), (16, 24, 3), np.uint8)) for frame in range(count)]
        for count in counts
    ]


def assert_same_answers(one: list[Prediction], other: list[Prediction]) -> None:
    for first, second in zip(one, other, strict=True):
        assert [found.text for found in first.n_best] == [found.text for found in second.n_best]
        assert [found.log_prob for found in first.n_best] == pytest.approx(
            [found.log_prob for found in second.n_best], abs=1e-4
        )


@pytest.mark.parametrize(("kind", "fusion"), JOINT)
def test_one_window_over_all_frames_reads_as_without_windows(kind, fusion, tracklets):
    whole = engine_of(kind, fusion).read(tracklets)
    assert len({round(prediction.confidence, 3) for prediction in whole}) > 3
    for windows in (1, 3):
        read = engine_of(kind, fusion, windows=windows, window_frames=11).read(tracklets)
        assert_same_answers(read, whole)
        ballots = [ballot for prediction in read for ballot in prediction.votes]
        assert [(ballot.frame, ballot.frames) for ballot in ballots] == [(0, len(frames)) for frames in tracklets]


@pytest.mark.parametrize(("kind", "fusion"), JOINT)
def test_windows_read_as_tracklets_of_their_own_and_vote(kind, fusion, tracklets):
    engine, plain = engine_of(kind, fusion, windows=3, window_frames=3), engine_of(kind, fusion)
    for frames, prediction in zip(tracklets, engine.read(tracklets), strict=True):
        windows = window_rows(len(frames), 3, 3)
        alone = [plain.read([[frames[number] for number in window]])[0] for window in windows]
        ranked, weights = combine([window.n_best for window in alone], floor=0.1)
        ballots = window_ballots(windows, [window.n_best for window in alone], weights)
        assert [(found.frame, found.frames, found.text) for found in prediction.votes] == [
            (ballot.frame, ballot.frames, ballot.text) for ballot in ballots
        ]
        assert prediction.text == ranked[0].text
        assert prediction.confidence == pytest.approx(exp(ranked[0].log_prob), abs=1e-4)


def test_every_frame_is_encoded_once_and_one_that_no_window_has_never(tracklets):
    encoded: list[int] = []
    for settings in ({"windows": 3, "window_frames": 3}, {"windows": 9, "window_frames": 3}, {"window_frames": 2}):
        engine = engine_of("parseq", "attention", **settings)
        engine.recognizer.encoder.register_forward_hook(lambda _, given, __: encoded.append(len(given[0])))
        engine.read(tracklets[2:3])
    assert encoded == [9, 11, 2]  # of 11


def test_explaining_changes_nothing_where_windows_vote(tracklets):
    engine = engine_of("query-digits", "mean", windows=2, window_frames=4)
    plain, explained = engine.read(tracklets), engine.read(tracklets, explain=True)
    assert_same_answers(plain, explained)
    assert [prediction.votes for prediction in plain] == [prediction.votes for prediction in explained]


@pytest.mark.parametrize("kind", ["parseq", "query-digits"])
def test_a_recognizer_that_reads_frames_alone_has_no_windows(kind):
    with pytest.raises(ValueError, match="reads every frame alone and all of them vote: choose a fusion"):
        engine_of(kind, "none", windows=2, window_frames=4)
